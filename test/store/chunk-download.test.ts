import { mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { afterEach, describe, expect, test, vi } from 'vitest';
import { uploadChunks } from '../../src/snapshot/chunk-upload.ts';
import { blobKey } from '../../src/store/blob.ts';
import { downloadChunks } from '../../src/store/chunk-download.ts';
import { openStore } from '../../src/store/open-store.ts';
import { temporaryDirectory } from '../fanout/test-replicator.ts';
import { useS3Environment } from '../helpers/s3-environment.ts';
import { S3Server, SLOW_DOWN } from '../helpers/s3-server.ts';

const MEBIBYTE = 1024 * 1024;

useS3Environment();

/** Large enough that other threads help, with a different content in each chunk. */
async function largeFileInStore({
  server = null,
  mebibytes = 200,
}: {
  server?: S3Server | null;
  mebibytes?: number;
} = {}) {
  const directory = temporaryDirectory();
  const store = await openStore(
    server === null
      ? { url: pathToFileURL(join(directory.path, 'store')).href }
      : { url: `s3://${server.bucket}/r`, endpoint: server.endpoint },
  );
  const content = Buffer.alloc(mebibytes * MEBIBYTE + 12_345);
  for (let at = 0; at < content.length; at += MEBIBYTE) content.write(`piece ${at}`, at);
  const original = join(directory.path, 'original');
  writeFileSync(original, content);
  const { list } = await uploadChunks({ store, file: original, known: new Map() });
  const path = (index: number): string => {
    const [name] = list.chunks[index]!;
    return join(directory.path, 'store', blobKey('chunks', name));
  };
  return {
    store,
    content,
    list,
    path,
    file: join(directory.path, 'copy'),
    [Symbol.dispose]: () => directory[Symbol.dispose](),
  };
}

test('threads bring a large file together, a part of it was there before, and all is counted once', async () => {
  using place = await largeFileInStore();
  const { store, list, file, content } = place;
  const stop = new AbortController();
  const stopped = downloadChunks({
    store,
    list,
    file,
    signal: stop.signal,
    onProgress: ({ bytes }) => {
      if (bytes > 40 * MEBIBYTE) stop.abort(new Error('enough'));
    },
  });
  await expect(stopped).rejects.toThrow('enough');
  const shown: number[] = [];
  const report = await downloadChunks({ store, list, file, onProgress: ({ bytes }) => shown.push(bytes) });
  expect(report.reusedBytes).toBeGreaterThan(40 * MEBIBYTE);
  expect(report.downloadedBytes).toBeGreaterThan(0);
  expect(report.reusedBytes + report.downloadedBytes).toBe(content.length);
  expect(shown).toEqual(shown.toSorted((a, b) => a - b));
  expect(shown.at(-1)).toBe(content.length);
  expect(readFileSync(file).equals(content)).toBe(true);
});

test('whichever thread meets it: what is damaged is named, and nothing goes on', async () => {
  using place = await largeFileInStore();
  const { store, list, file, path } = place;
  for (let index = 10; index < 40; index++) writeFileSync(path(index), 'damaged');
  await expect(downloadChunks({ store, list, file })).rejects.toMatchObject({
    code: 'SNAPSHOT_CORRUPT',
    message: expect.stringMatching(/^chunks\/\w\w\/\w{64} in .* is damaged$/),
  });
  for (let index = 10; index < 40; index++) rmSync(path(index));
  await expect(downloadChunks({ store, list, file })).rejects.toMatchObject({
    code: 'SNAPSHOT_CORRUPT',
    message: expect.stringMatching(/is missing in/),
  });
});

describe('a file that cannot be written', () => {
  /** Of all files that are open. */
  async function fileHandle(): Promise<FileHandle> {
    await using handle = await open(import.meta.filename);
    return Object.getPrototypeOf(handle) as FileHandle;
  }
  afterEach(() => {
    vi.restoreAllMocks();
  });

  test.each([
    ['datasync', 'ENOSPC', 'DISK_FULL'],
    ['datasync', 'EIO', 'PROTOCOL'],
    ['sync', 'EDQUOT', 'DISK_FULL'],
    ['sync', 'EIO', 'PROTOCOL'],
  ] as const)('%s fails once with %s: nothing of the file is trusted', async (method, code, thrown) => {
    await using server = await S3Server.start();
    using place = await largeFileInStore({ server, mebibytes: 4 });
    const { store, list, file, content } = place;
    const failing = vi
      .spyOn(await fileHandle(), method)
      .mockRejectedValueOnce(Object.assign(new Error('it failed'), { code }));
    // Longer than until the first time that something is sent to the disk.
    server.fault = ({ key }) => (key.endsWith(list.chunks.at(-1)![0]) ? { kind: 'slow', ms: 500 } : null);
    const failed = downloadChunks({ store, list, file });
    await expect(failed).rejects.toMatchObject({ code: thrown, recovery: 'retry', cause: { code } });
    expect(failing).toHaveBeenCalled();
    expect(statSync(file).size).toBe(0);
    server.fault = () => null;
    expect(await downloadChunks({ store, list, file })).toEqual({
      downloadedBytes: content.length,
      reusedBytes: 0,
    });
    expect(readFileSync(file).equals(content)).toBe(true);
  });

  test('what only somebody else can change is said as that', async () => {
    using place = await largeFileInStore({ mebibytes: 1 });
    const { store, list, file } = place;
    mkdirSync(file);
    await expect(downloadChunks({ store, list, file })).rejects.toMatchObject({ code: 'FILE_UNUSABLE' });
    await expect(downloadChunks({ store, list, file: join(file, 'no', 'such') })).rejects.toMatchObject({
      code: 'FILE_UNUSABLE',
    });
  });
});

test('threads bring a file from S3 without the SDK, which helps where the server does not', async () => {
  await using server = await S3Server.start();
  using place = await largeFileInStore({ server, mebibytes: 66 });
  const { store, list, file, content } = place;
  await store.get(blobKey('chunks', list.chunks[0]![0]));
  server.requests.length = 0;
  let asked = 0;
  server.fault = () => (++asked % 20 === 0 ? SLOW_DOWN : null);
  const report = await downloadChunks({ store, list, file });
  expect(report).toEqual({ downloadedBytes: content.length, reusedBytes: 0 });
  expect(readFileSync(file).equals(content)).toBe(true);
  const ofSdk = server.requests.filter(({ headers }) => headers['amz-sdk-invocation-id'] !== undefined);
  expect(ofSdk.length).toBeGreaterThan(0);
  expect(ofSdk.length).toBeLessThan(list.chunks.length / 5);
});
