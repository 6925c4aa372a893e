import { afterAll, beforeAll, expect, test } from 'vitest';
import {
  type TableReport,
  Verifier,
  type VerifyOptions,
  type VerifyReport,
} from '../../src/verify/verifier.ts';
import { TestCluster } from '../helpers/cluster.ts';
import { plant } from '../helpers/plant.ts';
import { createTpcb, startTpcbLoad } from '../helpers/tpcb.ts';
import { waitUntil } from '../helpers/wait-until.ts';

const ACCOUNTS = 5_000;

let cluster: TestCluster;
beforeAll(async () => {
  cluster = await TestCluster.start();
  await createTpcb(cluster.postgres.url, 1, ACCOUNTS);
  await cluster.postgres.sql(`
    create table big (region text, id int, toasted text, primary key (id, region));
    alter table big alter column toasted set storage external;
    insert into big select 'r' || i % 3, i / 2, case when i % 50 = 0 then repeat(md5(i::text), 200) else 'short' end from generate_series(1, 4000) i;
    create table deferred (id int primary key deferrable initially deferred, v int);
    insert into deferred select i, i from generate_series(1, 300) i;
    create table whole (a int, b text);
    alter table whole replica identity full;
    insert into whole select i % 20, 'w' from generate_series(1, 400) i;
    create table by_index (k text not null, id int primary key, v int, unique (k));
    alter table by_index replica identity using index by_index_k_key;
    insert into by_index select 'k' || i, i, i from generate_series(1, 300) i;
  `);
  await cluster.startReplicator();
  await cluster.startReplica('one');
});
afterAll(async () => {
  await cluster[Symbol.asyncDispose]();
});

function verifierOf(options: Partial<VerifyOptions> = {}): Verifier {
  return new Verifier({
    postgres: cluster.postgres.url,
    file: cluster.file('one'),
    publication: 'rivulet',
    slot: 'rivulet',
    onProgress: () => undefined,
    signal: AbortSignal.timeout(100_000),
    ...options,
  });
}

async function verify(options: Partial<VerifyOptions> = {}): Promise<VerifyReport> {
  await using verifier = verifierOf(options);
  return await verifier.run();
}

const wrong = (report: VerifyReport): TableReport[] =>
  report.tables.filter(({ verdict }) => verdict !== 'equal');

/** Runs statements one after the other, again and again, until it is disposed of. */
function keepRunning(...statements: readonly string[]): AsyncDisposable {
  let isOver = false;
  const run = (async () => {
    while (!isOver) for (const statement of statements) await cluster.postgres.sql(statement);
  })();
  return {
    async [Symbol.asyncDispose]() {
      isOver = true;
      await run;
    },
  };
}

test('large tables in parts, snapshots given back after each, while every kind of change goes on', async () => {
  await using load = startTpcbLoad({
    url: cluster.postgres.url,
    scale: 1,
    accountsPerBranch: ACCOUNTS,
    rate: 300,
  });
  await using _changes = keepRunning(
    "update big set region = region || 'x' where id % 25 = 0 and length(region) < 10",
    "update big set region = rtrim(region, 'x') where id % 25 = 0 and length(region) > 9",
    'update deferred set id = id + 1',
    'update deferred set id = id - 1, v = v + 1',
    "update whole set b = 'v' where a = 3; insert into whole values (3, 'w'); delete from whole where a = 4; insert into whole values (4, 'n')",
    "update by_index set k = k || '.', v = v + 1 where id < 20",
    'truncate by_index; insert into by_index select $$k$$ || i, i, i from generate_series(1, 300) i',
  );
  const report = await verify({ partRows: 1000, snapshotLimitMs: 1 });
  expect(wrong(report)).toEqual([]);
  expect(report.complete).toBe(true);
  expect(report.rounds).toBeGreaterThan(10);
  expect(load.errors).toEqual([]);
});

