import { existsSync } from 'node:fs';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type TableReport, Verifier, type VerifyReport } from '../../src/verify/verifier.ts';
import { TestCluster } from '../helpers/cluster.ts';
import { plant } from '../helpers/plant.ts';
import { MAJORS } from '../helpers/postgres.ts';
import { rivulet } from '../helpers/processes.ts';
import { createTpcb, startTpcbLoad } from '../helpers/tpcb.ts';

/** What `rivulet verify --json` says, with its exit code. */
async function verify(
  cluster: TestCluster,
  ...args: string[]
): Promise<{ readonly code: number | string; readonly report: VerifyReport; readonly stderr: string }> {
  await using run = rivulet([
    ...['verify', '--postgres', cluster.postgres.url, '--file', cluster.file('one'), '--json'],
    ...args,
  ]);
  const code = await run.exited;
  const report = run.stdout === '' ? null : (JSON.parse(run.stdout) as VerifyReport);
  if (report === null) throw new Error(`verify ended with ${code}: ${run.stderr}`);
  return { code, report, stderr: run.stderr };
}

function wrong(report: VerifyReport): TableReport[] {
  return report.tables.filter(({ verdict }) => verdict !== 'equal');
}

describe.each(MAJORS)('Postgres %i', (major) => {
  test('under TPC-B load an honest file is equal, ten times out of ten', async () => {
    await using cluster = await TestCluster.start({ major });
    const { url } = cluster.postgres;
    await createTpcb(url, 1, 20_000);
    await cluster.startReplicator();
    await cluster.startReplica('one');
    await using load = startTpcbLoad({ url, scale: 1, accountsPerBranch: 20_000, clients: 3, rate: 300 });
    for (let round = 0; round < 10; round++) {
      await using verifier = new Verifier({
        postgres: url,
        file: cluster.file('one'),
        publication: 'rivulet',
        slot: 'rivulet',
        onProgress: () => undefined,
        signal: AbortSignal.timeout(60_000),
      });
      const report = await verifier.run();
      expect(wrong(report)).toEqual([]);
      expect(report.equal).toBe(true);
      expect(report.rows).toBeGreaterThan(20_000);
    }
    expect(load.committed).toBeGreaterThan(100);
    expect(load.errors).toEqual([]);
    await load.stop();
    // Nothing of it is left on the server.
    const [slots] = await cluster.postgres.sql<{ count: number }>(
      'select count(*)::int as count from pg_replication_slots',
    );
    expect(slots!.count).toBe(1);
  }, 300_000);
});

