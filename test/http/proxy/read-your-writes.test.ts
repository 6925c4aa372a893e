import { request } from 'node:http';
import { join } from 'node:path';
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import type { HttpServer } from '../../../src/http/listen.ts';
import { FileReplica } from '../../../src/http/proxy/file-replica.ts';
import { HttpReplica } from '../../../src/http/proxy/http-replica.ts';
import type { ProxyOptions } from '../../../src/http/proxy/rivulet-proxy.ts';
import { TokenSource } from '../../../src/http/proxy/token-source.ts';
import { TokenTransport } from '../../../src/http/proxy/token-transport.ts';
import { serveReplica } from '../../../src/http/server.ts';
import { silentLog } from '../../../src/log.ts';
import type { Lsn } from '../../../src/lsn.ts';
import { openReplica, type Replica } from '../../../src/replica/replica.ts';
import { decodeToken, encodeToken, type TokenKeys } from '../../../src/token.ts';
import { insertItem, START, TestReplicator, temporaryDirectory } from '../../fanout/test-replicator.ts';
import { TcpProxy } from '../../helpers/tcp-proxy.ts';
import { waitUntil } from '../../helpers/wait-until.ts';
import { type Answer, FakeFile, send, startProxy, TestApp } from './test-proxy.ts';

const KEYS: TokenKeys = { current: { id: 'k1', secret: 'a secret of some length' } };

/** Where nobody is. */
const FAR = 0xffffn;

const cookieOf = ({ headers }: Answer): string | undefined => headers['set-cookie']?.at(-1)?.split(';')[0];
const token = (lsn: Lsn, epoch = 'e1'): string => encodeToken({ epoch, lsn });

/** Everything but Postgres: a replica that is served, an app that counts, a proxy between. */
class Node implements AsyncDisposable {
  readonly replicator: TestReplicator;
  readonly replica: Replica;
  readonly server: HttpServer;
  readonly app: TestApp;
  /** What the app was asked for, in order. */
  readonly asked: string[];
  /** Where Postgres says that it is; null while it cannot be asked. */
  postgres: Lsn | null = START;
  queries = 0;

  private constructor(parts: Pick<Node, 'replicator' | 'replica' | 'server' | 'app'>, asked: string[]) {
    this.replicator = parts.replicator;
    this.replica = parts.replica;
    this.server = parts.server;
    this.app = parts.app;
    this.asked = asked;
  }

  static async start(dir: string): Promise<Node> {
    const replicator = await TestReplicator.start({ dir });
    const replica = await openReplica({ file: join(dir, 'app.db'), replicator: replicator.url });
    await waitUntil('live', () => replica.state === 'live');
    const server = await serveReplica({
      replica,
      listen: { host: '127.0.0.1', port: 0 },
      token: undefined,
      log: silentLog(),
    });
    const asked: string[] = [];
    const app = await TestApp.start((request, response) => {
      asked.push(`${request.method} ${request.url}`);
      const stale = request.headers['rivulet-read'];
      if (request.url === '/own-token') response.setHeader('Rivulet-Token', token(0x7777n));
      if (request.url === '/public') response.setHeader('Cache-Control', 'public, max-age=60');
      response.end(stale === undefined ? 'ok' : `stale: ${stale}`);
    });
    return new Node({ replicator, replica, server, app }, asked);
  }

  source(): TokenSource {
    return new TokenSource(async () => {
      this.queries++;
      if (this.postgres === null) throw new Error('connection refused');
      return token(this.postgres, this.replica.epoch);
    });
  }

  proxy(options: Partial<ProxyOptions> = {}): ReturnType<typeof startProxy> {
    return startProxy({
      target: this.app.url,
      replica: new HttpReplica({ url: this.server.url }),
      source: this.source(),
      ...options,
    });
  }

