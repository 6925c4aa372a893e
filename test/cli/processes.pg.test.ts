import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import Database from 'better-sqlite3';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { BoundAddress } from '../../src/http/listen.ts';
import type { ReplicatorStatus } from '../../src/replicator/status.ts';
import { startPostgres, type TestPostgres } from '../helpers/postgres.ts';
import { type RivuletProcess, rivulet, runRivulet } from '../helpers/processes.ts';
import { waitUntil } from '../helpers/wait-until.ts';

const TOKEN = 'a-token-for-the-tests';

let dir = '';
let postgres: TestPostgres;
beforeAll(async () => {
  dir = mkdtempSync(join(tmpdir(), 'rivulet-cli-'));
  postgres = await startPostgres();
  await postgres.sql(`
    create table item (id integer primary key, name text);
    insert into item select number, 'item ' || number from generate_series(1, 1000) number;
    create unlogged table scratch (id integer);`);
});
afterAll(async () => {
  await postgres?.close();
  rmSync(dir, { recursive: true, force: true });
});

/** A database of the test's own, where slots and publications of others do not matter. */
async function ownDatabase(name: string): Promise<string> {
  await postgres.sql(`create database ${name}`);
  const url = new URL(postgres.url);
  url.pathname = `/${name}`;
  return url.href;
}

const insertLsn = async (): Promise<string> =>
  (await postgres.sql<{ lsn: string }>('select pg_current_wal_insert_lsn()::text as lsn'))[0]!.lsn;

