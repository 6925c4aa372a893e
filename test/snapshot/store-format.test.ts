import { existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { blobKey } from '../../src/store/blob.ts';
import { downloadChunks } from '../../src/store/chunk-download.ts';
import { fetchChunkList } from '../../src/store/chunk-list.ts';
import { decodeManifest, encodeManifest, MANIFEST_KEY } from '../../src/store/manifest.ts';
import { readManifest } from '../../src/store/read-manifest.ts';
import { readSegment, segmentsBehind } from '../../src/store/segments.ts';
import { batch, insertItem, partBatch, START } from '../fanout/test-replicator.ts';
import { at, CHUNK_BYTES, headAt, StoreFixture, tx } from './store-fixture.ts';

async function archived(fixture: StoreFixture): Promise<Buffer> {
  const parts: Buffer[] = [];
  const segments = await segmentsBehind(fixture.store, await fixture.read(), {
    epoch: 'e1',
    position: START,
  });
  for (const segment of segments)
    for await (const part of readSegment(fixture.store, segment)) parts.push(part);
  return Buffer.concat(parts);
}

test('segments hold the log, in order and without a gap, across writers', async () => {
  await using fixture = await StoreFixture.open();
  const first = fixture.segments();
  await first.append(Buffer.concat([tx(1), tx(2)]));
  expect(await first.seal(null)).toBe(at(2));
  await first.append(tx(3));
  expect(await first.seal(headAt(at(5)))).toBe(at(5));
  // Another one goes on where the first ended, and is given some of it again.
  const second = fixture.segments();
  expect(second.logFrom).toBe(at(5));
  await second.append(Buffer.concat([tx(3), tx(6)]));
  expect(await second.seal(null)).toBe(at(6));
  const manifest = await fixture.read();
  expect(manifest.segments.map(({ from, to }) => [from, to])).toEqual([
    [START, at(2)],
    [at(2), at(3)],
    [at(3), at(6)],
  ]);
  expect(manifest.archived).toMatchObject({ epoch: 'e1', position: at(6) });
  expect(await archived(fixture)).toEqual(Buffer.concat([tx(1), tx(2), tx(3), tx(6)]));
  expect(
    (await segmentsBehind(fixture.store, manifest, { epoch: 'e1', position: at(3) })).map(({ to }) => to),
  ).toEqual([at(6)]);
  expect(await segmentsBehind(fixture.store, manifest, { epoch: 'e2', position: START })).toEqual([]);
});

test('a transaction larger than a segment lies in several parts', async () => {
  await using fixture = await StoreFixture.open();
  const writer = fixture.segments({ segmentBytes: 2000 });
  const parts = Array.from(
    { length: 10 },
    (_, index) => partBatch(at(1), [insertItem(index, 'y'.repeat(700))]).bytes,
  );
  const end = batch(at(2), [], { hasParts: true, commitTimeUs: 2n }).bytes;
  for (const frames of [tx(1), ...parts, end, tx(3)]) await writer.append(frames);
  await writer.seal(null);
  const { segments } = await fixture.read();
  expect(segments.map((each) => each.parts.length)).toEqual([1, 4]);
  expect(await archived(fixture)).toEqual(Buffer.concat([tx(1), ...parts, end, tx(3)]));
});

test('many segments move into lists of their own', async () => {
  await using fixture = await StoreFixture.open();
  const writer = fixture.segments();
  for (let index = 1; index <= 400; index++) {
    await writer.append(tx(index));
    if (index % 2 === 0) await writer.seal(null);
  }
  const manifest = await fixture.read();
  expect(manifest.segmentLists).toHaveLength(1);
  expect(manifest.segmentLists[0]).toMatchObject({ from: START, to: at(256), count: 128 });
  expect(manifest.segments).toHaveLength(200 - 128);
  expect(await archived(fixture)).toEqual(
    Buffer.concat(Array.from({ length: 400 }, (_, index) => tx(index + 1))),
  );
  // A new history moves what is left of the old one, so that it stands alone.
  const next = fixture.segments({ epoch: 'e2', oldestPosition: at(500) });
  await next.append(tx(501));
  await next.seal(null);
  expect((await fixture.read()).segments.map(({ epoch }) => epoch)).toEqual(['e2']);
  expect((await fixture.read()).segmentLists.map(({ epoch, to }) => [epoch, to])).toEqual([
    ['e1', at(256)],
    ['e1', at(400)],
  ]);
});

test('where the log no longer reaches back, the row is broken and says so', async () => {
  await using fixture = await StoreFixture.open();
  const writer = fixture.segments();
  await writer.append(tx(1));
  await writer.seal(null);
  const later = fixture.segments({ oldestPosition: at(5) });
  expect(later.logFrom).toBe(at(5));
  await later.append(tx(6));
  await later.seal(null);
  const manifest = await fixture.read();
  const from = (index: number) =>
    segmentsBehind(fixture.store, manifest, { epoch: 'e1', position: at(index) });
  expect((await from(0)).map(({ to }) => to)).toEqual([at(1)]);
  expect((await from(5)).map(({ to }) => to)).toEqual([at(6)]);
});

test('a snapshot gives back the file, byte for byte, and the next one costs what changed', async () => {
  await using fixture = await StoreFixture.open();
  fixture.apply(...Array.from({ length: 8 }, (_, index) => tx(index + 1, 100)));
  const first = await fixture.snapshot();
  expect(first).toMatchObject({ isNew: true, snapshot: { epoch: 'e1', position: at(8), pageBytes: 4096 } });
  expect(await fixture.snapshot()).toMatchObject({ isNew: false, sentBytes: 0 });
  const bytes = readFileSync(fixture.file);
  const list = await fetchChunkList(fixture.store, first.snapshot);
  expect(list.chunks.length).toBe(Math.ceil(bytes.length / CHUNK_BYTES));
  const copy = join(fixture.directory.path, 'copy.db');
  const whole = await downloadChunks({ store: fixture.store, list, file: copy });
  expect(whole).toEqual({ downloadedBytes: bytes.length, reusedBytes: 0 });
  expect(readFileSync(copy).equals(bytes)).toBe(true);

  fixture.apply(tx(9));
  const second = await fixture.snapshot();
  expect(second.sentChunks).toBeLessThan(6);
  expect(second.sentBytes).toBeLessThan(first.sentBytes / 3);
  // The old file seeds the new one; what is in place already stays.
  const next = join(fixture.directory.path, 'next.db');
  const newList = await fetchChunkList(fixture.store, second.snapshot);
  const seeded = await downloadChunks({ store: fixture.store, list: newList, file: next, seed: copy });
  expect(seeded.downloadedBytes).toBeLessThanOrEqual(second.sentChunks * CHUNK_BYTES);
  expect(readFileSync(next).equals(readFileSync(fixture.file))).toBe(true);
  expect(await downloadChunks({ store: fixture.store, list: newList, file: next })).toMatchObject({
    downloadedBytes: 0,
  });
});

test('what is damaged or missing is named', async () => {
  await using fixture = await StoreFixture.open();
  fixture.apply(tx(1, 200));
  const { snapshot } = await fixture.snapshot();
  const list = await fetchChunkList(fixture.store, snapshot);
  const copy = join(fixture.directory.path, 'copy.db');
  const key = blobKey('chunks', list.chunks[1]![0]);
  const stored = readFileSync(fixture.path(key));
  const download = () => downloadChunks({ store: fixture.store, list, file: copy });
  for (const damaged of [
    stored.subarray(0, 100),
    Buffer.concat([stored.subarray(0, 60), Buffer.alloc(stored.length - 60)]),
    Buffer.alloc(0),
  ]) {
    writeFileSync(fixture.path(key), damaged);
    await expect(download()).rejects.toMatchObject({
      code: 'SNAPSHOT_CORRUPT',
      message: `${key} in ${fixture.url} is damaged`,
    });
  }
  rmSync(fixture.path(key));
  await expect(download()).rejects.toMatchObject({ message: `${key} is missing in ${fixture.url}` });
  // A download that failed goes on with what it has.
  writeFileSync(fixture.path(key), stored);
  expect((await download()).downloadedBytes).toBeLessThanOrEqual(2 * CHUNK_BYTES);
  rmSync(fixture.path(blobKey('lists', snapshot.chunkList.hash)));
  await expect(fetchChunkList(fixture.store, snapshot)).rejects.toMatchObject({ code: 'SNAPSHOT_CORRUPT' });
});

test('a chunk found damaged on reading back is sent again with the next snapshot', async () => {
  await using fixture = await StoreFixture.open();
  fixture.apply(tx(1, 200));
  const { snapshot } = await fixture.snapshot();
  const list = await fetchChunkList(fixture.store, snapshot);
  const path = fixture.path(blobKey('chunks', list.chunks[1]![0]));
  const stored = readFileSync(path);
  writeFileSync(path, stored.subarray(10));
  await expect(fixture.snapshots.verify(snapshot)).rejects.toMatchObject({ code: 'SNAPSHOT_CORRUPT' });
  expect((await fixture.read()).snapshots[0]!.verifiedAt).toBeNull();
  await fixture.snapshot();
  expect(readFileSync(path).equals(stored)).toBe(true);
  await fixture.snapshots.verify(snapshot);
  expect((await fixture.read()).snapshots.map(({ verifiedAt }) => verifiedAt)).toEqual([expect.any(String)]);
});

test('a damaged manifest is noticed, and its backup used', async () => {
  await using fixture = await StoreFixture.open();
  fixture.apply(tx(1));
  await fixture.snapshot();
  const path = fixture.path(MANIFEST_KEY);
  const stored = readFileSync(path);
  const text = stored.toString();
  for (const damaged of [
    text.slice(0, 200),
    text.replace('"e1"', '"e2"'),
    '',
    '{}',
    text.replace('hash":"', 'hash":"0'),
  ]) {
    writeFileSync(path, damaged);
    const read = (await readManifest(fixture.store))!;
    expect(read.damage).toMatchObject({
      code: 'SNAPSHOT_CORRUPT',
      message: expect.stringContaining(MANIFEST_KEY),
    });
    expect(read.manifest.snapshots).toHaveLength(1);
  }
  // Whoever writes next puts a whole one in its place, and says so.
  const next = fixture.newWriter();
  await next.takeOver();
  expect(fixture.warnings).toEqual([expect.stringContaining('its backup is used')]);
  expect((await readManifest(fixture.store))!.damage).toBeNull();
  expect((await fixture.read()).snapshots).toHaveLength(1);
  rmSync(fixture.path('manifest-backup.json'));
  writeFileSync(path, 'x');
  await expect(readManifest(fixture.store)).rejects.toMatchObject({ code: 'SNAPSHOT_CORRUPT' });
});

test('a manifest of a newer format is refused in words', async () => {
  await using fixture = await StoreFixture.open();
  const newer = readFileSync(fixture.path(MANIFEST_KEY), 'utf8').replace('"version":1', '"version":2');
  writeFileSync(fixture.path(MANIFEST_KEY), newer);
  await expect(readManifest(fixture.store)).rejects.toMatchObject({
    code: 'VERSION_MISMATCH',
    message: `manifest.json in ${fixture.url} has format version 2, this program knows 1`,
  });
  await expect(fixture.newWriter().takeOver()).rejects.toMatchObject({ code: 'VERSION_MISMATCH' });
  expect(readFileSync(fixture.path(MANIFEST_KEY), 'utf8')).toBe(newer);
});

test('what is written is what is read', async () => {
  await using fixture = await StoreFixture.open();
  fixture.apply(tx(1));
  await fixture.snapshot();
  const segments = fixture.segments();
  await segments.append(tx(1));
  await segments.seal(null);
  const manifest = await fixture.read();
  expect(decodeManifest(encodeManifest(manifest), 'x')).toEqual(manifest);
});

test('the writer that was started last writes; the one before stops and changes nothing', async () => {
  await using fixture = await StoreFixture.open();
  fixture.apply(tx(1));
  const stale = fixture.segments();
  await stale.append(tx(1));
  const successor = fixture.newWriter();
  await successor.takeOver();
  const before = readFileSync(fixture.path(MANIFEST_KEY));
  await expect(stale.seal(null)).rejects.toMatchObject({ code: 'STORE_FENCED' });
  await expect(fixture.snapshot()).rejects.toMatchObject({ code: 'STORE_FENCED' });
  expect(readFileSync(fixture.path(MANIFEST_KEY)).equals(before)).toBe(true);
  expect(existsSync(fixture.path('manifest-backup.json'))).toBe(false);
  await successor.update((manifest) => ({ ...manifest, archived: null }));
});

test('changes from elsewhere and changes of the writer both hold', async () => {
  await using fixture = await StoreFixture.open();
  const guest = fixture.newWriter();
  await guest.refresh();
  const at1 = new Date().toISOString();
  const removal = { at: at1, isDeleting: false, snapshots: [], segments: [], segmentLists: [] };
  const segments = fixture.segments();
  const work = async (): Promise<void> => {
    for (let index = 1; index <= 10; index++) {
      await segments.append(tx(index));
      await segments.seal(null);
    }
  };
  const edits = async (): Promise<void> => {
    for (let index = 0; index < 10; index++)
      await guest.update((manifest) => ({ ...manifest, removed: [...manifest.removed, removal] }));
  };
  await Promise.all([work(), edits()]);
  const manifest = await fixture.read();
  expect(manifest.removed).toHaveLength(10);
  expect(manifest.segments.map(({ to }) => to)).toEqual(
    Array.from({ length: 10 }, (_, index) => at(index + 1)),
  );
});

test('a store of another database is refused', async () => {
  await using fixture = await StoreFixture.open();
  const { ManifestWriter } = await import('../../src/snapshot/manifest-writer.ts');
  const other = new ManifestWriter({
    store: fixture.store,
    source: { systemIdentifier: '1', database: 'other' },
    onWarning: () => undefined,
  });
  await expect(other.takeOver()).rejects.toMatchObject({ code: 'STORE_REFUSED' });
});
