import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import Database from 'better-sqlite3';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { parseLsn } from '../../src/lsn.ts';
import type { ReplicatorStatus } from '../../src/replicator/status.ts';
import { asTyped, filePosition } from '../helpers/cluster.ts';
import { compareWithPostgres } from '../helpers/compare.ts';
import { startPostgres, type TestPostgres } from '../helpers/postgres.ts';
import { type RivuletProcess, rivulet, runRivulet } from '../helpers/processes.ts';
import { waitUntil } from '../helpers/wait-until.ts';

/** replicator ─▶ region ─▶ city ─▶ leaf, and a replica at each of the first two: all of them processes. */
const TOKEN = 'a-token-for-all-of-them';
const ENV = { RIVULET_TOKEN: TOKEN };

let postgres: TestPostgres;
let dir: string;
const processes = new Map<string, RivuletProcess>();
const urls = new Map<string, string>();

const file = (name: string): string => join(dir, `${name}.db`);
const at = (name: string): RivuletProcess => processes.get(name)!;

async function start(name: string, args: readonly string[]): Promise<void> {
  const process = rivulet(args, ENV);
  processes.set(name, process);
  const url = await process.ready;
  if (url !== '') urls.set(name, url);
}

function listen(name: string): string {
  const url = urls.get(name);
  return url === undefined ? '127.0.0.1:0' : new URL(url).host;
}

const startReplicator = (): Promise<void> =>
  start('replicator', [
    'replicator',
    '--postgres',
    postgres.url,
    '--data',
    join(dir, 'data'),
    '--listen',
    listen('replicator'),
  ]);
const startRelay = (name: string, upstream: string): Promise<void> =>
  start(name, [
    'relay',
    '--replicator',
    urls.get(upstream)!,
    '--data',
    asTyped(join(dir, name)),
    '--listen',
    listen(name),
    '--name',
    name,
  ]);
const startReplica = (name: string, upstream: string): Promise<void> =>
  start(name, [
    'replica',
    '--replicator',
    urls.get(upstream)!,
    '--file',
    file(name),
    '--name',
    name,
    '--listen',
    listen(name),
  ]);

async function status(name: string): Promise<ReplicatorStatus> {
  const response = await fetch(`${urls.get(name)}/v1/status`, {
    headers: { authorization: `Bearer ${TOKEN}` },
  });
  return (await response.json()) as ReplicatorStatus;
}

async function walEnd(): Promise<bigint> {
  const [row] = await postgres.sql<{ lsn: string }>('select pg_current_wal_flush_lsn()::text as lsn');
  return parseLsn(row!.lsn);
}

async function reach(...names: readonly string[]): Promise<void> {
  const end = await walEnd();
  for (const name of names)
    await waitUntil(`${name} at the end`, () => (filePosition(file(name)) ?? 0n) >= end, {
      timeoutMs: 60_000,
    });
}

async function write(from: number, to: number): Promise<void> {
  for (let id = from; id <= to; id++)
    await postgres.sql(
      `begin; insert into item values ($1, 'item'); update counter set n = n + 1; commit`.replace(
        '$1',
        String(id),
      ),
    );
}

/** How often the file was made anew: it is another one then. */
async function bootstraps(name: string): Promise<number> {
  const response = await fetch(`${urls.get(name)}/status`, { headers: { authorization: `Bearer ${TOKEN}` } });
  return ((await response.json()) as { bootstraps: number }).bootstraps;
}

beforeAll(async () => {
  dir = mkdtempSync(join(tmpdir(), 'rivulet-test-'));
  postgres = await startPostgres();
  await postgres.sql(
    'create table item (id int primary key, label text); create table counter (n int primary key); insert into counter values (0)',
  );
  await startReplicator();
  await startRelay('region', 'replicator');
  await startRelay('city', 'region');
  await Promise.all([
    startReplica('first', 'replicator'),
    startReplica('second', 'region'),
    startReplica('leaf', 'city'),
  ]);
});

afterAll(async () => {
  for (const process of [...processes.values()].reverse()) await process[Symbol.asyncDispose]();
  await postgres?.close();
  if (dir !== undefined) rmSync(dir, { recursive: true, force: true });
});

test('a tree of two levels is what Postgres is, and the replicator knows everybody in it', async () => {
  await write(1, 200);
  // Large enough to come in parts.
  await postgres.sql(`insert into item select i, repeat('x', 500) from generate_series(1000, 9000) i`);
  await reach('first', 'second', 'leaf');
  expect(await compareWithPostgres(postgres.url, file('first'), file('second'), file('leaf'))).toEqual([]);
  await waitUntil('the replicator to know all', async () => {
    const { followers } = await status('replicator');
    const seen = followers.filter(({ state, lagMs }) => state === 'live' && lagMs.p99 !== null);
    return seen.length === 5;
  });
  const { followers } = await status('replicator');
  expect(Object.fromEntries(followers.map(({ name, via }) => [name, via]))).toEqual({
    first: null,
    region: null,
    second: 'region',
    city: 'region',
    leaf: 'region > city',
  });
  const shown = await runRivulet(['status', '--replicator', urls.get('city')!], ENV);
  expect(shown.stdout).toContain(urls.get('region')!);
  expect(shown.stdout).toContain('leaf');
  const metrics = await (
    await fetch(`${urls.get('replicator')}/metrics`, { headers: { authorization: `Bearer ${TOKEN}` } })
  ).text();
  expect(metrics).toMatch(/rivulet_follower_lag_ms\{follower="\w+",name="leaf",quantile="0.99"\} \d/);
});

