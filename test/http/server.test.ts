import { rmSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import express from 'express';
import { expect, test } from 'vitest';
import { isAuthorized } from '../../src/http/authorization.ts';
import { isOwnHost } from '../../src/http/foreign-request.ts';
import { listen } from '../../src/http/listen.ts';
import { isLoopback } from '../../src/http/loopback.ts';
import { serveReplica, serveSnapshotter } from '../../src/http/server.ts';
import { silentLog } from '../../src/log.ts';
import { formatLsn } from '../../src/lsn.ts';
import { openReplica } from '../../src/replica/replica.ts';
import { encodeToken } from '../../src/token.ts';
import { insertItem, START, TestReplicator, temporaryDirectory } from '../fanout/test-replicator.ts';
import { waitUntil } from '../helpers/wait-until.ts';
import { RawConnection, send } from './proxy/test-proxy.ts';

function fail(): never {
  throw new Error('not to be called');
}

const TOKEN = 'a-secret-token';
const AUTHORIZED = { headers: { authorization: `Bearer ${TOKEN}` } };

test.each([
  [undefined, false],
  ['', false],
  ['Bearer', false],
  [`Bearer ${TOKEN}x`, false],
  [`Basic ${TOKEN}`, false],
  [`Bearer ${TOKEN}`, true],
  [`bearer  ${TOKEN} `, true],
])('authorization %j', (header, is) => {
  expect(isAuthorized(header, TOKEN)).toBe(is);
});

test('knows loopback', () => {
  expect(['127.0.0.1', '127.9.9.9', '::1', 'localhost'].every(isLoopback)).toBe(true);
  expect(['0.0.0.0', '::', '10.0.0.1', 'example.org', '127.evil.example'].some(isLoopback)).toBe(false);
});

test('does not listen beyond loopback without a token', async () => {
  await expect(listen(express(), { host: '0.0.0.0', port: 0 }, undefined)).rejects.toMatchObject({
    code: 'CONFIG',
    exitCode: 2,
  });
  await using server = await listen(express(), { host: '0.0.0.0', port: 0 }, TOKEN);
  expect(server.address.port).toBeGreaterThan(0);
});

test.each([
  ['localhost', true],
  ['LocalHost:4840', true],
  ['app.localhost:4840', true],
  ['localhost.', true],
  ['127.0.0.1:4840', true],
  ['192.168.1.2', true],
  ['[::1]:4840', true],
  ['[::1]', true],
  ['evil.example', false],
  ['evil.example:4840', false],
  ['127.0.0.1.evil.example', false],
  ['localhost.evil.example', false],
  ['evillocalhost', false],
  ['.localhost', false],
  ['[evil.example]', false],
  ['[127.0.0.1]', false],
  ['::1', false],
  ['localhost@evil.example', false],
  ['2130706433', false],
  ['', false],
])('the host %j is ours: %j', (host, is) => {
  expect(isOwnHost(host)).toBe(is);
});

test('without a token no page of another site gets an answer, whatever its name points to', async () => {
  using dir = temporaryDirectory();
  await using replicator = await TestReplicator.start({ dir: dir.path });
  await using replica = await openReplica({ file: join(dir.path, 'app.db'), replicator: replicator.url });
  const common = { listen: { host: '127.0.0.1', port: 0 }, token: undefined, log: silentLog() };
  await using ofReplica = await serveReplica({ ...common, replica });
  const snapshotter = { status: () => fail(), takeSnapshot: () => fail() };
  await using ofSnapshotter = await serveSnapshotter({ ...common, snapshotter });
  const stream = `v1/stream?epoch=e1&lsn=${formatLsn(START)}&follower=f`;
  const report = JSON.stringify({ lsn: '0/1000' });
  const ask = async (url: string, headers: Record<string, string>) => {
    const isPost = /(snapshots|hasten|digest|followers.*)$/.test(url);
    const json = { 'content-type': 'application/json' };
    const { status, body } = await send(
      url,
      isPost ? { method: 'POST', headers: { ...json, ...headers }, body: report } : { headers },
    );
    return { status, body: JSON.parse(body) as unknown };
  };
  const port = new URL(replicator.url).port;
  for (const headers of [
    { host: 'evil.example' },
    { host: `evil.example:${port}` },
    { origin: 'http://evil.example' },
    { origin: 'null' },
    { origin: 'http://localhost:3000' },
  ] as Record<string, string>[]) {
    for (const url of [
      ...[
        'v1/snapshot',
        stream,
        'v1/status',
        'metrics',
        'healthz',
        'v1/snapshots',
        'v1/hasten',
        'v1/digest',
      ].map((path) => `${replicator.url}/${path}`),
      `${replicator.url}/v1/followers/f`,
      ...['healthz', 'status', 'metrics', 'wait?lsn=0/1'].map((path) => `${ofReplica.url}/${path}`),
      ...['healthz', 'v1/status', 'v1/snapshots', 'metrics'].map((path) => `${ofSnapshotter.url}/${path}`),
    ])
      expect([url, headers, await ask(url, headers)]).toEqual([
        url,
        headers,
        {
          status: 403,
          body: { code: 'FOREIGN_REQUEST', message: expect.any(String), hint: expect.any(String) },
        },
      ]);
  }
  expect(replicator).toMatchObject({ hastened: 0, leases: 0 });
  expect(await ask(`${replicator.url}/v1/snapshots`, { host: 'evil.example' })).toMatchObject({
    body: {
      message: expect.stringContaining('evil.example'),
      hint: expect.stringContaining('RIVULET_TOKEN'),
    },
  });
  const own = { host: `localhost:${port}`, origin: `http://localhost:${port}` };
  expect(await ask(`${replicator.url}/v1/status`, own)).toMatchObject({ status: 200 });
  // Without HTTP/1.1 there need not be a host.
  using old = new RawConnection(replicator.url);
  old.socket.write('GET /healthz HTTP/1.0\r\n\r\n');
  await waitUntil('the answer', () => old.isEnded);
  expect(old.received).toMatch(/^HTTP\/1.1 200 /);
});

test('with a token a process answers under any name', async () => {
  using dir = temporaryDirectory();
  await using replicator = await TestReplicator.start({ dir: dir.path, token: TOKEN });
  const headers = { ...AUTHORIZED.headers, host: 'replicator:4840', origin: 'http://elsewhere' };
  expect((await send(`${replicator.url}/v1/status`, { headers })).status).toBe(200);
  expect((await send(`${replicator.url}/healthz`, { headers: { host: 'replicator' } })).status).toBe(200);
});

test('a port in use is named', async () => {
  const other = createServer().listen(0, '127.0.0.1');
  await new Promise((resolve) => other.once('listening', resolve));
  const { port } = other.address() as AddressInfo;
  await expect(listen(express(), { host: '127.0.0.1', port }, undefined)).rejects.toMatchObject({
    code: 'LISTEN',
    message: expect.stringContaining(String(port)),
  });
  other.close();
});

test('a replicator with a token answers nobody without it, except for its health', async () => {
  using dir = temporaryDirectory();
  await using replicator = await TestReplicator.start({ dir: dir.path, token: TOKEN });
  for (const path of [
    'v1/status',
    'metrics',
    'v1/snapshot',
    `v1/stream?epoch=e1&lsn=${formatLsn(START)}&follower=f`,
    'nothing',
  ]) {
    const response = await fetch(`${replicator.url}/${path}`);
    expect(response.status).toBe(401);
    expect(response.headers.get('www-authenticate')).toBe('Bearer');
    expect(await response.json()).toMatchObject({ code: 'UNAUTHORIZED', hint: expect.any(String) });
  }
  expect((await fetch(`${replicator.url}/healthz`)).status).toBe(200);
  expect((await fetch(`${replicator.url}/v1/status`, AUTHORIZED)).status).toBe(200);
});

test('refuses followers by their position, as JSON with a code', async () => {
  using dir = temporaryDirectory();
  await using replicator = await TestReplicator.start({ dir: dir.path });
  const ask = async (query: string): Promise<{ status: number; code: unknown }> => {
    const response = await fetch(`${replicator.url}/v1/stream?${query}`);
    return { status: response.status, code: ((await response.json()) as { code: unknown }).code };
  };
  expect(await ask('epoch=e2&lsn=0/1000&follower=f')).toEqual({ status: 409, code: 'EPOCH_MISMATCH' });
  expect(await ask('epoch=e1&lsn=0/10&follower=f')).toEqual({ status: 410, code: 'POSITION_TOO_OLD' });
  expect(await ask('epoch=e1&lsn=0/1001&follower=f')).toEqual({ status: 503, code: 'NOT_READY' });
  expect(await ask('epoch=e1&lsn=nonsense&follower=f')).toEqual({ status: 400, code: 'CONFIG' });
  expect(await ask('epoch=e1&lsn=0/1000')).toEqual({ status: 400, code: 'CONFIG' });
  expect(await ask('epoch=e1&lsn=0/1000&follower=f&follower=g')).toEqual({ status: 400, code: 'CONFIG' });
  replicator.publisher.detach();
  expect(await ask('epoch=e1&lsn=0/1000&follower=f')).toEqual({ status: 503, code: 'NOT_READY' });
});

test('a stream flows, and closing the server ends it at once', async () => {
  using dir = temporaryDirectory();
  await using replicator = await TestReplicator.start({ dir: dir.path });
  const response = await fetch(`${replicator.url}/v1/stream?epoch=e1&lsn=${formatLsn(START)}&follower=f`);
  expect(response.headers.get('content-type')).toBe('application/octet-stream');
  const reader = response.body!.getReader();
  expect((await reader.read()).done).toBe(false);
  await replicator.server.close();
  // The connection's end ends the body; that it was not meant to end shows in the missing last frame.
  while (!(await reader.read()).done);
  await waitUntil('gone', () => replicator.publisher.size === 0);
});

test('takes reports, and shows them', async () => {
  using dir = temporaryDirectory();
  await using replicator = await TestReplicator.start({ dir: dir.path });
  const report = (id: string, body: unknown) =>
    fetch(`${replicator.url}/v1/followers/${id}`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: typeof body === 'string' ? body : JSON.stringify(body),
    });
  expect(
    (await report('f1', { name: 'one', lsn: '0/1000', lagMs: { p50: 1, p99: 2, last: null } })).status,
  ).toBe(204);
  const status = (await (await fetch(`${replicator.url}/v1/status`)).json()) as { followers: unknown[] };
  expect(status.followers).toMatchObject([
    { id: 'f1', name: 'one', position: '0/1000', lagMs: { p50: 1, p99: 2, last: null } },
  ]);
  for (const bad of [
    '{',
    '[]',
    { lsn: 'x' },
    {},
    { lsn: '0/1', name: 'x'.repeat(1000) },
    `{"lsn":"0/1","x":"${'y'.repeat(5_000_000)}"}`,
  ]) {
    const response = await report('f1', bad);
    expect(response.status).toBe(400);
    expect(await response.json()).toMatchObject({ code: 'CONFIG' });
  }
  const metrics = await (await fetch(`${replicator.url}/metrics`)).text();
  expect(metrics).toContain('rivulet_follower_lag_ms{follower="f1",name="one",quantile="0.99"} 2');
  expect(metrics).toContain('rivulet_replicator_state{state="streaming"} 1');
});

