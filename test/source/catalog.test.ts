import { describe, expect, it } from 'vitest';
import type { Relation } from '../../src/change/relation.ts';
import {
  readSchemaMessage,
  relationsFromJson,
  type SchemaMessage,
  schemaChange,
} from '../../src/source/catalog.ts';
import type { RelationMessage } from '../../src/source/relation-message.ts';
import { SchemaTracker, type SchemaTrackerOptions } from '../../src/source/schema-tracker.ts';
import { type TouchedRows, touchedRows } from '../../src/source/touched-rows.ts';

type Json = Record<string, unknown>;

const column = (changes: Json = {}): Json => ({
  attnum: 1,
  name: 'id',
  typeName: 'integer',
  typeOid: 23,
  typeModifier: -1,
  baseOid: 23,
  elemOid: 0,
  delim: ',',
  notNull: true,
  keyOrdinal: 1,
  identity: true,
  typeParts: [],
  ...changes,
});
const relation = (oid: number, changes: Json = {}): Json => ({
  oid,
  schema: 'public',
  name: `t${oid}`,
  kind: 'r',
  identity: 'd',
  keyDeferrable: false,
  storage: '',
  created: [],
  missing: [],
  columns: [column()],
  indexes: [],
  ...changes,
});
const KEY = 'the key';

const message = (changes: Json = {}): Extract<SchemaMessage, { kind: 'schema' }> =>
  readSchemaMessage(
    JSON.stringify({
      v: 1,
      key: KEY,
      publication: 'rivulet',
      command: 'ALTER TABLE',
      touched: null,
      snapshot: '100:100:',
      relations: [],
      ...changes,
    }),
    KEY,
  ) as Extract<SchemaMessage, { kind: 'schema' }>;

describe('relationsFromJson', () => {
  it('chooses the mapping by the base type', () => {
    const types: [number, number, unknown][] = [
      [16, 0, 'bool'],
      [20, 0, 'int'],
      [26, 0, 'int'],
      [701, 0, 'float'],
      [1700, 0, 'numeric'],
      [17, 0, 'bytea'],
      [3802, 0, 'json'],
      [1184, 0, 'timestamptz'],
      [25, 0, 'text'],
      [99999, 0, 'text'],
      [1007, 23, { array: 'int', delimiter: ',' }],
      [99998, 99999, { array: 'text', delimiter: ',' }],
    ];
    for (const [baseOid, elemOid, mapping] of types) {
      const [read] = relationsFromJson([
        relation(1, { columns: [column({ baseOid, elemOid, keyOrdinal: null, identity: false })] }),
      ]);
      expect(read!.columns[0]!.mapping).toEqual(mapping);
    }
    for (const isKey of [{}, { keyOrdinal: null }, { identity: false }]) {
      const [read] = relationsFromJson([
        relation(1, { columns: [column({ baseOid: 1007, elemOid: 23, ...isKey })] }),
      ]);
      expect(read!.columns[0]!.mapping).toEqual({ array: 'int', delimiter: ',', isKey: true });
    }
  });

  it.each<[string, unknown]>([
    ['no array', {}],
    ['no object', [1]],
    ['no identity', [relation(1, { identity: 'x' })]],
    ['an oid of text', [relation(1, { oid: '1' })]],
    ['an attnum that is no integer', [relation(1, { columns: [column({ attnum: 1.5 })] })]],
    ['a name that is none', [relation(1, { columns: [column({ name: null })] })]],
    ['columns that are none', [relation(1, { columns: null })]],
    ['an index that is none', [relation(1, { indexes: [null] })]],
  ])('refuses %s', (_what, json) => {
    expect(() => relationsFromJson(json)).toThrow(expect.objectContaining({ code: 'PROTOCOL' }));
  });
});

