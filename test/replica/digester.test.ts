import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import Database from 'better-sqlite3';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { FRAME, jsonFrame, positionFrame } from '../../src/change/frame.ts';
import type { ReplicaDigest } from '../../src/change/table-digest.ts';
import { Applier } from '../../src/replica/applier.ts';
import { Digester } from '../../src/replica/digester.ts';
import { configureForApplying } from '../../src/replica/replica-file.ts';
import { createReplicaSchema } from '../../src/replica/schema.ts';
import { partFrame, type TestChange, testRelation, transactionFrame } from '../helpers/frames.ts';
import { waitUntil } from '../helpers/wait-until.ts';

const relation = testRelation({
  oid: 1,
  name: 't',
  columns: [{ name: 'id', mapping: 'int', key: 1 }, { name: 'v' }],
});
const meta = { epoch: 'e', position: 0n, commitTimeUs: null, systemIdentifier: '1', databaseName: 'd' };

let dir: string;
let file: string;
let db: Database.Database;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'rivulet-digest-'));
  file = join(dir, 'a.db');
  db = new Database(file);
  configureForApplying(db);
  createReplicaSchema(db, [relation], meta);
});
afterEach(() => {
  db.close();
  rmSync(dir, { recursive: true, force: true });
});

const insert = (id: number): TestChange => ({ insert: 1, row: [id, `v${id}`] });
const announce = (id: string): Buffer => jsonFrame(FRAME.digest, { id, limitMs: 1000 });

/** What another connection sees at each announcement: rows, and the position. */
function seen(...buffers: readonly Buffer[]): [id: string, rows: number, lsn: number][] {
  const found: [string, number, number][] = [];
  const applier = new Applier(db, {
    onDigest: ({ id }) => {
      const other = new Database(file, { readonly: true });
      const count = other.prepare<[], number>('select count(*) from t').pluck().get()!;
      found.push([
        id,
        count,
        other.prepare<[], number>('select lsn_int from _rivulet_position').pluck().get()!,
      ]);
      other.close();
    },
  });
  for (const buffer of buffers) applier.apply(buffer);
  return found;
}

test('at an announcement the file holds what came before it, wherever the buffers are cut', () => {
  const frames = [
    transactionFrame({ endLsn: 8n, changes: [insert(1)] }),
    transactionFrame({ endLsn: 16n, changes: [insert(2)] }),
    announce('a'),
    transactionFrame({ endLsn: 24n, changes: [insert(3)] }),
    positionFrame(32n, 0n),
    announce('b'),
    partFrame([insert(4)]),
    announce('c'),
    partFrame([insert(5)]),
    transactionFrame({ endLsn: 40n, changes: [insert(6)], hasParts: true }),
    announce('d'),
  ];
  expect(seen(Buffer.concat(frames))).toEqual([
    ['a', 2, 16],
    ['b', 3, 32],
    ['c', 3, 32],
    ['d', 6, 40],
  ]);
});

test('a digest is of the rows at its announcement, whatever is written while it is made', async () => {
  const digests: ReplicaDigest[] = [];
  const problems: string[] = [];
  const digester = new Digester({
    onDigest: (digest) => digests.push(digest),
    onProblem: (message) => problems.push(message),
  });
  const make = async (id: string, ...then: Buffer[]): Promise<ReplicaDigest> => {
    digester.prepare(id);
    await waitUntil('the thread', () => digests.some((each) => each.id === id && each.tables === null));
    digester.begin({ id, file, limitMs: 10_000 });
    for (const frame of then) applier.apply(frame);
    return waitUntil('the digest', () => digests.find((each) => each.id === id && each.tables !== null));
  };
  const applier = new Applier(db);
  applier.apply(transactionFrame({ endLsn: 8n, changes: [insert(1), insert(2)] }));
  const first = await make('1', transactionFrame({ endLsn: 16n, changes: [insert(3)] }));
  const second = await make('2', transactionFrame({ endLsn: 24n, changes: [{ delete: 1, key: [3] }] }));
  const third = await make('3');
  digester.close();
  expect(first).toMatchObject({ tables: [{ table: 'public.t', rows: 2 }], left: 0 });
  expect(second.tables).toMatchObject([{ rows: 3 }]);
  expect(second.tables![0]!.digest).not.toBe(first.tables![0]!.digest);
  expect(third.tables).toEqual(first.tables);
  expect(problems).toEqual([]);
});