  /** Everybody is where the last commit left it; nothing has been counted. */
  async rest(): Promise<void> {
    await this.replica.waitFor(this.position);
    this.postgres = this.position;
    this.asked.length = 0;
    this.queries = 0;
    this.replicator.hastened = 0;
  }

  get position(): Lsn {
    return this.replicator.log.position;
  }

  /** Where the next commit will end. */
  get next(): Lsn {
    return this.position + 0x100n;
  }

  /** Commits something; Postgres is at its end. */
  commit(): Lsn {
    this.postgres = this.replicator.commit(insertItem(Math.floor(Math.random() * 2 ** 31)));
    return this.postgres;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.app[Symbol.asyncDispose]();
    await this.server.close();
    await this.replica.close();
    await this.replicator[Symbol.asyncDispose]();
  }
}

/** For all tests that leave it as it was. */
let dir: ReturnType<typeof temporaryDirectory>;
let node: Node;
beforeAll(async () => {
  dir = temporaryDirectory();
  node = await Node.start(dir.path);
});
beforeEach(() => node.rest());
afterAll(async () => {
  await node?.[Symbol.asyncDispose]();
  dir?.[Symbol.dispose]();
});

test('a write gets a token, and the next read waits until the replica has it', async () => {
  await using proxy = await node.proxy();
  // Written, and on its way to the replica.
  node.postgres = node.next;
  const write = await send(`${proxy.url}/notes`, { method: 'POST' });
  expect(write.headers['rivulet-token']).toBe(token(node.postgres));
  expect(write.headers['set-cookie']).toEqual([
    `rivulet_token=${token(node.postgres)}; Path=/; Max-Age=86400; HttpOnly; SameSite=Lax`,
  ]);
  const reading = send(`${proxy.url}/notes`, { headers: { cookie: `a=b; ${cookieOf(write)}; c=d` } });
  await waitUntil('the waiter', () => node.replicator.hastened > 0);
  expect(node.asked).toEqual(['POST /notes']);
  node.commit();
  expect(await reading).toMatchObject({ status: 200, body: 'ok' });
  expect(node.asked).toEqual(['POST /notes', 'GET /notes']);
  // Behind TLS the cookie is for TLS only.
  const secure = await send(proxy.url, { method: 'PUT', headers: { 'x-forwarded-proto': 'https' } });
  expect(secure.headers['set-cookie']![0]).toMatch(/; Secure$/);
});

test('a program may carry the token in a header; the later of header and cookie counts', async () => {
  await using proxy = await node.proxy({ timeoutMs: 50 });
  const status = async (headers: Record<string, string>): Promise<number> =>
    (await send(proxy.url, { headers })).status;
  expect(await status({ 'rivulet-token': token(node.position) })).toBe(200);
  expect(await status({ 'rivulet-token': token(FAR) })).toBe(503);
  expect(await status({ 'rivulet-token': token(node.position), cookie: `rivulet_token=${token(FAR)}` })).toBe(
    503,
  );
  expect(await status({ 'rivulet-token': token(FAR), cookie: `rivulet_token=${token(node.position)}` })).toBe(
    503,
  );
  // What does not read is not held.
  const answer = await send(proxy.url, {
    method: 'OPTIONS',
    headers: { 'rivulet-token': token(FAR) },
  });
  expect(answer.status).toBe(200);
});

test('not reached in time: 503 and when to come again, or on to the app, and both are told', async () => {
  const headers = { 'rivulet-token': token(FAR) };
  {
    await using proxy = await node.proxy({ timeoutMs: 30 });
    const answer = await send(proxy.url, { headers });
    expect(answer.status).toBe(503);
    expect(answer.headers).toMatchObject({ 'retry-after': '1', 'content-type': /json/ });
    expect(JSON.parse(answer.body)).toMatchObject({
      code: 'WAIT_TIMEOUT',
      message: /after 30 ms .* 0\/FFFF/,
    });
    expect(node.asked).toEqual([]);
    expect(await send(proxy.url, { headers, method: 'HEAD' })).toMatchObject({ status: 503, body: '' });
  }
  await using proxy = await node.proxy({ timeoutMs: 30, onTimeout: 'stale' });
  const answer = await send(proxy.url, { headers });
  expect(answer).toMatchObject({ status: 200, body: 'stale: stale' });
  expect(answer.headers['rivulet-read']).toBe('stale');
  // The client keeps the later token that it has.
  expect(answer.headers['rivulet-token']).toBeUndefined();
  // Nobody but the proxy says so.
  expect(await send(proxy.url, { headers: { 'rivulet-read': 'x' } })).toMatchObject({ body: 'ok' });
});

