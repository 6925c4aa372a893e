import { createHash, createHmac } from 'node:crypto';
import { describe, expect, test } from 'vitest';
import { openReader } from '../../src/store/object-reader.ts';
import { S3Store } from '../../src/store/s3-store.ts';
import { useS3Environment } from '../helpers/s3-environment.ts';
import {
  DENIED,
  type Fault,
  INTERNAL_ERROR,
  S3_ENVIRONMENT,
  type S3Request,
  S3Server,
  SLOW_DOWN,
} from '../helpers/s3-server.ts';

useS3Environment();

const CONTENT = Buffer.alloc(300_000, 'some content');

async function opened(prefix = 'some/prefix') {
  const server = await S3Server.start();
  const url = `s3://${server.bucket}/${prefix}`;
  const { endpoint, bucket } = server;
  const store = await S3Store.open({ url, bucket, prefix, endpoint });
  await store.put('chunks/aa/one', CONTENT);
  await store.get('chunks/aa/one');
  const location = await store.reading();
  const reader = await openReader(structuredClone({ ...location, store: { url, endpoint } }));
  server.requests.length = 0;
  return {
    server,
    store,
    reader,
    async [Symbol.asyncDispose]() {
      await reader[Symbol.asyncDispose]();
      await store.close();
      await server[Symbol.asyncDispose]();
    },
  };
}

/** Whether the SDK sent it. */
function isOfSdk({ headers }: S3Request): boolean {
  return headers['amz-sdk-invocation-id'] !== undefined;
}

const sha256 = (data: string): string => createHash('sha256').update(data).digest('hex');
const hmac = (key: string | Buffer, data: string): Buffer => createHmac('sha256', key).update(data).digest();

/**
 * The signature that a request should have, by the manual.
 * https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
 */
function signature(path: string, { headers, query }: S3Request): string {
  const authorization = headers.authorization!;
  const names = /SignedHeaders=([^,]+)/.exec(authorization)![1]!;
  const [, date, region] = /Credential=[^/]+\/(\d+)\/([^/]+)\/s3\/aws4_request/.exec(authorization)!;
  const canonical = [
    'GET',
    path,
    query.toString(),
    ...names.split(';').map((name) => `${name}:${String(headers[name]).trim()}`),
    '',
    names,
    headers['x-amz-content-sha256'],
  ].join('\n');
  const scope = `${date}/${region}/s3/aws4_request`;
  const toSign = ['AWS4-HMAC-SHA256', headers['x-amz-date'], scope, sha256(canonical)].join('\n');
  const keys = [date!, region!, 's3', 'aws4_request'];
  const key = keys.reduce<string | Buffer>(hmac, `AWS4${S3_ENVIRONMENT.AWS_SECRET_ACCESS_KEY}`);
  return hmac(key, toSign).toString('hex');
}

describe('an S3 store read by another thread', () => {
  test.for(['some/prefix', 'with blank/ünd+more'])(
    'objects come with one signed request each (%s)',
    async (prefix) => {
      await using place = await opened(prefix);
      const { server, store, reader } = place;
      expect((await reader.get('chunks/aa/one'))?.equals(CONTENT)).toBe(true);
      // The SDK's own is measured with the same measure.
      await store.get('chunks/aa/one');
      expect(server.requests.map(isOfSdk)).toEqual([false, true]);
      const escaped = prefix.split('/').map(encodeURIComponent).join('/');
      for (const request of server.requests) {
        const signed = signature(`/${server.bucket}/${escaped}/chunks/aa/one`, request);
        expect(request.headers.authorization).toContain(`Signature=${signed}`);
      }
    },
  );

  test('what is not there is null', async () => {
    await using place = await opened();
    expect(await place.reader.get('chunks/aa/other')).toBeNull();
  });

  const faults: readonly Fault[] = [
    SLOW_DOWN,
    INTERNAL_ERROR,
    { kind: 'error', status: 301, code: 'PermanentRedirect' },
    { kind: 'cut', when: 'before' },
    { kind: 'truncated', says: 'whole' },
  ];
  test.for(faults)('whatever happens, the SDK asks again: %o', async (fault) => {
    await using place = await opened();
    const { server, reader } = place;
    server.fault = (request) => (isOfSdk(request) ? null : fault);
    expect((await reader.get('chunks/aa/one'))?.equals(CONTENT)).toBe(true);
    server.fault = () => null;
    expect((await reader.get('chunks/aa/one'))?.equals(CONTENT)).toBe(true);
    expect(server.requests.map(isOfSdk)).toEqual([false, true, false]);
  });

  test('credentials that are refused are not tried a second time', async () => {
    await using place = await opened();
    const { server, reader } = place;
    server.fault = (request) => (isOfSdk(request) ? null : DENIED);
    for (let time = 0; time < 3; time++)
      expect((await reader.get('chunks/aa/one'))?.equals(CONTENT)).toBe(true);
    expect(server.requests.map(isOfSdk)).toEqual([false, true, true, true]);
  });

  test('without credentials it is left to the SDK, which says so', async () => {
    const before = { ...process.env };
    // The SDK looks for them again when they have expired.
    process.env.AWS_CREDENTIAL_EXPIRATION = new Date(Date.now() - 1_000).toISOString();
    process.env.AWS_EC2_METADATA_DISABLED = 'true';
    await using place = await opened();
    delete process.env.AWS_ACCESS_KEY_ID;
    try {
      const location = await place.store.reading();
      expect(location.access).toBeNull();
      await using reader = await openReader(location);
      await expect(reader.get('chunks/aa/one')).rejects.toMatchObject({
        code: 'STORE_REFUSED',
        message: expect.stringContaining('there are no credentials'),
      });
    } finally {
      process.env = before;
    }
  });

  test('who is told to stop stops', async () => {
    await using place = await opened();
    const { server, reader } = place;
    const stop = new AbortController();
    server.fault = () => {
      stop.abort(new Error('enough'));
      return { kind: 'slow', ms: 5_000 };
    };
    await expect(reader.get('chunks/aa/one', { signal: stop.signal })).rejects.toThrow('enough');
    expect(server.requests).toHaveLength(1);
  });
});
