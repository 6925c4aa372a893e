import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import Database from 'better-sqlite3';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { startPostgres, type TestPostgres } from '../helpers/postgres.ts';
import { type RivuletProcess, rivulet, runRivulet } from '../helpers/processes.ts';
import { SmallDisk } from '../helpers/small-disk.ts';
import { waitUntil } from '../helpers/wait-until.ts';

let dir = '';
let postgres: TestPostgres;
beforeAll(async () => {
  dir = mkdtempSync(join(tmpdir(), 'rivulet-goes-on-'));
  postgres = await startPostgres();
});
afterAll(async () => {
  await postgres?.close();
  rmSync(dir, { recursive: true, force: true });
});

/** Each test has a database, a publication and a slot of its own. */
async function ownDatabase(name: string): Promise<{ url: string; sql(text: string): Promise<void> }> {
  await postgres.sql(`create database ${name}`);
  const url = new URL(postgres.url);
  url.pathname = `/${name}`;
  return {
    url: url.href,
    async sql(text) {
      const client = new pg.Client({ connectionString: url.href });
      await client.connect();
      await client.query(text).finally(() => client.end());
    },
  };
}

const replicator = (url: string, slot: string, data: string): RivuletProcess =>
  rivulet(['replicator', '--postgres', url, '--slot', slot, '--data', data, '--listen', '0']);

function rows(file: string): number {
  try {
    const database = new Database(file, { readonly: true, fileMustExist: true });
    try {
      return database.prepare('select count(*) from item').pluck().get() as number;
    } finally {
      database.close();
    }
  } catch {
    return 0;
  }
}

const TABLE = 'create table item (id bigint primary key, name text)';
const insert = (from: number, to: number, bytes: number): string =>
  `insert into item select n, (select string_agg(md5(n::text || m::text), '') from generate_series(1, ${Math.ceil(bytes / 32)}) m) from generate_series(${from}, ${to}) n`;

describe('a full disk', () => {
  test("the replicator's, while it streams: nothing is lost, and it goes on by itself", async (context) => {
    using disk = SmallDisk.mount(join(dir, 'data'), '16m', context);
    const { url, sql } = await ownDatabase('streaming');
    await sql(`${TABLE}; ${insert(1, 10, 100)}`);
    await using running = replicator(url, 'streaming', disk.path);
    const at = await running.ready;
    const file = join(dir, 'streaming.db');
    await using replica = rivulet(['replica', '--file', file, '--replicator', at]);
    await replica.ready;
    writeFileSync(join(disk.path, 'filler'), Buffer.alloc(12 * 1024 * 1024));
    for (let batch = 0; batch < 10; batch++) await sql(insert(100 + batch * 10, 109 + batch * 10, 64_000));
    await waitUntil('the full disk to be said', () => running.stderr.includes('"code":"DISK_FULL"'));
    expect(running.stderr).toContain('no space is left');
    expect((await fetch(`${at}/healthz`)).status).toBe(503);
    // Calm until there is space: said once, nothing asked of Postgres, and nothing else written down.
    const said = running.stderr;
    for (const until = performance.now() + 3_000; performance.now() < until; ) {
      expect(await postgres.sql('select from pg_stat_replication')).toEqual([]);
      await delay(100);
    }
    expect(running.stderr).toBe(said);
    expect(said.match(/"code":"DISK_FULL"/g)).toHaveLength(1);
    rmSync(join(disk.path, 'filler'));
    disk.resize('200m');
    await waitUntil('all rows', () => rows(file) === 110, { timeoutMs: 5_000 });
    expect(await replica.kill('SIGTERM')).toBe(0);
    expect(await running.kill('SIGTERM')).toBe(0);
  });

  test("the replicator's, with what is still open in Postgres: it goes on once there is space for all of it", async (context) => {
    using disk = SmallDisk.mount(join(dir, 'open'), '16m', context);
    const { url, sql } = await ownDatabase('open');
    await sql(`alter database open set logical_decoding_work_mem = '64kB'; ${TABLE}; ${insert(1, 10, 100)}`);
    await using running = replicator(url, 'open', disk.path);
    const at = await running.ready;
    const file = join(dir, 'open.db');
    await using replica = rivulet(['replica', '--file', file, '--replicator', at]);
    await replica.ready;
    const open = new pg.Client({ connectionString: url });
    await open.connect();
    try {
      await open.query('begin');
      await open.query(insert(100, 419, 64_000));
      await waitUntil('the full disk to be said', () => running.stderr.includes('"code":"DISK_FULL"'));
      // Of the log, if that writes its position just then.
      expect(running.stderr).toContain('failed: no space is left');
      // What did not fit was thrown away: that there is space for a part of it now is no reason to try again.
      const said = running.stderr;
      for (const until = performance.now() + 2_000; performance.now() < until; ) {
        expect(await postgres.sql('select from pg_stat_replication')).toEqual([]);
        await delay(100);
      }
      expect(running.stderr).toBe(said);
      disk.resize('200m');
      await open.query('commit');
    } finally {
      await open.end();
    }
    await waitUntil('all rows', () => rows(file) === 330, { timeoutMs: 10_000 });
    expect(await replica.kill('SIGTERM')).toBe(0);
    expect(await running.kill('SIGTERM')).toBe(0);
  });

  test("the replicator's, in the initial copy", async (context) => {
    using disk = SmallDisk.mount(join(dir, 'copy'), '1m', context);
    const { url, sql } = await ownDatabase('copying');
    await sql(`${TABLE}; ${insert(1, 100, 64_000)}`);
    await using running = replicator(url, 'copying', disk.path);
    await waitUntil('the full disk to be said', () => running.stderr.includes('"code":"DISK_FULL"'));
    disk.resize('200m');
    const at = await running.ready;
    expect((await fetch(`${at}/healthz`)).status).toBe(200);
    expect(await running.kill('SIGTERM')).toBe(0);
  });

  test("the replica's, in its download and while it applies", async (context) => {
    using disk = SmallDisk.mount(join(dir, 'replica'), '1m', context);
    const { url, sql } = await ownDatabase('applying');
    await sql(`${TABLE}; ${insert(1, 50, 64_000)}`);
    await using running = replicator(url, 'applying', join(dir, 'applying'));
    const at = await running.ready;
    const file = join(disk.path, 'app.db');
    await using replica = rivulet(['replica', '--file', file, '--replicator', at]);
    let from = 0;
    const isSaid = (): boolean => replica.stderr.includes('"code":"DISK_FULL"', from);
    await waitUntil('the full disk to be said', isSaid);
    disk.resize('20m');
    await replica.ready;
    expect(rows(file)).toBe(50);
    from = replica.stderr.length;
    await sql(insert(51, 450, 64_000));
    await waitUntil('the full disk to be said', isSaid);
    expect(rows(file)).toBe(50);
    disk.resize('300m');
    await waitUntil('all rows', () => rows(file) === 450);
    expect(await replica.kill('SIGTERM')).toBe(0);
    expect(await running.kill('SIGTERM')).toBe(0);
  });
});