test('no token: a program hears of it, a browser is treated as if it had none', async () => {
  await using proxy = await node.proxy({ tokens: new TokenTransport({ keys: KEYS }), timeoutMs: 10_000 });
  const forged = token(FAR);
  for (const [value, code] of [
    ['nonsense', 'TOKEN_MALFORMED'],
    ['2.e1.10', 'TOKEN_MALFORMED'],
    [forged, 'TOKEN_FORGED'],
  ]) {
    const answer = await send(proxy.url, { headers: { 'rivulet-token': value! } });
    expect(answer.status).toBe(400);
    expect(JSON.parse(answer.body)).toMatchObject({ code });
    expect((await send(proxy.url, { headers: { cookie: `rivulet_token=${value}` } })).status).toBe(200);
  }
  node.commit();
  const write = await send(proxy.url, { method: 'POST' });
  const signed = String(write.headers['rivulet-token']);
  expect(decodeToken(signed, KEYS)).toEqual({ epoch: 'e1', lsn: node.postgres });
  expect((await send(proxy.url, { headers: { 'rivulet-token': signed } })).status).toBe(200);
});

test("the app's own token is taken, on any method, without a query", async () => {
  await using proxy = await node.proxy({ tokens: new TokenTransport({ keys: KEYS, cookie: 'other_name' }) });
  for (const method of ['GET', 'POST', 'OPTIONS']) {
    const answer = await send(`${proxy.url}/own-token`, { method });
    const text = String(answer.headers['rivulet-token']);
    expect(decodeToken(text, KEYS)).toEqual({ epoch: 'e1', lsn: 0x7777n });
    expect(cookieOf(answer)).toBe(`other_name=${text}`);
  }
  // One that is older than the client's own does not take its place.
  const later = encodeToken({ epoch: 'e1', lsn: 0x8888n }, KEYS);
  const answer = await send(`${proxy.url}/own-token`, {
    method: 'POST',
    headers: { 'rivulet-token': later },
  });
  expect(answer.headers['rivulet-token']).toBe(later);
  expect(node.queries).toBe(0);
});

test('a reader carries the highest position that it was shown', async () => {
  await using proxy = await node.proxy();
  const first = await send(proxy.url);
  expect(first.headers['rivulet-token']).toBe(token(node.position));
  const headers = { cookie: cookieOf(first)! };
  // Nothing new was shown, so nothing is said.
  expect((await send(proxy.url, { headers })).headers['set-cookie']).toBeUndefined();
  const lsn = node.commit();
  await node.replica.waitFor(lsn);
  expect(cookieOf(await send(proxy.url, { headers }))).toBe(`rivulet_token=${token(lsn)}`);
  expect((await send(`${proxy.url}/public`, { headers })).headers['set-cookie']).toBeUndefined();
  expect((await send(proxy.url, { method: 'OPTIONS' })).headers['set-cookie']).toBeUndefined();
});