test('nobody is served without the token', async () => {
  const response = await fetch(`${urls.get('region')}/v1/stream?epoch=x&lsn=0/0&follower=f`);
  expect(response.status).toBe(401);
  const refused = await runRivulet(
    [
      'relay',
      '--replicator',
      urls.get('region')!,
      '--data',
      join(dir, 'stranger'),
      '--listen',
      '127.0.0.1:0',
    ],
    { RIVULET_TOKEN: 'another-token' },
  );
  expect(refused.code).toBe(1);
  expect(refused.stderr).toContain('bearer token');
});

test('a wait at the leaf of an idle tree ends soon, also for a commit that the server has not flushed', async () => {
  for (const synchronous of ['on', 'off']) {
    const client = await postgres.client();
    await client.query(`set synchronous_commit = ${synchronous}`);
    await client.query(`insert into item values (${synchronous === 'on' ? 20_001 : 20_002}, 'waited for')`);
    const { rows } = await client.query<{ token: string }>('select rivulet_token() as token');
    const response = await fetch(`${urls.get('leaf')}/wait?token=${rows[0]!.token}&timeout=5000`, {
      headers: { authorization: `Bearer ${TOKEN}` },
    });
    expect(response.status).toBe(200);
  }
});

test('killed at any moment, every process goes on where it was, without a new copy', async () => {
  const before = { second: await bootstraps('second'), first: await bootstraps('first') };
  const writing = write(10_000, 10_400);
  for (const name of ['city', 'region', 'leaf', 'region', 'replicator', 'city']) {
    await at(name).kill('SIGKILL');
    if (name === 'replicator') await startReplicator();
    else if (name === 'leaf') await startReplica('leaf', 'city');
    else await startRelay(name, name === 'city' ? 'region' : 'replicator');
  }
  await writing;
  await reach('first', 'second', 'leaf');
  expect(await compareWithPostgres(postgres.url, file('first'), file('second'), file('leaf'))).toEqual([]);
  expect({ second: await bootstraps('second'), first: await bootstraps('first') }).toEqual(before);
  expect(await bootstraps('leaf')).toBe(0);
});

test('while its replicator is away a relay goes on serving, and its followers see the age grow', async () => {
  await at('replicator').kill('SIGKILL');
  await postgres.sql(`insert into item values (30000, 'while it is away')`);
  // A new replica, from the relay alone.
  await startReplica('newcomer', 'region');
  expect(
    new Database(file('newcomer'), { readonly: true }).prepare('select count(*) from item').pluck().get(),
  ).toBeGreaterThan(8000);
  await waitUntil('the leaf to say so', async () => {
    const response = await fetch(`${urls.get('leaf')}/status`, {
      headers: { authorization: `Bearer ${TOKEN}` },
    });
    const { reasons } = (await response.json()) as { reasons: string[] };
    return reasons.some((reason) => /not heard from Postgres/.test(reason));
  });
  expect((await status('region')).state).toBe('reconnecting');
  await startReplicator();
  await reach('leaf', 'newcomer');
});

test('a replica moves from a relay to the replicator and back with the same file', async () => {
  for (const upstream of ['replicator', 'region', 'city']) {
    await at('second').kill('SIGTERM');
    await startReplica('second', upstream);
    await write(upstream.length * 1000 + 31_000, upstream.length * 1000 + 31_020);
    await reach('second');
    expect(await bootstraps('second')).toBe(0);
  }
  const { followers } = await status('replicator');
  expect(followers.filter(({ name }) => name === 'second')).toHaveLength(1);
  expect(await compareWithPostgres(postgres.url, file('second'))).toEqual([]);
});

test('a new history goes through all relays', async () => {
  await at('replicator').kill('SIGKILL');
  rmSync(join(dir, 'data'), { recursive: true });
  await start('replicator', [
    'replicator',
    '--postgres',
    postgres.url,
    '--data',
    join(dir, 'data'),
    '--listen',
    listen('replicator'),
    '--takeover',
  ]);
  await postgres.sql(`insert into item values (40000, 'of the new history')`);
  await reach('first', 'second', 'leaf', 'newcomer');
  expect(await compareWithPostgres(postgres.url, file('first'), file('second'), file('leaf'))).toEqual([]);
  const { epoch } = await status('replicator');
  expect((await status('city')).epoch).toBe(epoch);
});