describe('an initial copy', () => {
  test('ends cleanly on SIGTERM, outlives its connections, and begins again', async () => {
    const { url, sql } = await ownDatabase('interrupted');
    await sql(`${TABLE}; ${insert(1, 200_000, 64)}`);
    const data = join(dir, 'interrupted');
    {
      await using running = replicator(url, 'interrupted', data);
      await waitUntil('the copy to begin', () => running.stderr.includes('a new history begins'));
      expect(await running.kill('SIGTERM')).toBe(0);
      expect(running.stdout).toBe('');
    }
    await using running = replicator(url, 'interrupted', data);
    await waitUntil('the copy to begin', () => running.stderr.includes('a new history begins'));
    await waitUntil('connections to end', async () => {
      const ended = await postgres.sql(
        "select pg_terminate_backend(pid) from pg_stat_activity where datname = 'interrupted' and query ilike 'copy %'",
      );
      return ended.length > 0;
    });
    const at = await running.ready;
    const file = join(dir, 'interrupted.db');
    await using replica = rivulet(['replica', '--file', file, '--replicator', at]);
    await replica.ready;
    expect(rows(file)).toBe(200_000);
    expect(await replica.kill('SIGINT')).toBe(0);
    expect(await running.kill('SIGINT')).toBe(0);
  });
});

describe('teardown while everything runs', () => {
  test('leaves the catalogs as they were; the replicator stays away, and says why', async () => {
    const { url, sql } = await ownDatabase('torn_down');
    await sql(`${TABLE}; create table keyless (a text); ${insert(1, 10, 100)}`);
    const client = new pg.Client({ connectionString: url });
    await client.connect();
    try {
      const catalogs = async (): Promise<unknown> =>
        (
          await client.query(`
            select 'publication ' || pubname as trace from pg_publication
            union all select 'schema ' || nspname from pg_namespace where nspname !~ '^pg_(toast_)?temp'
            union all select 'event trigger ' || evtname from pg_event_trigger
            union all select 'function ' || oid::regprocedure from pg_proc where pronamespace <> all (array['pg_catalog'::regnamespace, 'information_schema'::regnamespace])
            union all select 'slot ' || slot_name from pg_replication_slots where database = current_database()
            union all select 'identity ' || relname || ' ' || relreplident::text from pg_class where relnamespace = 'public'::regnamespace
            union all select 'dependency ' || count(*) from pg_depend where deptype <> 'p'
            order by 1`)
        ).rows;
      const before = await catalogs();
      await using running = replicator(url, 'torn_down', join(dir, 'torn_down'));
      const at = await running.ready;
      expect(await catalogs()).not.toEqual(before);
      expect(await runRivulet(['teardown', '--postgres', url, '--slot', 'torn_down'])).toMatchObject({
        code: 0,
      });
      expect(await catalogs()).toEqual(before);
      await waitUntil('the replicator to say it', () => running.stderr.includes('were taken away'));
      expect((await fetch(`${at}/healthz`)).status).toBe(503);
      expect(await catalogs()).toEqual(before);
      expect(await running.kill('SIGTERM')).toBe(0);
      expect(await catalogs()).toEqual(before);
    } finally {
      await client.end();
    }
  });
});
