import { readdirSync, rmSync, utimesSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { Pruner, type PrunerOptions } from '../../src/snapshot/pruner.ts';
import { planRemoval } from '../../src/snapshot/retention.ts';
import { blobKey, putBlob } from '../../src/store/blob.ts';
import { downloadChunks } from '../../src/store/chunk-download.ts';
import { fetchChunkList } from '../../src/store/chunk-list.ts';
import type { Manifest, Segment, Snapshot } from '../../src/store/manifest.ts';
import { at, StoreFixture, tx } from './store-fixture.ts';

const HOUR = 3_600_000;
const NOW = Date.parse('2026-01-10T00:00:00Z');
const blob = { hash: 'a'.repeat(64), bytes: 1, storedBytes: 1 };

function snapshot(position: number, ageHours: number, epoch = 'e1'): Snapshot {
  return {
    epoch,
    position: BigInt(position),
    commitTime: null,
    takenAt: new Date(NOW - ageHours * HOUR).toISOString(),
    replicaVersion: 1,
    fileBytes: 1,
    pageBytes: 4096,
    storedBytes: 1,
    chunkList: { ...blob, hash: position.toString(16).padStart(64, '0') },
    verifiedAt: null,
  };
}

function segment(from: number, to: number, epoch = 'e1'): Segment {
  const time = '2026-01-01 00:00:00.000000Z';
  return {
    epoch,
    from: BigInt(from),
    to: BigInt(to),
    firstCommitTime: time,
    lastCommitTime: time,
    transactions: 1,
    frameVersion: 1,
    parts: [blob],
  };
}

function manifest(more: Partial<Manifest>): Manifest {
  return {
    sequence: 1,
    snapshotter: null,
    writer: { id: '00', generation: 1 },
    updatedAt: new Date(NOW).toISOString(),
    source: { systemIdentifier: '1', database: 'd' },
    archived: { epoch: 'e1', position: 1000n, at: new Date(NOW).toISOString() },
    resume: null,
    snapshots: [],
    segmentLists: [],
    segments: [],
    removed: [],
    ...more,
  };
}

describe('what retention takes out', () => {
  const plan = (value: Manifest, keepCount: number, keepAgeHours: number) => {
    const { snapshots, segments } = planRemoval(value, { keepCount, keepAgeMs: keepAgeHours * HOUR }, NOW);
    return {
      snapshots: snapshots.map(({ position }) => Number(position)),
      segments: segments.map(({ to }) => Number(to)),
    };
  };
  const row = [segment(0, 10), segment(10, 20), segment(20, 30), segment(30, 40), segment(40, 50)];

  test('keeps the newest, the young, and what the oldest kept moment is restored from', () => {
    const value = manifest({
      snapshots: [snapshot(10, 50), snapshot(20, 40), snapshot(30, 20), snapshot(40, 5)],
      segments: row,
    });
    // 24 hours ago is restored from the snapshot at 20.
    expect(plan(value, 1, 24)).toEqual({ snapshots: [10], segments: [10, 20] });
    expect(plan(value, 1, 0)).toEqual({ snapshots: [10, 20, 30], segments: [10, 20, 30, 40] });
    expect(plan(value, 3, 0)).toEqual({ snapshots: [10], segments: [10, 20] });
    expect(plan(value, 9, 0)).toEqual({ snapshots: [], segments: [10] });
  });

  test('the newest snapshot stays, however old it is', () => {
    const value = manifest({ snapshots: [snapshot(10, 500)], segments: row });
    expect(plan(value, 1, 1)).toEqual({ snapshots: [], segments: [10] });
  });

  test('segments of a history without a snapshot stay only while it is being written', () => {
    const value = manifest({
      archived: { epoch: 'e3', position: 10n, at: new Date(NOW).toISOString() },
      snapshots: [snapshot(10, 1, 'e2')],
      segments: [segment(0, 10, 'e1'), segment(0, 20, 'e2'), segment(0, 10, 'e3')],
    });
    expect(
      planRemoval(value, { keepCount: 1, keepAgeMs: 0 }, NOW).segments.map(({ epoch }) => epoch),
    ).toEqual(['e1']);
  });
});

describe('pruning a store', () => {
  const RETENTION = { keepCount: 1, keepAgeMs: 0 };
  const objects = (fixture: StoreFixture, kind: string): number =>
    readdirSync(fixture.path(kind), { recursive: true, withFileTypes: true }).filter((entry) =>
      entry.isFile(),
    ).length;

  function pruner(fixture: StoreFixture, more: Partial<PrunerOptions> = {}): Pruner {
    const { store, manifest: writer, snapshots } = fixture;
    return new Pruner({
      store,
      manifest: writer,
      snapshots,
      graceMs: 0,
      onWarning: (message) => fixture.warnings.push(message),
      ...more,
    });
  }

  async function filled(): Promise<StoreFixture> {
    const fixture = await StoreFixture.open();
    const segments = fixture.segments();
    for (let index = 1; index <= 3; index++) {
      fixture.apply(tx(index, 100));
      await fixture.snapshot();
      await segments.append(tx(index, 100));
      await segments.seal(null);
    }
    return fixture;
  }

  async function isWhole(fixture: StoreFixture, which: Snapshot): Promise<boolean> {
    const file = join(fixture.directory.path, `check-${which.position}`);
    rmSync(file, { force: true });
    const list = await fetchChunkList(fixture.store, which);
    return (await downloadChunks({ store: fixture.store, list, file })).downloadedBytes === which.fileBytes;
  }

  test('deletes what only the removed named, once the kept one has been read back', async () => {
    await using fixture = await filled();
    const before = objects(fixture, 'chunks');
    expect(await pruner(fixture).prune(RETENTION)).toEqual({
      removedSnapshots: 2,
      removedSegments: 3,
      deletedObjects: expect.any(Number),
    });
    const { snapshots, segments, removed } = await fixture.read();
    expect(snapshots).toMatchObject([{ position: at(3), verifiedAt: expect.any(String) }]);
    expect([segments, removed]).toEqual([[], []]);
    expect(objects(fixture, 'chunks')).toBeLessThan(before);
    expect(objects(fixture, 'chunks')).toBe(
      (await fetchChunkList(fixture.store, snapshots[0]!)).chunks.length,
    );
    expect([objects(fixture, 'lists'), objects(fixture, 'segments')]).toEqual([1, 0]);
    expect(await isWhole(fixture, snapshots[0]!)).toBe(true);
    expect(await pruner(fixture).prune(RETENTION)).toEqual({
      removedSnapshots: 0,
      removedSegments: 0,
      deletedObjects: 0,
    });
  });

  test('what was taken out stays for whoever is reading it, until its time is over', async () => {
    await using fixture = await filled();
    const [oldest] = (await fixture.read()).snapshots;
    let nowMs = Date.now();
    const patient = pruner(fixture, { graceMs: HOUR, nowMs: () => nowMs });
    expect(await patient.prune(RETENTION)).toMatchObject({ removedSnapshots: 2, deletedObjects: 0 });
    expect((await fixture.read()).snapshots).toHaveLength(1);
    expect(await isWhole(fixture, oldest!)).toBe(true);
    nowMs += HOUR + 1;
    const { deletedObjects } = await patient.prune(RETENTION);
    expect(deletedObjects).toBeGreaterThan(2);
    await expect(isWhole(fixture, oldest!)).rejects.toMatchObject({ code: 'SNAPSHOT_CORRUPT' });
  });

  test('nothing goes while the one to be kept is damaged', async () => {
    await using fixture = await filled();
    const { snapshots } = await fixture.read();
    const list = await fetchChunkList(fixture.store, snapshots[2]!);
    writeFileSync(fixture.path(blobKey('chunks', list.chunks.at(-1)![0])), 'damaged');
    const before = objects(fixture, 'chunks');
    await expect(pruner(fixture).prune(RETENTION)).rejects.toMatchObject({ code: 'SNAPSHOT_CORRUPT' });
    expect((await fixture.read()).snapshots).toHaveLength(3);
    expect(objects(fixture, 'chunks')).toBe(before);
  });

  test('a snapshot under way that relies on one being deleted sends everything again', async () => {
    await using fixture = await filled();
    fixture.apply(tx(4));
    // While the new one is uploaded, another process removes what it builds on.
    const [, , base] = (await fixture.read()).snapshots;
    const put = fixture.store.put.bind(fixture.store);
    let hasPruned = false;
    fixture.store.put = async (key, bytes, options) => {
      if (!hasPruned && key.startsWith('chunks/')) {
        hasPruned = true;
        await fixture.manifest.update((value) => ({
          ...value,
          snapshots: [],
          removed: [
            ...value.removed,
            {
              at: new Date(0).toISOString(),
              isDeleting: false,
              snapshots: value.snapshots,
              segmentLists: [],
              segments: [],
            },
          ],
        }));
        await pruner(fixture).prune(RETENTION);
      }
      return put(key, bytes, options);
    };
    const { snapshot: taken } = await fixture.snapshot();
    expect(hasPruned).toBe(true);
    expect(taken.position).toBe(at(4));
    expect(await isWhole(fixture, taken)).toBe(true);
    await expect(isWhole(fixture, base!)).rejects.toMatchObject({ code: 'SNAPSHOT_CORRUPT' });
  });

  test('a list that cannot be read keeps everything that it might name', async () => {
    await using fixture = await filled();
    const { snapshots } = await fixture.read();
    const before = objects(fixture, 'chunks');
    rmSync(fixture.path(blobKey('lists', snapshots[1]!.chunkList.hash)));
    // Kept, and unreadable: nobody knows what it needs.
    await pruner(fixture).prune({ keepCount: 2, keepAgeMs: 0 });
    expect(objects(fixture, 'chunks')).toBe(before);
    expect(fixture.warnings.join()).toMatch(/is missing/);
  });

  test('leftovers of killed writers go once they are a day old', async () => {
    await using fixture = await filled();
    const named = objects(fixture, 'chunks');
    const old = await putBlob(fixture.store, 'chunks', Buffer.from('old'));
    await putBlob(fixture.store, 'chunks', Buffer.from('young'));
    utimesSync(fixture.path(blobKey('chunks', old.hash)), 0, 0);
    expect(await pruner(fixture).sweep()).toBe(1);
    expect(objects(fixture, 'chunks')).toBe(named + 1);
    for (const each of (await fixture.read()).snapshots) expect(await isWhole(fixture, each)).toBe(true);
  });
});
