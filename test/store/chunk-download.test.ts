import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { expect, test } from 'vitest';
import { uploadChunks } from '../../src/snapshot/chunk-upload.ts';
import { blobKey } from '../../src/store/blob.ts';
import { downloadChunks } from '../../src/store/chunk-download.ts';
import { openStore } from '../../src/store/open-store.ts';
import { temporaryDirectory } from '../fanout/test-replicator.ts';

const MEBIBYTE = 1024 * 1024;

/** Large enough that other threads help, with a different content in each chunk. */
async function largeFileInStore() {
  const directory = temporaryDirectory();
  const store = await openStore({ url: pathToFileURL(join(directory.path, 'store')).href });
  const content = Buffer.alloc(200 * MEBIBYTE + 12_345);
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