describe('replicator and replica as processes', () => {
  test('copy, follow, wait, status, and end cleanly', async () => {
    const tokenFile = join(dir, 'token');
    writeFileSync(tokenFile, `${TOKEN}\n`);
    const file = join(dir, 'app.db');
    await using replicator = rivulet(
      ['replicator', '--data', join(dir, 'replicator'), '--listen', '0', '--token-file', tokenFile],
      {
        RIVULET_POSTGRES: postgres.url,
      },
    );
    const [, what, url] = await replicator.readyWords;
    expect(what).toBe('replicator');
    expect((await fetch(`${url}/healthz`)).status).toBe(200);
    expect((await fetch(`${url}/v1/status`)).status).toBe(401);

    await using replica = rivulet(
      ['replica', '--file', file, '--replicator', url!, '--name', 'node-1', '--listen', '127.0.0.1:0'],
      {
        RIVULET_TOKEN: TOKEN,
      },
    );
    const [, , replicaUrl, path] = await replica.readyWords;
    expect(path).toBe(file);
    expect((await fetch(`${replicaUrl}/healthz`)).status).toBe(200);
    expect((await fetch(`${replicaUrl}/metrics`)).status).toBe(401);

    await postgres.sql("update item set name = 'changed' where id = 7");
    const waited = await runRivulet(['wait', '--file', file, '--lsn', await insertLsn(), '--timeout', '20s']);
    expect(waited).toMatchObject({ code: 0 });
    const database = new Database(file, { readonly: true });
    expect(database.prepare('select name from item where id = 7').pluck().get()).toBe('changed');
    expect(database.prepare('select count(*) from item').pluck().get()).toBe(1000);
    database.close();

    const authorization = { headers: { authorization: `Bearer ${TOKEN}` } };
    await waitUntil('the replica in the status', async () => {
      const status = (await (await fetch(`${url}/v1/status`, authorization)).json()) as ReplicatorStatus;
      return (
        status.followers.some((follower) => follower.name === 'node-1' && follower.lagMs.p50 !== null) &&
        status.slot!.walStatus !== null &&
        status.postgres!.asOf !== null
      );
    });
    const args = ['status', '--replicator', url!, '--token-file', tokenFile, '--file', file];
    const shown = await runRivulet([...args, '--postgres', postgres.url]);
    expect(shown.code).toBe(0);
    for (const text of [
      'streaming',
      'wal_status',
      'reserved',
      'unlogged',
      'node-1',
      'Replicas (1)',
      'Replica file',
      'asked directly',
    ]) {
      expect(shown.stdout).toContain(text);
    }
    expect(shown.stdout + shown.stderr).not.toContain(new URL(postgres.url).password);
    const json = JSON.parse((await runRivulet([...args, '--json'])).stdout) as {
      replicator: ReplicatorStatus;
      file: { tables: number };
    };
    expect(json.replicator.followers[0]).toMatchObject({ name: 'node-1' });
    expect(json.file.tables).toBe(1);
    expect(await runRivulet(['status', '--replicator', url!])).toMatchObject({
      code: 1,
      stderr: expect.stringContaining('refuses the token'),
    });

    // A second process on the same file, or the same directory, is refused.
    const second = await runRivulet([
      'replica',
      '--file',
      file,
      '--replicator',
      url!,
      '--token-file',
      tokenFile,
    ]);
    expect(second).toMatchObject({
      code: 1,
      stderr: expect.stringContaining('another process already keeps'),
    });
    const thief = await runRivulet([
      'replicator',
      '--postgres',
      postgres.url,
      '--data',
      join(dir, 'replicator'),
      '--listen',
      '0',
    ]);
    expect(thief).toMatchObject({
      code: 1,
      stderr: expect.stringContaining('another process already keeps'),
    });
    // Others may read it.
    expect(await runRivulet(['teardown', '--postgres', `${postgres.url}x`])).toMatchObject({ code: 1 });

    expect(await replica.kill('SIGTERM')).toBe(0);
    expect(await replicator.kill('SIGINT')).toBe(0);
    expect(replicator.stderr + replica.stderr).not.toContain(new URL(postgres.url).password);
    expect(replicator.stderr + replica.stderr).not.toContain(TOKEN);
    // Nobody looks at it as a terminal: all of it is JSON lines, the progress of copy and download too.
    const messages = (text: string): string[] =>
      text
        .trimEnd()
        .split('\n')
        .map((line) => (JSON.parse(line) as { msg: string }).msg);
    expect(messages(replicator.stderr)).toContainEqual(expect.stringMatching(/^copying 100% {2}tables 1\/1/));
    expect(messages(replica.stderr)).toContainEqual(expect.stringMatching(/^downloading 100%/));

    const gone = await runRivulet(['teardown', '--postgres', postgres.url, '--json']);
    expect(gone.code).toBe(0);
    expect(await postgres.sql('select from pg_replication_slots')).toEqual([]);
    expect(await postgres.sql('select from pg_publication')).toEqual([]);
  });

  test('everything in one process, and again after kill -9', async () => {
    const url = await ownDatabase('one_process');
    const sql = async (text: string): Promise<void> => {
      const { default: pg } = await import('pg');
      const client = new pg.Client({ connectionString: url });
      await client.connect();
      await client.query(text);
      await client.end();
    };
    await sql('create table item (id integer primary key, name text); insert into item values (1, $$one$$)');
    const file = join(dir, 'one-process.db');
    const args = ['replica', '--file', file, '--postgres', url, '--slot', 'one_process', '--listen', '0'];
    const names = (): unknown[] => {
      const database = new Database(file, { readonly: true });
      const rows = database.prepare('select name from item order by id').pluck().all();
      database.close();
      return rows;
    };
    {
      await using replica = rivulet(args);
      await replica.ready;
      expect(names()).toEqual(['one']);
      await sql("insert into item values (2, 'two')");
      expect(await runRivulet(['wait', '--file', file, '--lsn', await insertLsn()])).toMatchObject({
        code: 0,
      });
      expect(names()).toEqual(['one', 'two']);
      await replica.kill('SIGKILL');
    }
    await sql("insert into item values (3, 'three')");
    await using replica = rivulet(args);
    const served = await replica.ready;
    expect(await runRivulet(['wait', '--file', file, '--lsn', await insertLsn()])).toMatchObject({ code: 0 });
    expect(names()).toEqual(['one', 'two', 'three']);
    const answer = await fetch(`${served}/wait?lsn=${encodeURIComponent(await insertLsn())}&timeout=20000`);
    expect(await answer.json()).toMatchObject({ reached: true });
    // The replicator's part is to be seen, too.
    const metrics = async (): Promise<string> => (await fetch(`${served}/metrics`)).text();
    await waitUntil('the slot to be looked at', async () =>
      /^rivulet_slot_retained_bytes /m.test(await metrics()),
    );
    for (const name of ['rivulet_replica_healthy', 'rivulet_position_lsn'])
      expect((await metrics()).match(new RegExp(`^${name}[ {]`, 'gm')), name).toHaveLength(1);
    expect(await runRivulet(['status', '--replicator', served])).toMatchObject({
      code: 0,
      stdout: expect.stringMatching(/slot +one_process/i),
    });
    expect(await replica.kill('SIGTERM')).toBe(0);

    // Somebody has written into the file: noticed with the next change of that row, and made anew.
    const tampered = new Database(file);
    tampered.exec('delete from item where id = 2');
    tampered.close();
    {
      await using again = rivulet(args);
      const before = await again.ready;
      await sql("update item set name = 'zwei' where id = 2");
      await waitUntil('the file to be made anew', () => {
        expect(again.child.exitCode, again.stderr).toBeNull();
        return names()[1] === 'zwei';
      });
      expect(names()).toEqual(['one', 'zwei', 'three']);
      expect(again.stderr).toContain('made anew');
      await waitUntil('the same address to answer', () =>
        fetch(`${before}/healthz`).then(
          (answer) => answer.ok,
          () => false,
        ),
      );
      expect(await again.kill('SIGTERM')).toBe(0);
    }

    // The same file for another database.
    const other = await runRivulet([
      'replica',
      '--file',
      file,
      '--postgres',
      await ownDatabase('another'),
      '--slot',
      'another',
      '--data',
      join(dir, 'another'),
    ]);
    expect(other).toMatchObject({
      code: 1,
      stderr: expect.stringContaining('was made from another database (one_process)'),
    });
    expect(names()).toEqual(['one', 'zwei', 'three']);
    expect(await runRivulet(['teardown', '--postgres', url, '--slot', 'one_process'])).toMatchObject({
      code: 0,
    });
  });

  test('a list of tables that is not what was set up before is said, until it is', async () => {
    const url = await ownDatabase('lists');
    const client = new pg.Client({ connectionString: url });
    await client.connect();
    await client.query('create table a (id int primary key); create table b (id int primary key)');
    await client.end();
    const at = ['--postgres', url, '--slot', 'lists'];
    const start = (tables: string): RivuletProcess =>
      rivulet(['replicator', ...at, '--data', join(dir, 'lists'), '--listen', '0', '--tables', tables]);
    const reasons = async (address: string): Promise<string[]> =>
      ((await (await fetch(`${address}/v1/status`)).json()) as { reasons: string[] }).reasons;
    {
      await using first = start('a');
      expect(await reasons(await first.ready)).toEqual([]);
      expect(await first.kill('SIGTERM')).toBe(0);
    }
    {
      await using second = start('a,b,nosuch');
      const address = await second.ready;
      await waitUntil('two reasons', async () => (await reasons(address)).length === 2);
      expect(await reasons(address)).toEqual([
        expect.stringMatching(/^public\.b is not mirrored: .* run `rivulet setup --tables a,b,nosuch`$/),
        expect.stringMatching(/^--tables: .*nosuch does not exist/),
      ]);
      expect(second.stderr).toMatch(/"level":40.*public\.b is not mirrored/);
      expect(await runRivulet(['setup', ...at, '--tables', 'a,b'])).toMatchObject({ code: 0 });
      await waitUntil('b to be there', async () => (await reasons(address)).length === 1);
      expect(await second.kill('SIGTERM')).toBe(0);
    }
    {
      await using third = start('a');
      const address = await third.ready;
      await waitUntil('a reason', async () => (await reasons(address)).length === 1);
      expect((await reasons(address))[0]).toMatch(/^--tables does not name public\.b, but/);
      expect(await third.kill('SIGTERM')).toBe(0);
    }
    expect(await runRivulet(['teardown', ...at])).toMatchObject({ code: 0 });
    expect(await runRivulet(['setup', ...at])).toMatchObject({ code: 0 });
    await using fourth = start('a');
    const address = await fourth.ready;
    const said = /is of all tables, so --tables changes nothing; .*teardown/;
    await waitUntil('the reason', async () => (await reasons(address)).some((reason) => said.test(reason)));
    expect(await fourth.kill('SIGTERM')).toBe(0);
    expect(await runRivulet(['teardown', ...at])).toMatchObject({ code: 0 });
  });

  test('setup says what it did, and does nothing twice', async () => {
    const url = await ownDatabase('set_up');
    const first = await runRivulet(['setup', '--postgres', url, '--slot', 'set_up']);
    expect(first).toMatchObject({
      code: 0,
      stdout: expect.stringContaining('created the publication rivulet'),
    });
    const second = await runRivulet(['setup', '--postgres', url, '--slot', 'set_up']);
    expect(second).toMatchObject({ code: 0, stdout: expect.stringContaining('in place already') });
    expect(
      JSON.parse((await runRivulet(['teardown', '--postgres', url, '--slot', 'set_up', '--json'])).stdout).did
        .length,
    ).toBeGreaterThan(0);
    expect((await runRivulet(['teardown', '--postgres', url, '--slot', 'set_up'])).stdout).toContain(
      'nothing to take away',
    );
  });
});

