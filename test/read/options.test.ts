import { join } from 'node:path';
import pg from 'pg';
import { expect, test } from 'vitest';
import { readYourWrites } from '../../src/read/middleware/express.ts';
import { readYourWritesFetch } from '../../src/read/middleware/fetch.ts';
import type { CookieOptions, MiddlewareOptions } from '../../src/read/middleware/token-headers.ts';
import type { ReadSource } from '../../src/read/read-source.ts';
import { ReadYourWrites } from '../../src/read/read-your-writes.ts';
import { openReader } from '../../src/read/reader.ts';
import { trackWrites } from '../../src/read/track-writes.ts';
import { openReplica } from '../../src/replica/replica.ts';
import type { TokenKeys } from '../../src/token.ts';
import { makeSnapshot, START, temporaryDirectory } from '../fanout/test-replicator.ts';

const replica = { waitFor: async () => undefined } as unknown as ReadSource;
const CONFIG = expect.objectContaining({ code: 'CONFIG' });

test.each([
  { current: { id: 'k', secret: 'short' } },
  { current: { id: 'k.1', secret: 'a secret of the test' } },
  { current: 'x' },
])('keys that cannot sign are told at the start: %j', async (keys) => {
  using dir = temporaryDirectory();
  const file = join(dir.path, 'app.db');
  makeSnapshot(file, 'e1', START);
  const tokenKeys = keys as TokenKeys;
  const pool = new pg.Pool();
  expect(() => readYourWrites({ replica, tokenKeys })).toThrow(CONFIG);
  expect(() => readYourWrites({ replica, pool, tokenKeys })).toThrow(CONFIG);
  expect(() => trackWrites(pool, { tokenKeys })).toThrow(CONFIG);
  expect(() => openReader({ file, tokenKeys })).toThrow(CONFIG);
  await expect(openReplica({ file, replicator: 'http://127.0.0.1:9', tokenKeys })).rejects.toThrow(CONFIG);
});

test.each([
  { name: 'a b;' },
  { name: '' },
  { sameSite: 'bogus' },
  { maxAgeMs: '1d' },
  { maxAgeMs: Number.NaN },
  { maxAgeMs: 0 },
  { domain: 'example.org\r\nx: y' },
  { path: 'no-slash' },
  { path: '/; Secure' },
])('a cookie that no browser would keep is told at the start: %j', (cookie) => {
  expect(() => readYourWrites({ replica, cookie: cookie as CookieOptions })).toThrow(CONFIG);
});

test('other cookies are set as they are asked for', async () => {
  for (const cookie of [
    undefined,
    false,
    {},
    {
      name: '__Host-t',
      path: '/a b',
      domain: '.example.org',
      sameSite: 'None',
      maxAgeMs: 60_000,
      secure: true,
    },
  ] satisfies MiddlewareOptions['cookie'][]) {
    const { handler } = readYourWritesFetch({ replica, cookie });
    const request = new Request('http://127.0.0.1/', { headers: { 'rivulet-token': '1.e1.1' } });
    const answer = await handler(() => new Response('x'))(request);
    const line = answer.headers.get('set-cookie');
    if (cookie === false) expect(line).toBe(null);
    else if (cookie?.name === undefined)
      expect(line).toBe('rivulet_token=1.e1.1; Path=/; Max-Age=86400; HttpOnly; SameSite=Lax');
    else
      expect(line).toBe(
        '__Host-t=1.e1.1; Path=/a b; Max-Age=60; HttpOnly; SameSite=None; Domain=.example.org; Secure',
      );
  }
});

test('an answer goes out whatever has become of the keys', () => {
  const key = { id: 'k', secret: 'a secret of the test' };
  const core = new ReadYourWrites({ replica, tokenKeys: { current: key } });
  const request = core.begin({});
  request.scope.reached({ epoch: 'e1', lsn: 1n });
  expect(request.outgoingNow()).toMatch(/^1\.e1\.1\.k\./);
  key.secret = 'short';
  expect(request.outgoingNow()).toBe('unknown');
});

test('an unknown policy is told, also of a read that is not late', async () => {
  const onLate = 'bogus' as 'fail';
  expect(() => readYourWrites({ replica, onLate })).toThrow(CONFIG);
  const request = new ReadYourWrites({ replica }).begin({});
  await expect(request.ready({ onLate })).rejects.toThrow(CONFIG);
});