test('paths that are left alone are neither held nor looked at', async () => {
  await using proxy = await node.proxy({ ignorePaths: ['/assets/*', '*.css', '/a.b'], timeoutMs: 30 });
  const headers = { 'rivulet-token': token(FAR) };
  for (const path of ['/assets/x/y', '/assets/', '/deep/style.css?v=1', '/a.b', '/a.b?x']) {
    const answer = await send(`${proxy.url}${path}`, { headers });
    expect([path, answer.status, answer.headers['set-cookie']]).toEqual([path, 200, undefined]);
  }
  for (const path of ['/assets', '/style.css/x', '/aXb', '/'])
    expect([path, (await send(`${proxy.url}${path}`, { headers })).status]).toEqual([path, 503]);
  expect((await send(`${proxy.url}/assets/x`, { method: 'POST' })).headers['rivulet-token']).toBeUndefined();
});

test('which methods write and which read can be said; one may do both', async () => {
  await using proxy = await node.proxy({
    writeMethods: ['POST'],
    readMethods: ['GET', 'POST'],
    timeoutMs: 30,
  });
  expect((await send(proxy.url, { method: 'POST' })).headers['rivulet-token']).toBe(token(node.position));
  const headers = { 'rivulet-token': token(FAR) };
  expect((await send(proxy.url, { method: 'POST', headers })).status).toBe(503);
  expect((await send(proxy.url, { method: 'PUT', headers })).status).toBe(200);
});

test('a token of a history that has ended is one of the new history as soon as Postgres can be asked', async () => {
  using dir = temporaryDirectory();
  await using node = await Node.start(dir.path);
  node.commit();
  const headers = { cookie: `rivulet_token=${token(0x5000n, 'e0')}` };
  {
    await using proxy = await node.proxy({ timeoutMs: 5_000 });
    const answer = await send(proxy.url, { headers });
    expect(answer.status).toBe(200);
    expect(answer.headers['rivulet-token']).toBe(token(node.postgres!));
  }
  // Without Postgres nobody can tell: it is said once, and the token is taken away.
  await using proxy = await node.proxy({ source: null, timeoutMs: 5_000 });
  const answer = await send(proxy.url, { headers });
  expect(answer.status).toBe(503);
  expect(JSON.parse(answer.body)).toMatchObject({ code: 'EPOCH_MISMATCH', hint: /--postgres/ });
  expect(answer.headers['set-cookie']).toEqual(['rivulet_token=; Path=/; Max-Age=0']);
});

test('a replica that is made anew is waited for, over its new history', async () => {
  using dir = temporaryDirectory();
  await using node = await Node.start(dir.path);
  const source = node.source();
  // Postgres is in the new history already.
  await using proxy = await node.proxy({
    source: Object.assign(source, {
      take: async () => {
        node.queries++;
        return { epoch: 'e2', lsn: START };
      },
    }),
    timeoutMs: 15_000,
  });
  const reading = send(proxy.url, { headers: { 'rivulet-token': token(START, 'e2') } });
  await waitUntil('a question to Postgres', () => node.queries > 0);
  expect(node.asked).toEqual([]);
  await node.replicator.newEpoch('e2');
  expect((await reading).status).toBe(200);
  expect(node.replica.epoch).toBe('e2');
});

test('a write whose token cannot be taken is not lost: the next read asks again', async () => {
  await using proxy = await node.proxy({ timeoutMs: 2_000 });
  node.postgres = null;
  const write = await send(proxy.url, { method: 'POST' });
  expect(write.status).toBe(200);
  expect(cookieOf(write)).toBe('rivulet_token=unknown');
  const headers = { cookie: cookieOf(write)! };
  const refused = await send(proxy.url, { headers });
  expect(refused.status).toBe(503);
  expect(JSON.parse(refused.body)).toMatchObject({ code: 'TOKEN_UNAVAILABLE' });
  expect(refused.headers['set-cookie']).toBeUndefined();
  node.postgres = node.next;
  const reading = send(proxy.url, { headers });
  await waitUntil('the waiter', () => node.replicator.hastened > 0);
  node.commit();
  const answer = await reading;
  expect(answer.status).toBe(200);
  expect(answer.headers['rivulet-token']).toBeDefined();
});

