import { once } from 'node:events';
import { createServer, request as httpRequest, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { serve } from '@hono/node-server';
import express from 'express';
import fastify from 'fastify';
import { Hono } from 'hono';
import pg from 'pg';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { readYourWrites, withReadYourWrites } from '../../src/read/middleware/express.ts';
import { readYourWritesFastify } from '../../src/read/middleware/fastify.ts';
import { readYourWritesFetch, readYourWritesHono } from '../../src/read/middleware/fetch.ts';
import type { MiddlewareOptions } from '../../src/read/middleware/token-headers.ts';
import type { ReadYourWrites } from '../../src/read/read-your-writes.ts';
import { filePosition } from '../../src/replica/file-position.ts';
import { decodeToken, encodeToken } from '../../src/token.ts';
import { waitUntil } from '../helpers/wait-until.ts';
import { type Mirror, startMirror } from './mirror.ts';

const tokenKeys = { current: { id: 'k1', secret: 'a secret of the test' } };
/** Where nobody comes while the database is quiet. */
const AHEAD = 1n << 30n;

let mirror: Mirror;
let pool: pg.Pool;
let nextId = 1;

beforeAll(async () => {
  mirror = await startMirror('create table notes (id int primary key, text text)', {
    settings: { synchronous_commit: 'off', wal_writer_delay: '200ms' },
  });
});
afterAll(() => mirror?.[Symbol.asyncDispose]());
beforeEach(() => {
  pool = new pg.Pool({ connectionString: mirror.postgres.url, max: 4 });
});
afterEach(() => pool.end());

const insert = (id: number): Promise<unknown> =>
  pool.query('insert into notes values ($1, $2)', [id, `note ${id}`]);
const readFile = (id: number): unknown =>
  mirror.replica.db.prepare('select text from notes where id = ?').pluck().get(id);
const readBoth = (reads: ReadYourWrites, id: number): Promise<{ value: unknown; from: string }> =>
  reads.read({
    replica: (db) => db.prepare('select text from notes where id = ?').pluck().get(id),
    postgres: async () => (await pool.query('select text from notes where id = $1', [id])).rows[0]?.text,
  });

interface App extends AsyncDisposable {
  readonly url: string;
  readonly reads: ReadYourWrites;
}

/** POST /notes/ID writes, GET /notes/ID reads, GET /both/ID reads as the policy says. */
type Start = (options: Partial<MiddlewareOptions>) => Promise<App>;

async function listening(server: Server, reads: ReadYourWrites): Promise<App> {
  if (!server.listening) await once(server.listen(0, '127.0.0.1'), 'listening');
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    reads,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      server.close();
      await once(server, 'close');
    },
  };
}

const all = (options: Partial<MiddlewareOptions>): MiddlewareOptions => ({
  replica: mirror.replica,
  pool,
  ...options,
});