test('the snapshot comes whole, in ranges, and lets go of the file', async () => {
  using dir = temporaryDirectory();
  await using replicator = await TestReplicator.start({ dir: dir.path });
  const get = (headers: Record<string, string> = {}) => fetch(`${replicator.url}/v1/snapshot`, { headers });
  const whole = await get();
  expect(whole.status).toBe(200);
  expect(whole.headers.get('rivulet-epoch')).toBe('e1');
  expect(whole.headers.get('rivulet-lsn')).toBe(formatLsn(START));
  const bytes = Buffer.from(await whole.arrayBuffer());
  expect(bytes.length).toBe(Number(whole.headers.get('content-length')));
  expect(bytes.subarray(0, 15).toString()).toBe('SQLite format 3');
  const etag = whole.headers.get('etag')!;
  const rest = await get({ range: 'bytes=1000-', 'if-range': etag });
  expect(rest.status).toBe(206);
  expect(Buffer.from(await rest.arrayBuffer())).toEqual(bytes.subarray(1000));
  const nothing = await get({ range: `bytes=${bytes.length}-`, 'if-range': etag });
  expect(nothing.status).toBe(416);
  expect(nothing.headers.get('content-range')).toBe(`bytes */${bytes.length}`);
  expect(nothing.headers.get('content-type')).toMatch(/json/);
  expect(await nothing.json()).toMatchObject({ code: 'PROTOCOL' });
  // Another snapshot by now: all of it.
  const other = await get({ range: 'bytes=1000-', 'if-range': '"e0+0/1"' });
  expect(other.status).toBe(200);
  await other.arrayBuffer();
  await waitUntil('all released', () => replicator.leases === 0);
});

