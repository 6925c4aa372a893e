import { chmodSync, mkdirSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { describe, expect, test } from 'vitest';
import { openStore } from '../../src/store/open-store.ts';
import { S3Store } from '../../src/store/s3-store.ts';
import { parseStoreUrl } from '../../src/store/store-url.ts';
import { temporaryDirectory } from '../fanout/test-replicator.ts';
import { useS3Environment } from '../helpers/s3-environment.ts';
import { DENIED, EXPIRED, INTERNAL_ERROR, S3Server, SLOW_DOWN } from '../helpers/s3-server.ts';
import { atomicSwapContract, objectStoreContract, type StoreUnderTest } from './object-store-contract.ts';

useS3Environment();

async function fileStore(): Promise<StoreUnderTest> {
  const directory = temporaryDirectory();
  return {
    open: () => openStore({ url: pathToFileURL(join(directory.path, 'store')).href }),
    async [Symbol.asyncDispose]() {
      directory[Symbol.dispose]();
    },
  };
}

function s3Store(options: { readonly conditional: boolean }) {
  return async (): Promise<StoreUnderTest> => {
    const server = await S3Server.start(options);
    return {
      open: () =>
        S3Store.open({
          url: `s3://${server.bucket}/some/prefix`,
          bucket: server.bucket,
          prefix: 'some/prefix',
          endpoint: server.endpoint,
          leaseMs: 200,
        }),
      [Symbol.asyncDispose]: () => server[Symbol.asyncDispose](),
    };
  };
}

objectStoreContract('file', fileStore);
atomicSwapContract('file', fileStore);
objectStoreContract('s3', s3Store({ conditional: true }));
atomicSwapContract('s3', s3Store({ conditional: true }));

describe('s3', () => {
  async function opened(attempts?: number) {
    const server = await S3Server.start();
    const store = await S3Store.open({
      url: `s3://${server.bucket}`,
      bucket: server.bucket,
      prefix: '',
      endpoint: server.endpoint,
      attempts,
    });
    await store.prepareWriting();
    server.requests.length = 0;
    return {
      server,
      store,
      async [Symbol.asyncDispose]() {
        await store.close();
        await server[Symbol.asyncDispose]();
      },
    };
  }

  /** The fault for the first so many requests. */
  const first = <T>(count: number, fault: T) => {
    let left = count;
    return () => (left-- > 0 ? fault : null);
  };

  test.each([
    ['500', 2, INTERNAL_ERROR],
    ['503 SlowDown', 1, SLOW_DOWN],
    ['a connection that breaks', 2, { kind: 'cut', when: 'before' } as const],
    ['an answer that is lost', 2, { kind: 'cut', when: 'after' } as const],
    ['a slow answer', 1, { kind: 'slow', ms: 100 } as const],
  ])('%s: it is tried again', async (_name, times, fault) => {
    await using place = await opened();
    const { server, store } = place;
    server.fault = first(times, fault);
    await store.put('a', Buffer.from('content'));
    server.fault = first(times, fault);
    expect(await store.get('a')).toEqual(Buffer.from('content'));
    server.fault = first(times, fault);
    const version = await store.swap('m', Buffer.from('one'), null);
    server.fault = first(times, fault);
    expect(await store.swap('m', Buffer.from('two'), version)).toEqual(expect.any(String));
    expect((await store.read('m'))!.bytes.toString()).toBe('two');
    server.fault = first(times, fault);
    await store.delete(['a']);
    expect(await store.head('a')).toBeNull();
  });

  const LOST = { kind: 'cut', when: 'after' } as const;
  const IN_THE_WAY = { kind: 'error', status: 409, code: 'ConditionalRequestConflict' } as const;
  const REFUSED = { kind: 'error', status: 412, code: 'PreconditionFailed' } as const;
  test.each([
    ['the answer to the first write is lost', (write: number) => (write === 1 ? LOST : null), true],
    ['the answer to the last write is lost', (write: number) => (write === 4 ? LOST : null), true],
    ['all answers are lost once', (write: number) => (write % 2 === 1 ? LOST : null), true],
    ['another write was in the way', (write: number) => (write === 1 ? IN_THE_WAY : null), true],
    ['nothing is let through', () => REFUSED, false],
  ])('whether conditions are heeded is found out: %s', async (_name, faultOf, isHeeded) => {
    await using place = await opened();
    const { server, store } = place;
    let writes = 0;
    server.fault = ({ method }) => (method === 'PUT' ? faultOf(++writes) : null);
    await store.prepareWriting();
    expect(store.hasAtomicSwap).toBe(isHeeded);
    expect(writes).toBeLessThan(10);
    server.fault = () => null;
    for await (const { key } of store.list('')) expect.unreachable(key);
  });

  test('a body that breaks off is asked for again', async () => {
    await using place = await opened();
    const { server, store } = place;
    await store.put('a', Buffer.alloc(50_000, 7));
    server.fault = first(2, { kind: 'truncated', says: 'whole' });
    expect(await store.get('a')).toEqual(Buffer.alloc(50_000, 7));
  });

  test.each([
    ['expired credentials', EXPIRED, /credentials have expired/],
    ['denied access', DENIED, /access denied/],
    ['a wrong key', { kind: 'error', status: 403, code: 'InvalidAccessKeyId' } as const, /access key/],
    ['a wrong secret', { kind: 'error', status: 403, code: 'SignatureDoesNotMatch' } as const, /secret key/],
  ])('%s: it says so, and what to do', async (_name, fault, message) => {
    await using place = await opened();
    const { server, store } = place;
    server.fault = () => fault;
    const work = [
      () => store.put('a', Buffer.from('x')),
      () => store.get('a'),
      () => store.swap('m', Buffer.from('one'), null),
      () => store.delete(['a']),
      async () => {
        for await (const _ of store.list('')) break;
      },
    ];
    for (const each of work) {
      await expect(each()).rejects.toMatchObject({
        code: 'STORE_REFUSED',
        message: expect.stringMatching(message),
        hint: expect.any(String),
      });
    }
    expect(server.requests).toHaveLength(work.length);
  });

  test('a missing bucket is named', async () => {
    await using place = await opened();
    await using store = await S3Store.open({
      url: 's3://nowhere/x',
      bucket: 'nowhere',
      prefix: 'x',
      endpoint: place.server.endpoint,
    });
    for (const work of [
      () => store.get('a'),
      () => store.put('a', Buffer.from('x')),
      () => store.prepareWriting(),
    ])
      await expect(work()).rejects.toMatchObject({
        code: 'STORE_REFUSED',
        message: 'the object store s3://nowhere/x refuses: the bucket does not exist',
      });
  });

  test('a server that is not there, or does not recover, is unreachable', async () => {
    await using place = await opened(2);
    place.server.fault = () => SLOW_DOWN;
    await expect(place.store.get('a')).rejects.toMatchObject({ code: 'STORE_UNREACHABLE' });
    await using store = await S3Store.open({
      url: 's3://bucket',
      bucket: 'bucket',
      prefix: '',
      endpoint: 'http://127.0.0.1:9',
      attempts: 1,
    });
    await expect(store.get('a')).rejects.toMatchObject({
      code: 'STORE_UNREACHABLE',
      message: 'the object store s3://bucket is not there (ECONNREFUSED)',
    });
  });

  test('a large object whose parts fail leaves no unfinished upload', async () => {
    await using place = await opened(1);
    const { server, store } = place;
    server.fault = ({ query }) => (query.get('partNumber') === '3' ? INTERNAL_ERROR : null);
    await expect(store.put('large', Buffer.alloc(20 * 1024 * 1024))).rejects.toMatchObject({
      code: 'STORE_UNREACHABLE',
    });
    expect(server.requests.filter(({ method }) => method === 'DELETE')).toHaveLength(1);
    expect(await store.head('large')).toBeNull();
  });
});

describe('s3 without conditional writes', () => {
  objectStoreContract('contract', s3Store({ conditional: false }));

  test('it is found out, and writers keep apart by a lease', async () => {
    await using server = await S3Server.start({ conditional: false });
    const open = () => openStore({ url: `s3://${server.bucket}`, endpoint: server.endpoint });
    await using store = await open();
    await using other = await open();
    await store.prepareWriting();
    await other.prepareWriting();
    expect([store.hasAtomicSwap, other.hasAtomicSwap]).toEqual([false, false]);
    const results = await Promise.allSettled([
      store.swap('m', Buffer.from('one'), null),
      other.swap('m', Buffer.from('two'), null),
    ]);
    const won = results.filter((result) => result.status === 'fulfilled' && result.value !== null);
    expect(won).toHaveLength(1);
    expect(results.find((result) => result.status === 'rejected')).toMatchObject({
      reason: { code: 'STORE_UNREACHABLE' },
    });
  });

  test('a server that refuses conditions as unknown counts as one without', async () => {
    await using server = await S3Server.start({ conditional: false });
    await using store = await openStore({ url: `s3://${server.bucket}`, endpoint: server.endpoint });
    server.fault = ({ headers }) =>
      headers['if-none-match'] === undefined ? null : { kind: 'error', status: 501, code: 'NotImplemented' };
    await store.prepareWriting();
    expect(store.hasAtomicSwap).toBe(false);
    expect(await store.swap('m', Buffer.from('one'), null)).toEqual(expect.any(String));
  });
});

describe('file', () => {
  test('a directory that is not there, or may not be written, is named', async () => {
    using directory = temporaryDirectory();
    const url = pathToFileURL(join(directory.path, 'none')).href;
    await using missing = await openStore({ url });
    await expect(missing.get('a')).rejects.toMatchObject({
      code: 'STORE_REFUSED',
      message: `the object store ${url} cannot be read: ENOENT`,
    });
    writeFileSync(join(directory.path, 'file'), 'x');
    await using file = await openStore({ url: pathToFileURL(join(directory.path, 'file')).href });
    await expect(file.prepareWriting()).rejects.toMatchObject({ code: 'STORE_REFUSED' });
    if (process.getuid?.() !== 0) {
      mkdirSync(join(directory.path, 'readonly'));
      chmodSync(join(directory.path, 'readonly'), 0o500);
      await using locked = await openStore({ url: pathToFileURL(join(directory.path, 'readonly')).href });
      await expect(locked.prepareWriting()).rejects.toMatchObject({ code: 'STORE_REFUSED' });
    }
  });

  test('leaves nothing aside', async () => {
    using directory = temporaryDirectory();
    await using store = await openStore({ url: pathToFileURL(directory.path).href });
    await store.prepareWriting();
    await store.put('a/b', Buffer.from('x'));
    await store.swap('manifest.json', Buffer.from('x'), null);
    expect(readdirSync(join(directory.path, '.aside'))).toEqual([]);
  });
});

test('URLs of stores', () => {
  expect(parseStoreUrl('file:///var/lib/store')).toEqual({ kind: 'file', directory: '/var/lib/store' });
  expect(parseStoreUrl('s3://bucket/a/b/')).toEqual({ kind: 's3', bucket: 'bucket', prefix: 'a/b' });
  expect(parseStoreUrl('s3://bucket')).toEqual({ kind: 's3', bucket: 'bucket', prefix: '' });
  for (const url of [
    '',
    'store',
    'file://host/x',
    'file:///',
    's3://',
    's3://b/../c',
    'http://x/y',
    's3://k:s@bucket/x',
    's3://bucket/a?b',
  ])
    expect(parseStoreUrl(url), url).toBeUndefined();
});