const APPS: Record<string, Start> = {
  async express(options) {
    const app = express();
    const middleware = readYourWrites(all(options));
    app.use(middleware);
    app.post('/notes/:id', async (request, response) => {
      await insert(Number(request.params.id));
      response.cookie('mine', '1').status(201).json({ made: true });
    });
    app.get('/notes/:id', (request, response) => {
      response.json({ text: readFile(Number(request.params.id)) ?? null });
    });
    app.get('/both/:id', async (request, response) => {
      const { value, from } = await readBoth(middleware.reads, Number(request.params.id));
      response.json({ text: value ?? null, from });
    });
    return listening(createServer(app), middleware.reads);
  },

  async http(options) {
    const middleware = readYourWrites(all(options));
    const handler = withReadYourWrites(middleware, async (request, response) => {
      const [, route, id] = request.url!.split('/');
      if (request.method === 'POST') {
        await insert(Number(id));
        response.writeHead(201, { 'Set-Cookie': 'mine=1', 'content-type': 'application/json' });
        response.write('{"made":');
        response.end('true}');
        return;
      }
      if (route === 'both') {
        const { value, from } = await readBoth(middleware.reads, Number(id));
        response.end(JSON.stringify({ text: value ?? null, from }));
      } else response.end(JSON.stringify({ text: readFile(Number(id)) ?? null }));
    });
    return listening(createServer(handler), middleware.reads);
  },

  async fastify(options) {
    const app = fastify();
    const plugin = readYourWritesFastify(all(options));
    await app.register(plugin);
    app.post<{ Params: { id: string } }>('/notes/:id', async (request, reply) => {
      await insert(Number(request.params.id));
      return reply.status(201).header('set-cookie', 'mine=1').send({ made: true });
    });
    app.get<{ Params: { id: string } }>('/notes/:id', async (request) => ({
      text: readFile(Number(request.params.id)) ?? null,
    }));
    app.get<{ Params: { id: string } }>('/both/:id', async (request) => {
      const { value, from } = await readBoth(plugin.reads, Number(request.params.id));
      return { text: value ?? null, from };
    });
    const url = await app.listen({ port: 0, host: '127.0.0.1' });
    return { url, reads: plugin.reads, [Symbol.asyncDispose]: () => app.close() };
  },

  async hono(options) {
    const app = new Hono();
    const middleware = readYourWritesHono(all(options));
    app.onError((error, c) => {
      const { code, statusCode } = error as { code?: string; statusCode?: 500 };
      return c.json({ code }, statusCode ?? 500);
    });
    app.use(middleware);
    app.post('/notes/:id', async (c) => {
      await insert(Number(c.req.param('id')));
      c.header('set-cookie', 'mine=1');
      return c.json({ made: true }, 201);
    });
    app.get('/notes/:id', (c) => c.json({ text: readFile(Number(c.req.param('id'))) ?? null }));
    app.get('/both/:id', async (c) => {
      const { value, from } = await readBoth(middleware.reads, Number(c.req.param('id')));
      return c.json({ text: value ?? null, from });
    });
    const server = serve({ fetch: app.fetch, port: 0, hostname: '127.0.0.1' }) as Server;
    await once(server, 'listening');
    return listening(server, middleware.reads);
  },

  async fetch(options) {
    const { reads, handler } = readYourWritesFetch(all(options));
    const handle = handler(async (request) => {
      const [, route, id] = new URL(request.url).pathname.split('/');
      if (request.method === 'POST') {
        await insert(Number(id));
        return Response.json({ made: true }, { status: 201, headers: { 'set-cookie': 'mine=1' } });
      }
      if (route !== 'both') return Response.json({ text: readFile(Number(id)) ?? null });
      const { value, from } = await readBoth(reads, Number(id));
      return Response.json({ text: value ?? null, from });
    });
    const server = serve({ fetch: handle, port: 0, hostname: '127.0.0.1' }) as Server;
    await once(server, 'listening');
    return listening(server, reads);
  },
};

/** As a browser: keeps cookies. */
class Browser {
  readonly #jar = new Map<string, string>();

  get cookies(): ReadonlyMap<string, string> {
    return this.#jar;
  }

  set(name: string, value: string): void {
    this.#jar.set(name, value);
  }

