import { existsSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import Database from 'better-sqlite3';
import { expect, test } from 'vitest';
import type { Lsn } from '../../src/lsn.ts';
import { openReplicaFile } from '../../src/replica/replica-file.ts';
import { cutFrames } from '../../src/snapshot/frame-cut.ts';
import { type RestoreTarget, rebuildFile } from '../../src/snapshot/rebuild.ts';
import { restorableRanges } from '../../src/snapshot/restorable.ts';
import { restore } from '../../src/snapshot/restore.ts';
import { blobKey } from '../../src/store/blob.ts';
import { fetchChunkList } from '../../src/store/chunk-list.ts';
import { batch, insertItem, partBatch } from '../fanout/test-replicator.ts';
import { at, headAt, StoreFixture, tx } from './store-fixture.ts';

const SECOND_US = 1_000_000n;
const time = (seconds: number, fraction = '000000'): string =>
  `1970-01-01 00:00:${String(seconds).padStart(2, '0')}.${fraction}Z`;

/** Ten transactions, the i-th at second i; snapshots behind the third and the seventh; all in segments. */
async function filled(): Promise<StoreFixture> {
  const fixture = await StoreFixture.open();
  const segments = fixture.segments();
  await fixture.snapshot();
  for (let index = 1; index <= 10; index++) {
    fixture.apply(tx(index, 3));
    await segments.append(tx(index, 3));
    if (index % 2 === 0) await segments.seal(null);
    if (index === 3 || index === 7) await fixture.snapshot();
  }
  await segments.seal(headAt(at(11)));
  return fixture;
}

async function restored(fixture: StoreFixture, target: RestoreTarget, name = 'restored.db') {
  const file = join(fixture.directory.path, name);
  const warnings: string[] = [];
  const report = await restore({
    store: fixture.store,
    file,
    target,
    signal: new AbortController().signal,
    onProgress: () => undefined,
    onWarning: (message) => warnings.push(message),
  });
  const db = new Database(file, { readonly: true });
  try {
    const transactions = db.prepare('select distinct id / 10000 from items order by 1').pluck().all();
    const count = db.prepare('select count(*) from items').pluck().get();
    const lsn = db.prepare('select lsn_int from _rivulet_position').pluck().safeIntegers().get() as Lsn;
    return { report, warnings, file, count, last: transactions.length, lsn };
  } finally {
    db.close();
  }
}

test('gives the content of any position', async () => {
  await using fixture = await filled();
  for (let index = 0; index <= 11; index++) {
    const exact = await restored(fixture, { lsn: at(index) }, `${index}.db`);
    expect(exact).toMatchObject({
      last: Math.min(index, 10),
      count: Math.min(index, 10) * 3,
      lsn: at(index),
    });
    expect(exact.report.snapshot).toBe(index >= 7 ? at(7) : index >= 3 ? at(3) : at(0));
    if (index > 10) break;
    const between = await restored(fixture, { lsn: at(index) + 5n }, `${index}-between.db`);
    expect(between).toMatchObject({ last: Math.min(index, 10), lsn: at(index) + 5n });
  }
  expect(await restored(fixture, 'newest')).toMatchObject({ last: 10, lsn: at(11) });
});

test('gives the content of any time: everything before the first later commit', async () => {
  await using fixture = await filled();
  for (let second = 1; second <= 10; second++) {
    expect(await restored(fixture, { time: time(second) }, `${second}.db`)).toMatchObject({ last: second });
    expect(await restored(fixture, { time: time(second, '999999') }, `${second}+.db`)).toMatchObject({
      last: second,
    });
    expect(await restored(fixture, { time: time(second - 1, '999999') }, `${second}-.db`)).toMatchObject({
      last: second - 1,
    });
  }
  // The store was looked at just now, and there was nothing more.
  const justNow = `${new Date(Date.now() - 60_000).toISOString().slice(0, 19).replace('T', ' ')}.000000Z`;
  expect(await restored(fixture, { time: justNow })).toMatchObject({ last: 10, lsn: at(11) });
});

test('what cannot be restored is refused, with what can', async () => {
  await using fixture = await filled();
  const nextHour = `${new Date(Date.now() + 3_600_000).toISOString().slice(0, 19).replace('T', ' ')}.000000Z`;
  for (const target of [{ lsn: at(12) }, { lsn: 5n }, { time: nextHour }]) {
    await expect(restored(fixture, target)).rejects.toMatchObject({
      code: 'NOT_RESTORABLE',
      hint: expect.stringContaining('0/1000 to 0/1B00'),
    });
  }
  // The text goes to the moment up to which the store is known to hold everything, though nothing was committed then.
  const until = (await fixture.read()).archived!.at.slice(0, 10);
  await expect(restored(fixture, { time: nextHour })).rejects.toMatchObject({
    hint: expect.stringMatching(new RegExp(`to ${until} .*; without --to-time, the newest`)),
  });
  await expect(restored(fixture, 'newest', 'absent/d/z.db')).rejects.toMatchObject({
    code: 'FILE_UNUSABLE',
    message: expect.stringContaining('z.db is in a directory that does not exist: '),
    hint: expect.stringContaining('where this user may write'),
  });
  writeFileSync(join(fixture.directory.path, 'there.db'), 'mine');
  await expect(restored(fixture, 'newest', 'there.db')).rejects.toMatchObject({ code: 'FILE_UNUSABLE' });
  rmSync(fixture.path('manifest.json'));
  await expect(restored(fixture, 'newest')).rejects.toMatchObject({ code: 'NOT_RESTORABLE' });
});

test('the file is plain, alone, and not one that a replica follows with', async () => {
  await using fixture = await filled();
  const { file } = await restored(fixture, { lsn: at(5) });
  const db = new Database(file, { readonly: true });
  expect(db.pragma('journal_mode', { simple: true })).toBe('delete');
  expect(db.pragma('integrity_check', { simple: true })).toBe('ok');
  db.close();
  expect(readdirSync(fixture.directory.path).filter((name) => name.startsWith('restored'))).toEqual([
    'restored.db',
  ]);
  expect(() => openReplicaFile(file)).toThrow(/a copy of the past/);
});

test('a damaged snapshot is named, and the one before leads there as well', async () => {
  await using fixture = await filled();
  const newest = (await fixture.read()).snapshots.at(-1)!;
  const { chunks } = await fetchChunkList(fixture.store, newest);
  writeFileSync(fixture.path(blobKey('chunks', chunks.at(-1)![0])), 'damaged');
  const { last, warnings, report } = await restored(fixture, { lsn: at(9) });
  expect([last, report.snapshot]).toEqual([9, at(3)]);
  expect(warnings.join()).toContain(blobKey('chunks', chunks.at(-1)![0]));
  const { segments } = await fixture.read();
  const key = blobKey('segments', segments[2]!.parts[0]!.hash);
  rmSync(fixture.path(key));
  await expect(restored(fixture, { lsn: at(9) }, 'other.db')).rejects.toMatchObject({
    code: 'SNAPSHOT_CORRUPT',
    facts: { object: key },
  });
  expect(existsSync(join(fixture.directory.path, 'other.db'))).toBe(false);
});

test('a large transaction in parts is there whole, or not at all', async () => {
  await using fixture = await StoreFixture.open();
  await fixture.snapshot();
  const segments = fixture.segments({ segmentBytes: 3000 });
  const frames = [
    tx(1),
    ...Array.from(
      { length: 9 },
      (_, index) => partBatch(at(1), [insertItem(20_000 + index, 'z'.repeat(900))]).bytes,
    ),
    batch(at(2), [], { hasParts: true, commitTimeUs: 2n * SECOND_US }).bytes,
    tx(3),
  ];
  for (const each of frames) await segments.append(each);
  await segments.seal(null);
  expect(await restored(fixture, { lsn: at(2) - 1n }, 'before.db')).toMatchObject({ count: 1 });
  expect(await restored(fixture, { time: time(1, '500000') }, 'time.db')).toMatchObject({ count: 1 });
  expect(await restored(fixture, { lsn: at(2) }, 'with.db')).toMatchObject({ count: 10 });
  expect(await restored(fixture, 'newest', 'all.db')).toMatchObject({ count: 11 });
});

test('histories and gaps are ranges of their own', async () => {
  await using fixture = await filled();
  const manifest = await fixture.read();
  const [first] = manifest.snapshots;
  const until = manifest.archived!.at.replace(/^(\S+)T(\S+)Z$/, '$1 $2000Z');
  expect(restorableRanges(manifest)).toMatchObject([
    { epoch: 'e1', from: at(0), to: at(11), fromTime: null, toTime: until, snapshots: { length: 3 } },
  ]);
  const neverAsked = { ...manifest.archived!, at: new Date(0).toISOString() };
  expect(restorableRanges({ ...manifest, archived: neverAsked })[0]).toMatchObject({ toTime: time(10) });
  const withGap = { ...manifest, segments: manifest.segments.toSpliced(2, 1) };
  expect(restorableRanges(withGap).map(({ from, to }) => [from, to])).toEqual([
    [at(0), at(4)],
    [at(7), at(11)],
  ]);
  const withOther = {
    ...manifest,
    snapshots: [...manifest.snapshots, { ...first!, epoch: 'e2', position: at(20) }],
  };
  expect(restorableRanges(withOther).map(({ epoch, to }) => [epoch, to])).toEqual([
    ['e1', at(11)],
    ['e2', at(20)],
  ]);
});

test('what lies behind a gap is not in a file, and its position does not say so', async () => {
  await using fixture = await StoreFixture.open();
  await fixture.snapshot();
  await fixture.archiveWithGap(at(9));
  for (const [name, target] of Object.entries({ newest: 'newest', time: { time: time(3) } } as const))
    expect(await restored(fixture, target, `${name}.db`)).toMatchObject({ last: 3, lsn: at(3) });
  for (const lsn of [at(4), at(8)])
    await expect(restored(fixture, { lsn })).rejects.toMatchObject({ code: 'NOT_RESTORABLE' });
  const manifest = await fixture.read();
  const rebuilt = (lsn: Lsn) =>
    rebuildFile({
      store: fixture.store,
      manifest,
      snapshot: manifest.snapshots[0]!,
      file: join(fixture.directory.path, 'rebuilt.db'),
      target: { lsn },
      signal: new AbortController().signal,
      onProgress: () => undefined,
    });
  expect(await rebuilt(at(3))).toMatchObject({ position: at(3) });
  await expect(rebuilt(at(8))).rejects.toMatchObject({
    code: 'SNAPSHOT_CORRUPT',
    message: expect.stringContaining('what lies between that and 0/1600 is missing'),
  });
});

test('frames are cut before a transaction with its parts', () => {
  const part = partBatch(at(1), [insertItem(1)]).bytes;
  const end = batch(at(2), [], { hasParts: true }).bytes;
  const frames = Buffer.concat([tx(1), part, part, end, tx(3)]);
  const upTo = (lsn: Lsn) => cutFrames(frames, ({ endLsn }) => endLsn <= lsn);
  expect(upTo(at(1))).toEqual({ frames: tx(1), isOver: true });
  expect(upTo(at(2))).toEqual({ frames: Buffer.concat([tx(1), part, part, end]), isOver: true });
  expect(upTo(at(3))).toEqual({ frames, isOver: false });
  expect(upTo(0n)).toEqual({ frames: Buffer.alloc(0), isOver: true });
});