test('unknown paths and odd requests get JSON', async () => {
  using dir = temporaryDirectory();
  await using replicator = await TestReplicator.start({ dir: dir.path });
  expect((await fetch(`${replicator.url}/v2/x`)).status).toBe(404);
  expect((await fetch(`${replicator.url}/v1/followers/%E0%A4%A`, { method: 'POST' })).status).toBe(400);
  expect((await fetch(`${replicator.url}/v1/stream`, { method: 'DELETE' })).status).toBe(404);
});

test('a replica answers health, status, metrics and waits', async () => {
  using dir = temporaryDirectory();
  await using replicator = await TestReplicator.start({ dir: dir.path });
  await using replica = await openReplica({ file: join(dir.path, 'app.db'), replicator: replicator.url });
  await using server = await serveReplica({
    replica,
    listen: { host: '127.0.0.1', port: 0 },
    token: undefined,
    log: silentLog(),
  });
  await waitUntil('live', () => replica.state === 'live');
  const json = async (path: string) => {
    const response = await fetch(`${server.url}/${path}`);
    return { status: response.status, body: (await response.json()) as Record<string, unknown> };
  };
  expect(await json('healthz')).toMatchObject({
    status: 200,
    body: { healthy: true, state: 'live', reasons: [] },
  });
  expect(await json('status')).toMatchObject({
    status: 200,
    body: { epoch: 'e1', position: formatLsn(START), bootstraps: 0 },
  });
  const waiting = json('wait?lsn=0/1100');
  await waitUntil('the waiter', () => replicator.hastened > 0);
  const lsn = replicator.commit(insertItem(1));
  expect(await waiting).toEqual({
    status: 200,
    body: { reached: true, epoch: 'e1', position: formatLsn(lsn), seen: formatLsn(lsn) },
  });
  expect(await json('wait?lsn=0/9999&timeout=20')).toMatchObject({
    status: 504,
    body: { code: 'WAIT_TIMEOUT' },
  });
  const token = encodeToken({ epoch: 'e1', lsn });
  expect(await json(`wait?token=${token}`)).toMatchObject({ status: 200, body: { reached: true } });
  expect(await json('wait?token=1.ee.1')).toMatchObject({ status: 409, body: { code: 'EPOCH_MISMATCH' } });
  expect(await json('wait?token=x')).toMatchObject({ status: 400, body: { code: 'TOKEN_MALFORMED' } });
  expect(await json('wait?token=1.e1.ffffffffffffffff')).toMatchObject({
    status: 400,
    body: { code: 'TOKEN_IMPOSSIBLE' },
  });
  // A client that goes away waits no longer.
  const gone = new AbortController();
  const dropped = fetch(`${server.url}/wait?lsn=0/9999`, { signal: gone.signal }).catch(() => 'gone');
  await waitUntil('it to wait', () => replica.waiting === 1);
  gone.abort();
  expect(await dropped).toBe('gone');
  await waitUntil('nobody to wait', () => replica.waiting === 0);
  expect(await json('wait?lsn=nonsense')).toMatchObject({ status: 400, body: { code: 'CONFIG' } });
  expect(await json('wait?lsn=0/1&timeout=-1')).toMatchObject({ status: 400, body: { code: 'CONFIG' } });
  expect(await (await fetch(`${server.url}/metrics`)).text()).toContain('rivulet_replica_connected 1');
  rmSync(replica.file);
  expect(await json('healthz')).toMatchObject({
    status: 503,
    body: { healthy: false, reasons: [expect.stringContaining('was moved or removed')] },
  });
  expect((await json('status')).status).toBe(200);
  expect(await (await fetch(`${server.url}/metrics`)).text()).toContain('rivulet_replica_healthy 0');
});