  async fetch(
    url: string,
    init: RequestInit = {},
  ): Promise<{ response: Response; body: Record<string, unknown> }> {
    const cookie = [...this.#jar].map(([name, value]) => `${name}=${value}`).join('; ');
    const response = await fetch(url, { ...init, headers: { ...init.headers, cookie } });
    for (const line of response.headers.getSetCookie()) {
      const [, name, value] = /^([^=]+)=([^;]*)/.exec(line)!;
      this.#jar.set(name!, value!);
    }
    const text = await response.text();
    return { response, body: text.startsWith('{') ? JSON.parse(text) : { text } };
  }
}

describe.each(Object.keys(APPS))('%s', (name) => {
  const start = APPS[name]!;

  test('what a client wrote, it reads; other headers stay as they are', async () => {
    await using app = await start({ tokenKeys });
    const browser = new Browser();
    for (let round = 0; round < 20; round++) {
      const id = nextId++;
      const { response, body } = await browser.fetch(`${app.url}/notes/${id}`, { method: 'POST' });
      expect([response.status, body]).toEqual([201, { made: true }]);
      expect([...browser.cookies.keys()].sort()).toEqual(['mine', 'rivulet_token']);
      const token = response.headers.get('rivulet-token');
      expect(token).toBe(browser.cookies.get('rivulet_token'));
      expect(decodeToken(token!, tokenKeys).epoch).toBe(mirror.replica.epoch);
      const read = await browser.fetch(`${app.url}/notes/${id}`);
      expect(read.body).toEqual({ text: `note ${id}` });
      expect(read.response.headers.get('rivulet-read')).toBe(null);
    }
  });

  test('a late read fails, or is answered from the file or from Postgres, and says so', async () => {
    const id = nextId++;
    await insert(id);
    await mirror.replica.waitFor((await pool.query('select rivulet_token() as t')).rows[0].t);
    const late = encodeToken({ epoch: mirror.replica.epoch, lsn: mirror.replica.position + AHEAD });
    const headers = { 'rivulet-token': late };
    await using app = await start({ waitMs: 20 });
    const failed = await new Browser().fetch(`${app.url}/notes/${id}`, { headers });
    expect(failed.response.status).toBe(504);
    await using stale = await start({ waitMs: 20, onLate: 'stale' });
    const old = await new Browser().fetch(`${stale.url}/both/${id}`, { headers });
    expect(old.body).toEqual({ text: `note ${id}`, from: 'stale' });
    expect(old.response.headers.get('rivulet-read')).toBe('stale');
    // What it could not show, it does not make the client forget.
    expect(old.response.headers.get('rivulet-token')).toBe(late);
    await using other = await start({ waitMs: 20, onLate: 'fallback' });
    const elsewhere = await new Browser().fetch(`${other.url}/both/${id}`, { headers });
    expect(elsewhere.body).toEqual({ text: `note ${id}`, from: 'postgres' });
    expect(elsewhere.response.headers.get('rivulet-read')).toBe('postgres');
  });

  test('a bad token in a header is an error, in a cookie it is what is not known', async () => {
    await using app = await start({ tokenKeys });
    const forged = encodeToken({ epoch: mirror.replica.epoch, lsn: 1n });
    for (const token of ['nonsense', forged]) {
      const { response } = await new Browser().fetch(`${app.url}/notes/1`, {
        headers: { 'rivulet-token': token },
      });
      expect(response.status).toBe(400);
      const browser = new Browser();
      browser.set('rivulet_token', token);
      expect((await browser.fetch(`${app.url}/notes/1`)).response.status).toBe(200);
      expect(decodeToken(browser.cookies.get('rivulet_token')!, tokenKeys).lsn).toBeGreaterThan(1n);
    }
  });

  test('paths that are left alone', async () => {
    await using app = await start({ skip: (path) => path.startsWith('/notes/0') });
    const { response } = await new Browser().fetch(`${app.url}/notes/0?x=1`, {
      headers: { 'rivulet-token': 'nonsense' },
    });
    expect(response.status).toBe(200);
    expect(response.headers.get('rivulet-token')).toBe(null);
  });
});

describe('a client', () => {
  test('that has seen a state carries it to the next node, unless that is not wanted', async () => {
    await using app = await APPS.express!({});
    const browser = new Browser();
    await insert(nextId++);
    await mirror.replica.waitFor(await app.reads.take());
    const before = filePosition(mirror.replica.db);
    await browser.fetch(`${app.url}/notes/1`);
    const shown = decodeToken(browser.cookies.get('rivulet_token')!);
    // Also a quiet server moves a little by itself.
    expect(shown.epoch).toBe(before.epoch);
    expect(shown.lsn).toBeGreaterThanOrEqual(before.lsn);
    expect(shown.lsn).toBeLessThanOrEqual(filePosition(mirror.replica.db).lsn);
    // Nothing new: no cookie.
    const again = await browser.fetch(`${app.url}/notes/1`);
    const isSame = decodeToken(again.response.headers.get('rivulet-token')!).lsn === shown.lsn;
    expect(again.response.headers.getSetCookie()).toHaveLength(isSame ? 0 : 1);
    await using forgetful = await APPS.express!({ monotonicReads: false });
    const other = new Browser();
    await other.fetch(`${forgetful.url}/notes/1`);
    expect(other.cookies.size).toBe(0);
  });

  test('that read from Postgres does not go back to an older file', async () => {
    await using app = await APPS.express!({ waitMs: 10, onLate: 'fallback', maxLagMs: 0 });
    const browser = new Browser();
    const id = nextId++;
    await insert(id);
    const { body } = await browser.fetch(`${app.url}/both/${id}`);
    expect(body).toEqual({ text: `note ${id}`, from: 'postgres' });
    const token = decodeToken(browser.cookies.get('rivulet_token')!);
    await mirror.replica.waitFor(token, { timeoutMs: 5_000 });
    expect(readFile(id)).toBe(`note ${id}`);
  });

  test('whose token is of a history that has ended gets a new one, and waits for that', async () => {
    await using app = await APPS.express!({});
    const browser = new Browser();
    const id = nextId++;
    await insert(id);
    for (const old of [encodeToken({ epoch: 'dead', lsn: 1n }), 'unknown']) {
      browser.set('rivulet_token', old);
      expect((await browser.fetch(`${app.url}/notes/${id}`)).body).toEqual({ text: `note ${id}` });
      expect(decodeToken(browser.cookies.get('rivulet_token')!).epoch).toBe(mirror.replica.epoch);
    }
  });

  test('that sends back `unknown` as a header, as it was given, reads what it wrote', async () => {
    await using app = await APPS.express!({ cookie: false });
    const id = nextId++;
    await insert(id);
    const response = await fetch(`${app.url}/notes/${id}`, { headers: { 'rivulet-token': 'unknown' } });
    expect(await response.json()).toEqual({ text: `note ${id}` });
    expect(decodeToken(response.headers.get('rivulet-token')!).epoch).toBe(mirror.replica.epoch);
  });

  test('whose write has no token reads nothing older all the same', async () => {
    await using app = await APPS.express!({
      onError: () => {
        throw new Error('of the app');
      },
    });
    const browser = new Browser();
    const id = nextId++;
    await mirror.postgres.sql('update rivulet.epoch set timeline = 99');
    try {
      const { response } = await browser.fetch(`${app.url}/notes/${id}`, { method: 'POST' });
      expect(response.status).toBe(201);
      expect(browser.cookies.get('rivulet_token')).toBe('unknown');
      expect((await browser.fetch(`${app.url}/notes/${id}`)).response.status).toBe(503);
    } finally {
      await mirror.postgres.sql('update rivulet.epoch set timeline = 1');
    }
    expect((await browser.fetch(`${app.url}/notes/${id}`)).body).toEqual({ text: `note ${id}` });
  });

  test('that has gone waits no longer', async () => {
    let isReached = false;
    const app = express();
    app.use(readYourWrites(all({ waitMs: 60_000 })));
    app.get('/', (_request, response) => {
      isReached = true;
      response.end();
    });
    await using server = await listening(createServer(app), null as never);
    const late = encodeToken({ epoch: mirror.replica.epoch, lsn: mirror.replica.position + AHEAD });
    const { waiting } = mirror.replica;
    const message = httpRequest(server.url, { headers: { 'rivulet-token': late } });
    message.on('error', () => undefined);
    message.end();
    await waitUntil('the request to wait', () => mirror.replica.waiting > waiting);
    message.destroy();
    await waitUntil('nobody to wait', () => mirror.replica.waiting === waiting);
    expect(isReached).toBe(false);
  });
});

test('what is not awaited any more, or only said, is in the token too; an answer is held back for it', async () => {
  const app = express();
  const middleware = readYourWrites(all({}));
  app.use(middleware);
  const id = nextId++;
  app.post('/cursor', async (_request, response) => {
    const client = await pool.connect();
    const query = new pg.Query(`insert into notes values (${id}, 'held') returning id`);
    query.once('end', () => {
      client.release();
      // The token of this one is still on its way.
      response.set('x', 'y').write('begun, ');
      response.end('ended');
    });
    client.query(query);
  });
  app.post('/marked', async (_request, response) => {
    await mirror.postgres.sql(`insert into notes values (${id + 1}, 'marked')`);
    middleware.reads.markWrite();
    response.send('done');
  });
  app.post('/wrong', (_request, response) => {
    middleware.reads.markWrite();
    response.end({ not: 'bytes' });
  });
  nextId += 2;
  await using server = await listening(createServer(app), middleware.reads);
  // What the handler does wrong while its answer is held back ends that answer, and nothing else.
  await expect(fetch(`${server.url}/wrong`, { method: 'POST' })).rejects.toThrow();
  for (const [path, body, n] of [
    ['cursor', 'begun, ended', id],
    ['marked', 'done', id + 1],
  ] as const) {
    const { response, body: answer } = await new Browser().fetch(`${server.url}/${path}`, { method: 'POST' });
    expect(answer).toEqual({ text: body });
    await mirror.replica.waitFor(response.headers.get('rivulet-token')!, { timeoutMs: 5_000 });
    expect(readFile(n)).toBeDefined();
  }
  expect(() => middleware.reads.current).toThrow(expect.objectContaining({ code: 'CONFIG' }));
});