describe('planted differences', () => {
  let cluster: TestCluster;
  beforeAll(async () => {
    cluster = await TestCluster.start();
    await cluster.postgres.sql(`
      create table plain (id int primary key, a text, n numeric, f float8, b bytea, t timestamptz);
      insert into plain select i, 'text ' || i, i * 1.5, i / 3.0, decode(md5(i::text), 'hex'), '2026-01-01 00:00:00Z'::timestamptz + i * interval '1 s' from generate_series(1, 5000) i;
      create table other (id bigint, region text, v text, primary key (region, id));
      insert into other select i, 'r' || i % 7, null from generate_series(1, 3000) i;
      create table bag (x int, y text);
      insert into bag select i % 10, 'y' || i % 10 from generate_series(1, 1000) i;
      create table gone (id int primary key);
      insert into gone select generate_series(1, 2000);
      create schema "Odd "" schema";
      create table "Odd "" schema"."select from; --" ("Key ""1""" int primary key, "ünï" text);
      insert into "Odd "" schema"."select from; --" values (1, 'é'), (2, E'\\uFFFD');
      create table empty (id int primary key);
      create unlogged table quiet (id int primary key);
    `);
    await cluster.startReplicator();
    await cluster.startReplica('one');
    await cluster.caughtUp();
  });
  afterAll(async () => {
    await cluster[Symbol.asyncDispose]();
  });

  test('nothing planted: equal, with every row counted, and what is not mirrored is said', async () => {
    const { code, report } = await verify(cluster);
    expect(wrong(report)).toEqual([]);
    expect(code).toBe(0);
    expect(report.tables.map(({ table, rows }) => [table, rows.postgres, rows.file])).toEqual([
      ['Odd " schema.select from; --', 2, 2],
      ['public.bag', 1000, 1000],
      ['public.empty', 0, 0],
      ['public.gone', 2000, 2000],
      ['public.other', 3000, 3000],
      ['public.plain', 5000, 5000],
    ]);
    expect(report.notMirrored.map(({ table }) => table)).toEqual(['public.quiet']);
  });

  test('each kind is found, and named with its key, its column and both values', async () => {
    plant(cluster.file('one'), [
      "update plain set a = 'text 78' where id = 77",
      'delete from plain where id = 100',
      "insert into plain (id, a) values (5001, 'not in Postgres')",
      "update plain set n = '4.5' where id = 3",
      'update plain set f = -f where id = 9',
      "update plain set b = x'00' where id = 12",
      "update other set v = '' where id = 14 and region = 'r0'",
      'update bag set x = 11 where rowid = (select min(rowid) from bag where x = 3)',
      'delete from bag where rowid = (select min(rowid) from bag where x = 4)',
      'delete from gone',
      `update "Odd "" schema.select from; --" set "ünï" = 'e' where "Key ""1""" = 1`,
      `update "Odd "" schema.select from; --" set "ünï" = cast(x'ff' as text) where "Key ""1""" = 2`,
    ]);
    const { code, report } = await verify(cluster);
    expect(code).toBe(4);
    const found = new Map(report.tables.map((table) => [table.table, table]));
    const rows = (table: string): unknown[] =>
      found
        .get(table)!
        .differences.map(({ kind, key, columns, count }) => [
          kind,
          Object.values(key).join(),
          count,
          ...columns.map(({ column, postgres, file }) => `${column}: ${postgres} | ${file}`),
        ])
        .sort((a, b) => String(a).localeCompare(String(b), 'en'));
    expect(rows('public.plain')).toEqual([
      ['different', '12', 1, "b: x'c20ad4d76fe97759aa27a0c99bff6710' | x'00'"],
      ['different', '3', 1, "n: 4.5 | '4.5'"],
      ['different', '77', 1, "a: 'text 77' | 'text 78'"],
      ['different', '9', 1, 'f: 3.0 | -3.0'],
      ['extra', '5001', 1],
      ['missing', '100', 1],
    ]);
    expect(rows('public.other')).toEqual([['different', "14,'r0'", 1, "v: NULL | ''"]]);
    expect(rows('public.bag')).toEqual([
      ['extra', "11,'y3'", 1],
      ['missing', "3,'y3'", 1],
      ['missing', "4,'y4'", 1],
    ]);
    expect(found.get('public.gone')).toMatchObject({ missing: 2000, rows: { postgres: 2000, file: 0 } });
    expect(found.get('public.gone')!.differences).toHaveLength(20);
    expect(rows('Odd " schema.select from; --')).toEqual([
      ['different', '1', 1, "ünï: 'é' | 'e'"],
      ['different', '2', 1, "ünï: '\ufffd' | cast(x'ff' as text)"],
    ]);
    expect(found.get('public.empty')!.verdict).toBe('equal');
  });

  test('--repair mends all of it through the process that keeps the file, while rows change', async () => {
    const { postgres } = cluster;
    let isOver = false;
    const writing = (async () => {
      for (let n = 1; !isOver; n++) {
        await postgres.sql(`update plain set a = 'written ' || $1 where id in (77, 12, 200)`, [n]);
        await postgres.sql("insert into bag values ($1, 'new')", [n]);
      }
    })();
    const { code, report } = await verify(cluster, '--repair');
    isOver = true;
    await writing;
    expect(report.repair!.left).toBe(0);
    expect(report.repair!.found.map(({ table }) => table)).toContain('public.bag');
    expect(wrong(report)).toEqual([]);
    expect(code).toBe(0);
    expect(await cluster.differences()).toEqual([]);
    expect((await verify(cluster)).code).toBe(0);
    expect(cluster.replicas.get('one')!.stderr).not.toContain('made anew');
    expect(existsSync(`${cluster.file('one')}-repair`)).toBe(false);
  });

  test('a file that no process keeps: said so, or brought forward and mended by verify itself', async () => {
    await cluster.replicas.get('one')!.kill('SIGTERM');
    await cluster.postgres.sql("update plain set a = 'later' where id = 1");
    plant(cluster.file('one'), ['delete from plain where id = 2']);
    await using alone = rivulet([
      ...['verify', '--postgres', cluster.postgres.url, '--file', cluster.file('one'), '--timeout', '500ms'],
    ]);
    expect(await alone.exited).toBe(1);
    expect(alone.stderr).toMatch(
      /is at \S+, before \S+, and no process brings it forward\n +hint: start `rivulet replica`/,
    );
    const { code, report } = await verify(cluster, '--replicator', cluster.replicatorUrl, '--repair');
    expect(report.repair).toMatchObject({ mended: 1, left: 0 });
    expect(code).toBe(0);
  });

  test('what cannot be compared is said before anything is read', async () => {
    for (const [args, says] of [
      [['--file', cluster.file('none'), '--postgres', cluster.postgres.url], /there is no file/],
      [['--file', cluster.file('one')], /--postgres is missing/],
      [['--file', cluster.file('one'), '--replicator', 'http://127.0.0.1:1'], /there is no --postgres/],
    ] as const) {
      await using run = rivulet(['verify', ...args]);
      expect(await run.exited).toBeGreaterThan(0);
      expect(run.stderr).toMatch(says);
    }
  });
});

test('a server without a free slot: which setting to raise', async () => {
  await using cluster = await TestCluster.start({ settings: { max_replication_slots: '1' } });
  await cluster.postgres.sql('create table t (id int primary key)');
  await cluster.startReplicator();
  await cluster.startReplica('one');
  await using run = rivulet(['verify', '--postgres', cluster.postgres.url, '--file', cluster.file('one')]);
  expect(await run.exited).toBe(1);
  expect(run.stderr).toContain('raise max_replication_slots and max_wal_senders');
});
