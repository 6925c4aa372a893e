import { writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import Database from 'better-sqlite3';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { run } from '../../src/cli/run.ts';
import { decodeToken } from '../../src/token.ts';
import { TestCluster } from '../helpers/cluster.ts';
import { rivulet } from '../helpers/processes.ts';
import { TcpProxy } from '../helpers/tcp-proxy.ts';
import { waitUntil } from '../helpers/wait-until.ts';
import { send, TestApp } from '../http/proxy/test-proxy.ts';
import { fakeProcess } from './fake-process.ts';

const BEARER = 'a-secret-token';
const KEY = 'k1:0123456789abcdef';

let cluster: TestCluster;
/** Writes to Postgres, reads from the replica's file: an app that knows nothing of Rivulet. */
let app: TestApp;
let replicaUrl = '';
let wire: TcpProxy;
/** What the app does between a write and its answer, and before a read. */
let slow: () => Promise<void> = async () => undefined;

beforeAll(async () => {
  cluster = await TestCluster.start();
  await cluster.postgres.sql('create table note (id int primary key, body text)');
  await cluster.startReplicator();
  // Between replica and replicator: to hold changes back.
  wire = await TcpProxy.start({ port: Number(new URL(cluster.replicatorUrl).port) });
  const replica = rivulet(
    [
      'replica',
      '--file',
      cluster.file('one'),
      '--replicator',
      wire.through(cluster.replicatorUrl),
      '--listen',
      '0',
    ],
    { RIVULET_TOKEN: BEARER },
  );
  cluster.replicas.set('one', replica);
  replicaUrl = await replica.ready;
  const db = new Database(cluster.file('one'), { readonly: true });
  app = await TestApp.start(async (request, response) => {
    const id = Number(request.url!.slice(1));
    if (request.method === 'POST') {
      await cluster.postgres.sql('insert into note values ($1, $2)', [id, 'x'.repeat(id % 500)]);
      await slow();
      response.end('written');
      return;
    }
    response.end(
      JSON.stringify(db.prepare('select length(body) as length from note where id = ?').get(id) ?? null),
    );
  });
});
afterAll(async () => {
  await app?.[Symbol.asyncDispose]();
  await cluster?.[Symbol.asyncDispose]();
  await wire?.[Symbol.asyncDispose]();
});

const proxyArguments = (): string[] => ['proxy', '--target', app.url, '--listen', '0'];

describe.each(['process', 'file', 'both'])('the replica is known by its %s', (known) => {
  const replica = (): string[] => [
    ...(known === 'file' ? [] : ['--replica', replicaUrl]),
    ...(known === 'process' ? [] : ['--file', cluster.file('one')]),
  ];

  test('what was written is read, however late the change comes', async () => {
    await using proxy = rivulet([...proxyArguments(), ...replica()], {
      RIVULET_POSTGRES: cluster.postgres.url,
      RIVULET_TOKEN: BEARER,
      RIVULET_TOKEN_KEY: KEY,
    });
    const url = await proxy.ready;
    expect((await proxy.readyWords)[1]).toBe('proxy');
    const first = { process: 1000, file: 2000, both: 3000 }[known]!;
    for (let id = first; id < first + 60; id++) {
      const isHeldBack = id % 20 === 19;
      if (isHeldBack) for (const each of wire.connections) each.stall('to client');
      const write = await send(`${url}/${id}`, { method: 'POST' });
      expect(write).toMatchObject({ status: 200, body: 'written' });
      const reading = send(`${url}/${id}`, {
        headers: { cookie: write.headers['set-cookie']![0]!.split(';')[0]! },
      });
      if (isHeldBack) {
        await new Promise((resolve) => setTimeout(resolve, 30));
        for (const each of wire.connections) each.resume('to client');
      }
      expect(await reading).toMatchObject({ status: 200, body: JSON.stringify({ length: id % 500 }) });
    }
    const health = await send(`${url}/rivulet/healthz`);
    expect(health.status, health.body).toBe(200);
    expect(await proxy.kill('SIGTERM')).toBe(0);
    expect(`${proxy.stdout}${proxy.stderr}`).not.toMatch(/0123456789abcdef|a-secret-token/);
  });
});

test('SIGTERM lets an answer under way end', async () => {
  const { promise: writing, resolve: isWriting } = Promise.withResolvers<void>();
  const { promise: mayEnd, resolve: goOn } = Promise.withResolvers<void>();
  slow = async () => {
    isWriting();
    await mayEnd;
  };
  await using proxy = rivulet([...proxyArguments(), '--replica', replicaUrl], {
    RIVULET_POSTGRES: cluster.postgres.url,
    RIVULET_TOKEN: BEARER,
  });
  const url = await proxy.ready;
  const answer = send(`${url}/5000`, { method: 'POST' });
  await writing;
  const exit = proxy.kill('SIGTERM');
  await waitUntil('nothing new to be taken', async () =>
    send(url).then(
      () => false,
      () => true,
    ),
  );
  goOn();
  expect((await answer).headers['rivulet-token']).toMatch(/^1\.[0-9a-f]+\.[0-9a-f]+$/);
  expect(await exit).toBe(0);
  slow = async () => undefined;
});

test('settings from a config file; Postgres away is no reason not to start, and no answer is lost for it', async () => {
  await using toPostgres = await TcpProxy.start({ port: Number(new URL(cluster.postgres.url).port) });
  toPostgres.refuse(true);
  const config = join(cluster.dir, 'proxy.yaml');
  writeFileSync(join(cluster.dir, 'keys'), `${KEY}\n`);
  writeFileSync(
    config,
    [
      `target: ${app.url}`,
      'listen: 127.0.0.1:0',
      `replica: ${replicaUrl}`,
      `token: ${BEARER}`,
      `postgres: ${toPostgres.through(cluster.postgres.url)}`,
      `token-key-file: ${join(cluster.dir, 'keys')}`,
      'ignore-paths: [/assets/*]',
      'on-timeout: stale',
      'timeout: 20s',
    ].join('\n'),
  );
  await using proxy = rivulet(['proxy', '--config', config]);
  const url = await proxy.ready;
  expect(proxy.stderr).toContain('no tokens yet');
  const write = await send(`${url}/6000`, { method: 'POST' });
  expect(write.headers['set-cookie']).toEqual([expect.stringMatching(/^rivulet_token=unknown; /)]);
  const headers = { cookie: 'rivulet_token=unknown' };
  expect((await send(`${url}/6000`, { headers })).headers['rivulet-read']).toBe('stale');
  toPostgres.refuse(false);
  const read = await send(`${url}/6000`, { headers });
  expect(read.body).toBe(JSON.stringify({ length: 6000 % 500 }));
  const keys = { current: { id: 'k1', secret: '0123456789abcdef' } };
  expect(decodeToken(String(read.headers['rivulet-token']), keys).lsn).toBeGreaterThan(0n);
});

describe('bad input', () => {
  const url = (): string => cluster.postgres.url;
  const fails = async (args: string[], env: Record<string, string> = {}) => {
    const host = fakeProcess({ RIVULET_LOG_LEVEL: 'error', ...env });
    const code = await run(['proxy', ...args], host);
    return [code, host.stderr.text] as const;
  };

  test.each([
    [[], 2, '--target is missing'],
    [['--target', 'http://127.0.0.1:3000/base'], 2, "a URL without a path, like 'http://127.0.0.1:3000'"],
    [['--target', 'http://127.0.0.1:3000'], 2, 'give --replica URL'],
    [['--target', 'http://localhost:4850', '--file', 'x'], 2, 'the address that the proxy itself listens on'],
    [['--target', 'http://127.0.0.1:3000', '--file', '/no/such.db'], 1, 'there is no file /no/such.db'],
    [['--target', 'http://127.0.0.1:3000', '--replica', 'app.db'], 2, "like 'http://127.0.0.1:4841'"],
    [
      ['--target', 'http://127.0.0.1:3000', '--listen', '203.0.113.1:1', '--replica', 'http://h:1'],
      1,
      'no address',
    ],
  ])('%j', async (args, code, says) => {
    const [exit, err] = await fails(args as string[]);
    expect(err).toContain(says);
    expect(exit).toBe(code);
  });

  test('a port in use', async () => {
    const other = createServer().listen(0, '127.0.0.1');
    await new Promise((resolve) => other.once('listening', resolve));
    const { port } = other.address() as AddressInfo;
    const args = [...proxyArguments().slice(1, 3), '--listen', `${port}`, '--replica', replicaUrl];
    const [exit, err] = await fails(args, { RIVULET_TOKEN: BEARER });
    other.close();
    expect(err).toContain(`another process already listens on 127.0.0.1:${port}`);
    expect(exit).toBe(1);
  });

  test('a replica that wants a token', async () => {
    const [exit, err] = await fails([...proxyArguments().slice(1), '--replica', replicaUrl]);
    expect(err).toMatch(
      /the replica wants a bearer token.*\n {2}hint: give the --token-file or RIVULET_TOKEN/,
    );
    expect(exit).toBe(1);
  });

  test('a Postgres that would never give a token', async () => {
    const args = [...proxyArguments().slice(1), '--file', cluster.file('one')];
    await cluster.postgres.sql('create database empty');
    const empty = new URL(url());
    empty.pathname = '/empty';
    expect(await fails(args, { RIVULET_POSTGRES: empty.href })).toEqual([
      1,
      expect.stringMatching(/no function rivulet.token\(\)\n {2}hint: run `rivulet setup`/),
    ]);
    empty.pathname = '/no_such_database';
    expect(await fails(args, { RIVULET_POSTGRES: empty.href })).toEqual([
      1,
      expect.stringContaining('does not exist'),
    ]);
  });
});
