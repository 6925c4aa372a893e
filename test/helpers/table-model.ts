import Database from 'better-sqlite3';
import fc from 'fast-check';
import type { Relation } from '../../src/change/relation.ts';
import { createIndexes, createReplicaSchema } from '../../src/replica/schema.ts';
import { type TestChange, type TestValue, testRelation, UNCHANGED } from './frames.ts';

/** Tables of every kind, as far as finding their rows is concerned. */
export const relations: readonly Relation[] = [
  testRelation({
    oid: 1,
    name: 'by_int',
    columns: [{ name: 'id', mapping: 'int', key: 1 }, { name: 'v' }, { name: 'w' }],
  }),
  testRelation({
    oid: 2,
    name: 'by_pair',
    columns: [{ name: 'v' }, { name: 'b', mapping: 'int', key: 2 }, { name: 'w' }, { name: 'a', key: 1 }],
  }),
  testRelation({
    oid: 3,
    name: 'full_with_key',
    replicaIdentity: 'full',
    columns: [{ name: 'v' }, { name: 'id', key: 1 }, { name: 'w' }],
  }),
  testRelation({
    oid: 4,
    name: 'no_key',
    replicaIdentity: 'full',
    columns: [{ name: 'v' }, { name: 'n', mapping: 'int' }, { name: 'w' }],
  }),
  testRelation({
    oid: 5,
    name: 'by_index',
    replicaIdentity: 'index',
    columns: [
      { name: 'id', mapping: 'int', key: 1, identity: false },
      { name: 'code', identity: true },
      { name: 'w' },
    ],
  }),
];

type Row = (string | number | null)[];

export interface Step {
  readonly table: number;
  readonly action: 'insert' | 'update' | 'move' | 'delete' | 'truncate';
  readonly row: number;
  readonly key: number;
  readonly value: string | null;
  readonly keep: readonly boolean[];
}

export const step: fc.Arbitrary<Step> = fc.record({
  table: fc.nat(relations.length - 1),
  action: fc.oneof(
    { weight: 4, arbitrary: fc.constant('insert' as const) },
    { weight: 5, arbitrary: fc.constant('update' as const) },
    { weight: 3, arbitrary: fc.constant('move' as const) },
    { weight: 3, arbitrary: fc.constant('delete' as const) },
    { weight: 1, arbitrary: fc.constant('truncate' as const) },
  ),
  row: fc.nat(50),
  key: fc.nat(6),
  value: fc.option(fc.constantFrom('a', 'b', 'c'), { freq: 4 }),
  keep: fc.array(fc.boolean(), { minLength: 4, maxLength: 4 }),
});

/** A small Postgres: keeps rows, and says what each change would look like in the stream. */
export class Model {
  readonly tables = new Map<number, Row[]>(relations.map(({ oid }) => [oid, []]));

  /** The change that a step makes, or null where Postgres would refuse it or find nothing. */
  change(step: Step): TestChange | null {
    const relation = relations[step.table]!;
    const { oid, columns } = relation;
    const rows = this.tables.get(oid)!;
    const isKey = columns.map((column) => column.keyOrdinal !== null);
    const isIdentity = columns.map((column) => column.identity);
    const keyText = (row: Row): string => JSON.stringify(row.filter((_, index) => isKey[index]));
    const codeText = (row: Row): string => JSON.stringify(row.filter((_, index) => isIdentity[index]));
    const isFree = (row: Row, except: Row | null): boolean =>
      isKey.every((each) => !each) ||
      rows.every(
        (each) =>
          each === except ||
          (keyText(each) !== keyText(row) && (oid !== 5 || codeText(each) !== codeText(row))),
      );
    const keyValue = (index: number, key: number): string | number =>
      columns[index]!.mapping === 'int' ? key : `k${key}`;

    if (step.action === 'truncate') {
      if (step.key > 0) return null;
      rows.length = 0;
      return { truncate: oid };
    }
    if (step.action === 'insert') {
      const row: Row = columns.map((column, index) =>
        isKey[index] || isIdentity[index]
          ? keyValue(index, step.key)
          : column.mapping === 'int'
            ? step.key % 2
            : step.value,
      );
      if (!isFree(row, null)) return null;
      rows.push(row);
      return { insert: oid, row };
    }
    if (rows.length === 0) return null;
    const old = rows[step.row % rows.length]!;
    const oldKey = old.filter((_, index) => isIdentity[index]);
    const withOld = relation.replicaIdentity === 'full';
    if (step.action === 'delete') {
      rows.splice(rows.indexOf(old), 1);
      return withOld ? { delete: oid, old: [...old] } : { delete: oid, key: oldKey };
    }
    const row: Row = old.map((value, index) => {
      if (step.keep[index]) return value;
      if (isKey[index] || isIdentity[index])
        return step.action === 'move' ? keyValue(index, step.key) : value;
      return columns[index]!.mapping === 'int' ? step.key % 2 : step.value;
    });
    if (!isFree(row, old)) return null;
    rows[rows.indexOf(old)] = row;
    const sent: TestValue[] = row.map((value, index) =>
      step.keep[index] && !isIdentity[index] && columns[index]!.name === 'w' ? UNCHANGED : value,
    );
    if (withOld) return { update: oid, old: [...old], row: sent };
    const identityChanged = row.some((value, index) => isIdentity[index] && value !== old[index]);
    return identityChanged ? { update: oid, key: oldKey, row: sent } : { update: oid, row: sent };
  }
}

/** An empty replica of these tables, in memory. */
export function replica(of: readonly Relation[] = relations): Database.Database {
  const db = new Database(':memory:');
  const meta = { epoch: 'e', position: 0n, commitTimeUs: null, systemIdentifier: '1', databaseName: 'd' };
  for (const layout of createReplicaSchema(db, of, meta)) createIndexes(db, layout);
  return db;
}