test('without Postgres and without the app there is no token', async () => {
  await using proxy = await node.proxy({ source: null });
  expect((await send(proxy.url, { method: 'POST' })).headers['set-cookie']).toBeUndefined();
});

test('what is unknown where there is no Postgres to ask keeps nobody out for ever', async () => {
  const headers = { cookie: 'rivulet_token=unknown' };
  {
    await using proxy = await node.proxy({ source: null });
    const answer = await send(proxy.url, { headers });
    expect(answer.status).toBe(503);
    expect(JSON.parse(answer.body)).toMatchObject({ code: 'TOKEN_UNAVAILABLE', hint: /--postgres/ });
    expect(answer.headers['set-cookie']).toEqual(['rivulet_token=; Path=/; Max-Age=0']);
  }
  await using proxy = await node.proxy({ source: null, onTimeout: 'stale' });
  const answer = await send(proxy.url, { headers });
  expect(answer).toMatchObject({ status: 200, body: 'stale: stale' });
  expect(cookieOf(answer)).toBe(`rivulet_token=${token(node.position)}`);
});

test('writes that come together share queries, each of which begins after its write has been answered', async () => {
  const answered: Promise<unknown>[] = [];
  let begun = 0;
  let ended = 0;
  const source = new TokenSource(async () => {
    begun++;
    // Whoever shares this one was answered by the app before it began.
    const lsn = BigInt(node.asked.length) + node.position;
    await new Promise((resolve) => setTimeout(resolve, 20));
    ended++;
    return token(lsn);
  });
  await using proxy = await node.proxy({ source });
  for (let index = 0; index < 50; index++) answered.push(send(proxy.url, { method: 'POST' }));
  const answers = (await Promise.all(answered)) as Answer[];
  expect(begun).toBe(ended);
  expect(begun).toBeLessThan(20);
  expect(
    answers.every(({ headers }) => decodeToken(String(headers['rivulet-token'])).lsn > node.position),
  ).toBe(true);
});

test('a client that goes away while it waits is forgotten, and the app never hears of it', async () => {
  const replica = new HttpReplica({ url: node.server.url });
  await using proxy = await node.proxy({ replica, timeoutMs: 60_000 });
  const outgoing = request(proxy.url, { agent: false, headers: { 'rivulet-token': token(FAR) } });
  outgoing.on('error', () => undefined).end();
  await waitUntil('the waiter', () => replica.waiting === 1);
  outgoing.destroy();
  await waitUntil('no waiter', () => replica.waiting === 0);
  expect(node.asked).toEqual([]);
});

test('however many wait, the replica is asked over a few connections; each goes on when its own position is there', async () => {
  await using wire = await TcpProxy.start({ port: Number(new URL(node.server.url).port) });
  const replica = new HttpReplica({ url: wire.through(node.server.url) });
  await using proxy = await node.proxy({ replica, timeoutMs: 60_000 });
  let done = 0;
  const before = node.position;
  const all = Array.from({ length: 600 }, (_, index) => {
    // Later ones first: the lowest is known last.
    const lsn = before + 0x100n * BigInt(3 - Math.floor(index / 200));
    return send(proxy.url, { headers: { 'rivulet-token': token(lsn) } }).then(({ status }) => {
      done++;
      return status;
    });
  });
  await waitUntil('all waiters', () => replica.waiting === 600);
  for (const count of [200, 400, 600]) {
    node.commit();
    await waitUntil(`${count} answers`, () => done === count);
  }
  expect(new Set(await Promise.all(all))).toEqual(new Set([200]));
  expect(wire.opened).toBeLessThan(20);
});