test('the signal ends it in the middle of a table, too', async () => {
  await cluster.caughtUp();
  const parts = new AbortController();
  await expect(
    verify({
      partRows: 1000,
      tables: ['pgbench_accounts'],
      signal: parts.signal,
      onProgress: ({ phase, rows }) => {
        if (phase === 'comparing' && rows > 0) parts.abort();
      },
    }),
  ).rejects.toThrow(/^interrupted$/);

  // While Postgres does not answer, and its COPY waits.
  const holder = await cluster.postgres.client();
  await holder.query('begin; lock table whole in access exclusive mode');
  const waiting = new AbortController();
  const verifying = verify({ tables: ['whole'], signal: waiting.signal });
  verifying.catch(() => undefined);
  await waitUntil('it to wait for the table', async () => {
    const rows = await cluster.postgres.sql(
      `select from pg_stat_activity where application_name = 'rivulet verify' and wait_event_type = 'Lock'`,
    );
    return rows.length > 0;
  });
  waiting.abort();
  await expect(verifying).rejects.toThrow(/^interrupted$/);
  await holder.query('rollback');
});

test('a row in a later part is found, also where its key has two columns', async () => {
  await cluster.caughtUp();
  plant(cluster.file('one'), [
    "update big set toasted = toasted || '!' where id = 1900 and region = (select min(region) from big where id = 1900)",
    'delete from pgbench_accounts where aid = 4999',
  ]);
  const report = await verify({ partRows: 1000 });
  expect(wrong(report)).toMatchObject([
    { table: 'public.big', different: 1, differences: [{ key: { id: '1900' } }] },
    {
      table: 'public.pgbench_accounts',
      missing: 1,
      differences: [{ kind: 'missing', key: { aid: '4999' } }],
    },
  ]);
  expect(report.rounds).toBe(1);
  await using verifier = verifierOf();
  await verifier.run();
  expect((await verifier.repair()).equal).toBe(true);
});

test('schema changes go on meanwhile: nobody waits, and no table is taken for different', async () => {
  await cluster.postgres.sql(
    'create table changing (id int primary key, v text); insert into changing select i, i from generate_series(1, 2000) i',
  );
  await cluster.caughtUp();
  await using _changes = keepRunning(
    'alter table changing add column extra int default 7',
    'alter table changing alter column v type text using v || $$.$$',
    'update changing set v = $$u$$ where id < 10; alter table changing drop column extra',
    'truncate changing; insert into changing select i, i from generate_series(1, 2000) i',
    'create table passing (id int primary key); insert into passing values (1); drop table passing',
    'select pg_sleep(0.3)',
  );
  for (let round = 0; round < 2; round++) {
    const report = await verify();
    expect(wrong(report).filter(({ verdict }) => verdict !== 'not compared')).toEqual([]);
  }
});

test('tables that are missing or extra, and columns that differ', async () => {
  await cluster.postgres.sql('create table there (id int primary key, v text)');
  await cluster.caughtUp();
  plant(cluster.file('one'), [
    "update _rivulet_table set relation_oid = 4000000000, table_name = 'never' where table_name = 'there'",
    "update _rivulet_relation set relation_oid = 4000000000, definition = json_set(definition, '$.oid', 4000000000, '$.name', 'never') where relation_oid = (select relation_oid from _rivulet_column where column_name = 'v' and relation_oid not in (select relation_oid from _rivulet_table))",
    'update _rivulet_column set relation_oid = 4000000000 where relation_oid not in (select relation_oid from _rivulet_table)',
    "update _rivulet_relation set definition = json_set(definition, '$.columns[1].typeName', 'varchar(5)') where relation_oid = (select relation_oid from _rivulet_table where table_name = 'pgbench_tellers')",
  ]);
  const report = await verify({ tables: ['there', 'public.never', 'pgbench_tellers', 'pgbench_branches'] });
  expect(report.tables.map(({ table, verdict, notes }) => [table, verdict, ...notes])).toEqual([
    ['public.never', 'extra', 'it is in the file, but not published'],
    ['public.pgbench_branches', 'equal'],
    [
      'public.pgbench_tellers',
      'columns differ',
      'the column bid is integer in Postgres, varchar(5) in the file',
    ],
    ['public.there', 'missing', 'it is published, but not in the file'],
  ]);
  await expect(verify({ tables: ['nowhere'] })).rejects.toThrow('neither published nor in the file: nowhere');
});