describe('what cannot work', () => {
  const replicator = (url: string, ...more: string[]): ReturnType<typeof runRivulet> =>
    runRivulet(['replicator', '--postgres', url, '--data', join(dir, 'never'), '--listen', '0', ...more]);

  test('a wrong password, an absent database, a dead address', async () => {
    const url = new URL(postgres.url);
    url.password = 'wrong-password';
    const refused = await replicator(url.href);
    expect(refused).toMatchObject({ code: 1, stdout: '' });
    expect(refused.stderr).toContain('password');
    expect(refused.stderr).not.toContain('wrong-password');
    expect(await replicator(`${postgres.url}_absent`)).toMatchObject({
      code: 1,
      stderr: expect.stringContaining('postgres_absent'),
    });
    const dead = await replicator('postgres://u:secret-of-mine@127.0.0.1:1/d');
    expect(dead.code).toBe(1);
    expect(dead.stderr).not.toContain('secret-of-mine');
  });

  test('a port in use', async () => {
    const server = createServer().listen(0, '127.0.0.1');
    await once(server, 'listening');
    const { port } = server.address() as { port: number };
    const url = await ownDatabase('port_in_use');
    const at = ['--postgres', url, '--slot', 'port_in_use', '--listen', `${port}`];
    const taken = `another process already listens on 127.0.0.1:${port}`;
    const file = join(dir, 'busy.db');
    for (const args of [
      ['replicator', ...at, '--data', join(dir, 'busy')],
      ['replica', ...at, '--file', file],
      ['replica', '--replicator', 'http://127.0.0.1:1', '--file', file, '--listen', `${port}`],
      ['relay', '--replicator', 'http://127.0.0.1:1', '--data', join(dir, 'busy'), '--listen', `${port}`],
    ])
      expect(await runRivulet(args)).toMatchObject({ code: 1, stderr: expect.stringContaining(taken) });
    server.close();
    // Nothing was made before that was known.
    expect(readdirSync(dir).filter((name) => name.startsWith('busy'))).toEqual([]);
    expect((await runRivulet(['teardown', ...at.slice(0, 4)])).stdout).toContain('nothing to take away');
  });

  test('the port answers from the beginning, also while there is nothing to serve', async () => {
    const bound = await BoundAddress.bind({ host: '127.0.0.1', port: 0 }, undefined);
    const { port } = bound;
    await bound.close();
    await using replica = rivulet([
      ...['replica', '--replicator', 'http://127.0.0.1:1', '--listen', `${port}`],
      ...['--file', join(dir, 'waits.db')],
    ]);
    const ask = (path: string): Promise<Response | null> =>
      fetch(`http://127.0.0.1:${port}${path}`).catch(() => null);
    await waitUntil('an answer', async () => (await ask('/healthz')) !== null);
    const health = (await ask('/healthz'))!;
    expect(health.status).toBe(503);
    expect(await health.json()).toMatchObject({ healthy: false, state: 'starting' });
    const other = (await ask('/status'))!;
    expect(other.status).toBe(503);
    expect(await other.json()).toMatchObject({ code: 'NOT_READY' });
    expect(await replica.kill('SIGTERM')).toBe(0);
  });

  test('files that are not ours stay as they are', async () => {
    const foreign = join(dir, 'foreign.db');
    new Database(foreign).exec('create table mine (a)').close();
    const text = join(dir, 'text.db');
    writeFileSync(text, 'not a database'.repeat(100));
    mkdirSync(join(dir, 'directory.db'));
    for (const [file, message] of [
      [foreign, 'not one that Rivulet keeps'],
      [text, 'not a SQLite file'],
    ] as const) {
      const result = await runRivulet(['replica', '--file', file, '--postgres', postgres.url]);
      expect(result).toMatchObject({ code: 1, stderr: expect.stringContaining(message) });
    }
    expect(
      (await runRivulet(['replica', '--file', join(dir, 'directory.db'), '--postgres', postgres.url])).code,
    ).toBe(1);
    expect(
      (await runRivulet(['replica', '--file', join(dir, 'no', 'such', 'dir.db'), '--postgres', postgres.url]))
        .code,
    ).toBe(1);
    const database = new Database(foreign);
    expect(database.prepare('select name from sqlite_schema').pluck().all()).toEqual(['mine']);
    database.close();
    expect(await postgres.sql('select from pg_publication')).toEqual([]);
  });

  test('an unused flag value is a usage error before anything is touched', async () => {
    const result = await runRivulet([
      'replicator',
      '--postgres',
      postgres.url,
      '--data',
      join(dir, 'x'),
      '--retain-age',
      'forever',
    ]);
    expect(result).toMatchObject({
      code: 2,
      stderr: expect.stringContaining('--retain-age: the value "forever" is not allowed'),
    });
  });
});