test('a replica process that is away while somebody waits is asked again', async () => {
  await using wire = await TcpProxy.start({ port: Number(new URL(node.server.url).port) });
  const replica = new HttpReplica({ url: wire.through(node.server.url) });
  await using proxy = await node.proxy({ replica, timeoutMs: 15_000 });
  wire.refuse(true);
  const reading = send(proxy.url, { headers: { 'rivulet-token': token(node.next) } });
  await waitUntil('the failure', () => replica.failure !== null);
  node.commit();
  wire.refuse(false);
  expect((await reading).status).toBe(200);
  wire.refuse(true);
  wire.cutAll();
  // Reads without a token go on; what they were shown cannot be said.
  const answer = await send(proxy.url);
  expect(answer).toMatchObject({ status: 200 });
  expect(answer.headers['set-cookie']).toBeUndefined();
});

test('a file in place of the process: reached at once where it is, waited for where it is not', async () => {
  await using app = await TestApp.start();
  const file = new FakeFile();
  await using proxy = await startProxy({
    target: app.url,
    replica: new FileReplica(file),
    timeoutMs: 5_000,
  });
  const headers = { 'rivulet-token': token(0x1001n) };
  const reading = send(proxy.url, { headers });
  expect((await send(proxy.url, { headers: { 'rivulet-token': token(0x1000n) } })).status).toBe(200);
  file.move('e1', 0x1001n);
  expect((await reading).status).toBe(200);
  file.move('e2', 0x1001n);
  expect((await send(proxy.url, { headers: { 'rivulet-token': token(0x1002n) } })).status).toBe(503);
});

test('health: the replica, its lag, the app, and the end', async () => {
  using dir = temporaryDirectory();
  await using node = await Node.start(dir.path);
  const health = async (url: string): Promise<[number, { reasons: string[]; lagMs: number | null }]> => {
    const answer = await send(`${url}/rivulet/healthz`);
    return [answer.status, JSON.parse(answer.body)];
  };
  await using proxy = await node.proxy({ maxLagMs: 5_000 });
  expect(await health(proxy.url)).toMatchObject([
    200,
    { healthy: true, reasons: [], lagMs: expect.any(Number), waiting: 0 },
  ]);
  expect(node.asked).toEqual([]);
  const behind = Object.assign(new HttpReplica({ url: node.server.url }), {
    health: async () => ({ reasons: [], lagMs: 5_001 }),
  });
  await using late = await node.proxy({ replica: behind, maxLagMs: 5_000 });
  expect(await health(late.url)).toMatchObject([
    503,
    { reasons: ['the replica is 5001 ms behind, and 5000 ms are allowed'] },
  ]);
  await node.app[Symbol.asyncDispose]();
  expect(await health(proxy.url)).toMatchObject([503, { reasons: ['the app cannot be reached'] }]);
  await node.server.close();
  expect(await health(proxy.url)).toMatchObject([
    503,
    { reasons: ['the process of the replica does not answer', 'the app cannot be reached'] },
  ]);
});

test('metrics are for whoever has the bearer token, or for this machine where there is none', async () => {
  await using open = await node.proxy();
  await send(open.url, { method: 'POST' });
  const text = (await send(`${open.url}/rivulet/metrics`)).body;
  expect(text).toMatch(/rivulet_proxy_requests_total{kind="looked at"} 1/);
  expect(text).toMatch(/rivulet_proxy_tokens_total 1/);
  const headers = { 'x-forwarded-for': '203.0.113.9' };
  expect((await send(`${open.url}/rivulet/metrics`, { headers })).status).toBe(401);
  const foreign = { host: 'evil.example' };
  expect((await send(`${open.url}/rivulet/metrics`, { headers: foreign })).status).toBe(403);
  // The proxy is asked for the app under any name.
  for (const path of ['/', '/rivulet/healthz'])
    expect((await send(`${open.url}${path}`, { headers: { ...foreign, origin: 'http://x' } })).status).toBe(
      200,
    );
  await using closed = await node.proxy({ metricsToken: 'a-secret-token' });
  expect((await send(`${closed.url}/rivulet/metrics`)).status).toBe(401);
  const authorization = 'Bearer a-secret-token';
  expect((await send(`${closed.url}/rivulet/metrics`, { headers: { authorization } })).status).toBe(200);
});