describe('readSchemaMessage', () => {
  it('reads what the hooks write', () => {
    const publishers = { p: { oid: 5, altered_by: 7, unpublished: [] } };
    const failed = { v: 1, failed: 'XX000', touched: [1, 2], publishers };
    expect(readSchemaMessage(JSON.stringify({ ...failed, key: KEY }), KEY)).toEqual({
      kind: 'failed',
      sqlstate: 'XX000',
      touched: new Set([1, 2]),
      publishers: new Map([['p', { oid: 5, alteredBy: 7, unpublished: [] }]]),
    });
    expect(readSchemaMessage(JSON.stringify(failed), KEY)).toEqual({
      kind: 'failed',
      sqlstate: 'XX000',
      touched: null,
      publishers: undefined,
    });
    expect(message({ touched: [1, 2] }).touched).toEqual(new Set([1, 2]));
  });

  it.each([
    '{"v":2,"key":"the key"}',
    '{"v":1,"key":"the key"}',
    '{"v":1,"key":"the key","publication":"p","command":"c","snapshot":"1:1:","touched":["1"],"relations":[]}',
  ])('refuses %s', (text) => {
    expect(() => readSchemaMessage(text, KEY)).toThrow(expect.objectContaining({ code: 'PROTOCOL' }));
  });

  it.each([
    '',
    'not json',
    '[]',
    'null',
    '{"v":2}',
    '{"v":1,"key":"another","publication":"rivulet","command":"x","touched":null,"relations":[]}',
    '{"v":1,"publication":"rivulet","command":"x","touched":null,"relations":[]}',
    '{"v":1,"rewritten":1}',
  ])('does not believe %s', (text) => {
    expect(readSchemaMessage(text, KEY)).toEqual({ kind: 'foreign' });
  });

  it('believes nobody where there is no key', () => {
    expect(readSchemaMessage('{"v":1,"key":null,"rewritten":1}', null)).toEqual({ kind: 'foreign' });
  });
});

describe('schemaChange', () => {
  const known = new Map<number, Relation>(
    relationsFromJson([relation(1), relation(2)]).map((each) => [each.oid, each]),
  );

  it('finds what came, changed and went', () => {
    const renamed = relation(1, { name: 'renamed' });
    expect(schemaChange(known, message({ relations: [renamed, relation(3)] }))).toEqual({
      changed: relationsFromJson([renamed, relation(3)]),
      dropped: [2],
    });
    expect(schemaChange(known, message({ relations: [relation(2), relation(1)] }))).toBeNull();
  });

  it('believes a transaction only about what it held locked', () => {
    // It began before table 2 was made and before table 4 was dropped, and commits after both.
    const late = message({ touched: [1], relations: [relation(1, { name: 'renamed' }), relation(4)] });
    expect(schemaChange(known, late)).toEqual({
      changed: relationsFromJson([relation(1, { name: 'renamed' })]),
      dropped: [],
    });
    expect(schemaChange(known, message({ touched: [1], relations: [] }))).toEqual({
      changed: [],
      dropped: [1],
    });
  });
});

