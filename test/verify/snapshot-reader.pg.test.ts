import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import type { Relation } from '../../src/change/relation.ts';
import { setup } from '../../src/source/setup.ts';
import { SnapshotReader } from '../../src/verify/snapshot-reader.ts';
import { startPostgres, type TestPostgres } from '../helpers/postgres.ts';
import { waitUntil } from '../helpers/wait-until.ts';

let postgres: TestPostgres;
beforeAll(async () => {
  postgres = await startPostgres();
  await setup({ url: postgres.url, publication: 'rivulet', slot: 'rivulet', log: () => undefined });
});
afterAll(async () => {
  await postgres.close();
});
beforeEach(async () => {
  await postgres.sql(
    'drop table if exists t; create table t (id int primary key, a int, b int); insert into t select i, i, -i from generate_series(1, 1000) i',
  );
});

/** A reader inside a snapshot of now, and the table as of then. */
async function openReader(): Promise<{ reader: SnapshotReader; relation: Relation }> {
  const exporter = await postgres.client();
  await exporter.query('begin isolation level repeatable read');
  const { rows } = await exporter.query('select pg_export_snapshot() as snapshot');
  const reader = await SnapshotReader.open({
    url: postgres.url,
    publication: 'rivulet',
    onRow: () => undefined,
    longTables: new Set(),
  });
  await reader.importSnapshot(rows[0].snapshot);
  await exporter.query('commit');
  const relation = (await reader.readSchema()).find(({ name }) => name === 't')!;
  return { reader, relation };
}

async function count(reader: SnapshotReader, relation: Relation): Promise<{ rows: number; isSame: boolean }> {
  let rows = 0;
  const isSame = await reader.withTable(relation, () =>
    reader.read({ relation, condition: undefined }, () => {
      rows++;
    }),
  );
  return { rows, isSame };
}

test('rows as of the snapshot, whatever is written meanwhile', async () => {
  const { reader, relation } = await openReader();
  await using _ = reader;
  await postgres.sql('delete from t where id < 500; update t set a = 0');
  expect(await count(reader, relation)).toEqual({ rows: 1000, isSame: true });
});

test.each([
  ['truncated: it looks empty to the snapshot', 'truncate t'],
  ['rewritten: it looks empty to the snapshot', 'alter table t alter column a type bigint'],
  [
    'columns that swapped their names',
    'begin; alter table t rename a to c; alter table t rename b to a; alter table t rename c to b; commit',
  ],
  ['a column that is gone', 'alter table t drop column b'],
  ['dropped', 'drop table t'],
])('a table that is not any more what it was is not taken for it: %s', async (_what, statement) => {
  const { reader, relation } = await openReader();
  await using _ = reader;
  await postgres.sql(statement);
  expect((await count(reader, relation)).isSame).toBe(false);
  // The snapshot is still good for the others.
  await expect(reader.readSchema()).resolves.toBeDefined();
});

test('whoever wants to change the table that is being read does not wait for it', async () => {
  const { reader, relation } = await openReader();
  await using _ = reader;
  const outcome = reader.withTable(relation, () =>
    // A minute's worth of reading.
    reader.read({ relation, condition: 'pg_sleep(0.06)::text is not null' }, () => undefined),
  );
  await waitUntil('the table to be read', async () => {
    const [row] = await postgres.sql(
      "select 1 from pg_stat_activity where query like 'copy%pg_sleep%' and state = 'active'",
    );
    return row !== undefined;
  });
  const startedMs = performance.now();
  await postgres.sql('alter table t add column late int');
  expect(performance.now() - startedMs).toBeLessThan(30_000);
  expect(await outcome).toBe(false);
  const locks = await postgres.sql(
    "select 1 from pg_locks l join pg_class c on c.oid = l.relation where c.relname = 't'",
  );
  expect(locks).toEqual([]);
});