describe('touchedRows', () => {
  const reloads = (before: Json, now: Json, hooks: Json = {}, rewritten: number[] = []): number[] => {
    const known = new Map(relationsFromJson([before]).map((each) => [each.oid, each]));
    const told = message({ relations: [now], ...hooks });
    const options = { rewritten: new Set(rewritten), isWhole: () => true, isFromBefore: () => true };
    return [...touchedRows(known, schemaChange(known, told)!, told, options).reload];
  };
  const stored = (storage: string, changes: Json = {}): Json => relation(1, { storage, ...changes });

  it('another file counts where a rewrite was announced, or nobody could have', () => {
    expect(reloads(stored('1:1'), stored('1:5'))).toEqual([]);
    expect(reloads(stored('1:1'), stored('1:5'), {}, [1])).toEqual([1]);
    expect(reloads(stored('1:1'), stored('1:5'), { unannounced: true })).toEqual([1]);
    expect(reloads(stored('7:7'), stored('7:9'))).toEqual([1]);
  });

  it('partitions that come with rows, or go', () => {
    expect(reloads(stored('7:7'), stored('7:7 8:8'))).toEqual([1]);
    expect(reloads(stored('7:7'), stored('7:7 8:8', { created: [8] }))).toEqual([]);
    expect(reloads(stored('7:7 8:8'), stored('7:7'))).toEqual([1]);
  });

  it('a partition that was truncated is read again but where it is empty, and the files hold the others', () => {
    const partitions = [
      [7, 1, 'id', 'FOR VALUES FROM (0) TO (5)'],
      [8, 1, 'id', 'DEFAULT'],
    ];
    const [before] = relationsFromJson([stored('7:7 8:8', { partitions })]);
    const touched = (now: string, emptied: readonly number[], isWhole = true): TouchedRows => {
      const known = new Map([[1, before!]]);
      const told = message({ relations: [stored(now, { partitions })], emptied, unannounced: true });
      return touchedRows(known, schemaChange(known, told)!, told, {
        rewritten: new Set(),
        isWhole: () => isWhole,
        isFromBefore: () => true,
      });
    };
    const gone = { from: 1, to: null, within: before!.bounds![7], columns: [] };
    expect(touched('7:9 8:8', [7])).toEqual({ reload: [], moves: [gone] });
    expect(touched('7:9 8:8', [])).toEqual({ reload: [1], moves: [] });
    expect(touched('7:9 8:8', [7], false)).toEqual({ reload: [1], moves: [] });
    expect(touched('7:9 8:9', [7, 8])).toEqual({ reload: [1], moves: [] });
  });

  it('of a partition that came or went the files have the rows, where this transaction had hold of it', () => {
    const partition = (oid: number, from: number): unknown => [
      oid,
      1,
      'id',
      `FOR VALUES FROM (${from}) TO (${from + 5})`,
    ];
    const root = (storage: string, ...oids: number[]): Json =>
      stored(storage, { partitions: oids.map((oid) => partition(oid, oid)) });
    const touched = (had: readonly Json[], has: readonly Json[], hooks: Json): TouchedRows => {
      const known = new Map(relationsFromJson(had).map((each) => [each.oid, each]));
      const told = message({ relations: has, ...hooks });
      return touchedRows(known, schemaChange(known, told)!, told, {
        rewritten: new Set(),
        isWhole: () => true,
        isFromBefore: () => true,
      });
    };
    const [both, one] = [root('7:7 8:8', 7, 8), root('7:7', 7)];
    const own = relation(8, { storage: '8:8' });
    const within = relationsFromJson([both])[0]!.bounds![8];
    const gone = { from: 1, to: null, within, columns: [] };
    const detached = { ...gone, to: 8, columns: [[1, 1]] };
    const attached = { from: 8, to: 1, within: null, columns: [[1, 1]] };
    expect(touched([both], [one], { touched: [1, 8] })).toEqual({ reload: [], moves: [gone] });
    expect(touched([both], [one], { touched: [1] })).toEqual({ reload: [1], moves: [] });
    expect(touched([both], [one], { touched: null })).toEqual({ reload: [1], moves: [] });
    expect(touched([both], [one, own], { touched: [1, 8], exclusive: [1, 8] })).toEqual({
      reload: [],
      moves: [detached],
    });
    expect(touched([both], [one, own], { touched: [1, 8] })).toEqual({ reload: [8], moves: [gone] });
    expect(touched([one, own], [both], { touched: [1, 8] })).toEqual({ reload: [], moves: [attached] });
    expect(touched([one, own], [both], { touched: [1] })).toEqual({ reload: [1], moves: [] });
    // One message of both: which came first is not told.
    expect(touched([one, own], [root('8:8', 8)], { touched: [1, 7, 8] })).toEqual({ reload: [1], moves: [] });
    // It was elsewhere, and is back with other bounds.
    const moved = stored('7:7 8:9', { partitions: [partition(7, 7), partition(8, 50)] });
    expect(touched([both], [moved], { touched: [1], emptied: [8] })).toEqual({ reload: [1], moves: [] });
  });

  it('a new column whose older values nobody can tell', () => {
    const two = [column(), column({ attnum: 2, name: 'b' })];
    expect(
      reloads(relation(1), relation(1, { columns: two, missing: [{ attnum: 2, value: null }] })),
    ).toEqual([1]);
    expect(reloads(relation(1), relation(1, { columns: two, missing: [{ attnum: 2, value: '7' }] }))).toEqual(
      [],
    );
  });

  it.each([
    [['label 1 sad', 'label 2 ok'], ['label 1 sad', 'label 2 ok', 'label 3 happy'], []],
    [['label 1 sad', 'label 2 ok'], ['label 1 blue', 'label 2 ok'], [1]],
    [['attribute 9 1 23'], ['attribute 9 1 23', 'attribute 9 2 25'], [1]],
    [['attribute 9 1 23', 'attribute 9 2 25'], ['attribute 9 2 25'], [1]],
  ])('parts of a type: %j, then %j', (had, has, expected) => {
    const of = (typeParts: readonly string[]): Json => relation(1, { columns: [column({ typeParts })] });
    expect(reloads(of(had), of(has))).toEqual(expected);
  });

  it.each<[string, Json, Json, number[]]>([
    ['cidr, then inet', { typeOid: 650, baseOid: 650 }, { typeOid: 869, baseOid: 869 }, [1]],
    ['int4, then oid', {}, { typeOid: 26, baseOid: 26 }, [1]],
    ['text, then varchar', { typeOid: 25, baseOid: 25 }, { typeOid: 1043, baseOid: 1043 }, []],
    ['a domain of text, then varchar', { typeOid: 99999, baseOid: 25 }, { typeOid: 1043, baseOid: 1043 }, []],
    ['a domain of cidr, then inet', { typeOid: 99999, baseOid: 650 }, { typeOid: 869, baseOid: 869 }, [1]],
  ])('the same bytes as values of another type: %s', (_what, before, now, expected) => {
    const of = (type: Json): Json => relation(1, { columns: [column(type)] });
    expect(reloads(of(before), of(now))).toEqual(expected);
  });

  it('a column that was there before it was published', () => {
    const two = [column(), column({ attnum: 2, name: 'b' })];
    expect(reloads(relation(1, { hidden: [2] }), relation(1, { columns: two }))).toEqual([1]);
    expect(reloads(relation(1, { hidden: [3] }), relation(1, { columns: two, hidden: [3] }))).toEqual([]);
  });
});

describe('SchemaTracker', () => {
  const TRACKED: SchemaTrackerOptions = {
    publication: 'rivulet',
    isAnnounced: () => true,
    messageKey: () => KEY,
    onProblem: () => undefined,
  };
  const TOLD = { v: 1, key: KEY, publication: 'rivulet', command: '' };

  it('does not believe who knows nothing of what the catalog has told already', () => {
    const problems: string[] = [];
    const options = { ...TRACKED, onProblem: (problem: string) => problems.push(problem) };
    const json = (changes: Json): string =>
      JSON.stringify({ ...TOLD, touched: null, relations: [], ...changes });
    const both = [relation(1), relation(2)];
    const tracker = new SchemaTracker(relationsFromJson([relation(1)]), options);
    // The catalog is ahead of the stream: it has the table that transaction 50 will bring.
    tracker.refresh(relationsFromJson(both), 40);
    tracker.commit();
    expect(
      tracker.message(json({ touched: [2], relations: [relation(2)], snapshot: '50:51:' }), 50),
    ).toBeNull();
    const late = json({ relations: [relation(1)], snapshot: '45:46:' });
    expect(tracker.message(late, 45)).toBe('unknown');
    expect(problems).toHaveLength(1);
    // Nor after a restart.
    const restored = SchemaTracker.restore(tracker.commit(), options);
    expect(restored.message(late, 45)).toBe('unknown');
    expect(restored.message(json({ relations: [relation(1)], snapshot: '60:60:' }), 60)).toMatchObject({
      dropped: [2],
    });
  });

  it('does not believe who knows nothing of a type that changed, of a table that is new', () => {
    const tracker = new SchemaTracker(relationsFromJson([relation(1)]), TRACKED);
    const told = (changes: Json): string => JSON.stringify({ ...TOLD, ...changes });
    // A label gets another name, while a transaction that does not see it makes the first table with that type.
    expect(
      tracker.message(told({ touched: null, relations: [relation(1)], snapshot: '50:50:' }), 50),
    ).toBeNull();
    const made = { touched: [2], relations: [relation(2)] };
    expect(tracker.message(told({ ...made, snapshot: '50:52:50' }), 51)).toBe('unknown');
    expect(tracker.message(told({ ...made, snapshot: '51:52:' }), 51)).toMatchObject({
      changed: [{ oid: 2 }],
    });
  });

  it('does not believe a transaction that goes on telling without sight of others', () => {
    const told = (changes: Json): string => JSON.stringify({ ...TOLD, ...changes });
    const both = relationsFromJson([relation(1), relation(2)]);
    const made = told({ touched: [2], relations: [relation(2)], snapshot: '50:51:' });
    // It has changed two types, one after the other, before another one made a table and committed first.
    const twice = told({ touched: null, relations: [relation(1)], snapshot: '49:49:' });
    const tracker = new SchemaTracker(relationsFromJson([relation(1)]), TRACKED);
    expect(tracker.message(made, 50)).toMatchObject({ changed: [{ oid: 2 }] });
    for (let time = 0; time < 2; time++) {
      expect(tracker.message(twice, 49)).toBe('unknown');
      expect(tracker.refresh(both, 49)).toMatchObject({ dropped: [] });
    }
    expect(tracker.relations.map(({ oid }) => oid)).toEqual([1, 2]);
    // What it did to types, a third one that makes a table has to know as well.
    const third = { touched: [3], relations: [relation(3)] };
    expect(tracker.message(told({ ...third, snapshot: '49:53:49' }), 52)).toBe('unknown');
    expect(tracker.message(told({ ...third, snapshot: '53:53:' }), 52)).toMatchObject({
      changed: [{ oid: 3 }],
    });
  });

  // The catalog is ahead: a partition has come, brought rows, and left, and the table is as it was.
  it.each([
    ['a message without sight of another', (message: Json) => message],
    ['a hook that failed', ({ key, touched }: Json) => ({ v: 1, failed: 'XX000', key, touched })],
    ['a message that was perhaps rolled back', (message: Json) => ({ doubtful: JSON.stringify(message) })],
  ])('reads again what %s tells of, though the catalog has it as it was before', (_name, told) => {
    const tracker = new SchemaTracker(relationsFromJson([relation(1)]), TRACKED);
    const published = relationsFromJson([relation(1), relation(2), relation(3)]);
    tracker.refresh(published, 40);
    tracker.commit();
    const partition = {
      ...TOLD,
      touched: [1, 2],
      snapshot: '39:39:',
      relations: [relation(1, { storage: '1:1 2:2', created: [2] })],
    };
    expect(tracker.message(JSON.stringify(told(partition)), 50)).toBe('unknown');
    const change = tracker.refresh(published, 50);
    expect(change?.reloading?.map(({ oid }) => oid)).toEqual([1, 2]);
    expect(tracker.reloads.get(1)).toMatchObject({ xid: 50, readUpTo: null });
  });

  const described = (oid: number): RelationMessage => ({
    oid,
    schema: 'public',
    name: `t${oid}`,
    identity: 'd',
    columns: [{ name: 'id', typeOid: 23, typeModifier: -1, identity: true }],
  });

  it('reads again a table that nobody told of, unless the transaction of its rows has made it', () => {
    const adopted = (isNew: boolean): readonly number[] => {
      const tracker = new SchemaTracker([], TRACKED);
      expect(tracker.match(described(2))).toBe('unknown');
      tracker.adopt(described(2), { published: relationsFromJson([relation(2)]), isNew, xid: 50 });
      return [...tracker.reloads.keys()];
    };
    expect(adopted(true)).toEqual([]);
    expect(adopted(false)).toEqual([2]);
  });

  it('still sees the rewrite of a table that was looked up behind it', () => {
    const tracker = new SchemaTracker(relationsFromJson([relation(1, { name: 'older' })]), TRACKED);
    const rewritten = relation(1, { storage: '1:7' });
    expect(tracker.match(described(1))).toBe('unknown');
    tracker.adopt(described(1), { published: relationsFromJson([rewritten]), isNew: false, xid: 50 });
    expect(tracker.reloads.size).toBe(0);
    tracker.message(JSON.stringify({ v: 1, key: KEY, rewritten: 1 }), 51);
    tracker.message(
      JSON.stringify({ ...TOLD, touched: [1], snapshot: '51:51:', relations: [rewritten] }),
      51,
    );
    expect([...tracker.reloads.keys()]).toEqual([1]);
  });
});
