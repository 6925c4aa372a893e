import { rmSync } from 'node:fs';
import type Database from 'better-sqlite3';
import { positionFrame, type TransactionHeader } from '../change/frame.ts';
import { RivuletError } from '../errors.ts';
import { formatLsn, type Lsn } from '../lsn.ts';
import { Applier } from '../replica/applier.ts';
import { openReplicaFile } from '../replica/replica-file.ts';
import { formatCommitTime, REPLICA_FORMAT_VERSION } from '../replica/schema.ts';
import { downloadChunks } from '../store/chunk-download.ts';
import { fetchChunkList } from '../store/chunk-list.ts';
import { describeSnapshot, type Manifest, type Snapshot } from '../store/manifest.ts';
import type { ObjectStore } from '../store/object-store.ts';
import { readSegment, segmentsBehind } from '../store/segments.ts';
import { cutFrames } from './frame-cut.ts';

/** Everything up to a position; everything before the first transaction that committed later; or all there is. */
export type RestoreTarget =
  | { readonly lsn: Lsn }
  /** `2026-11-21 03:00:00.123456Z` */
  | { readonly time: string }
  | 'newest';

export interface RebuildOptions {
  readonly store: ObjectStore;
  readonly manifest: Manifest;
  readonly snapshot: Snapshot;
  /** Where the file goes. What an earlier attempt left there is used as far as it is right. */
  readonly file: string;
  readonly target: RestoreTarget;
  readonly signal: AbortSignal;
  readonly onProgress: (progress: {
    readonly step: 'downloading' | 'applying';
    readonly bytes: number;
    readonly totalBytes: number;
  }) => void;
  /** Last work on the file. Throws to refuse it as it is. */
  readonly finish?: (db: Database.Database, applier: Applier) => void;
}

export interface RebuildReport {
  readonly epoch: string;
  readonly position: Lsn;
  /** Commit time of the newest transaction in it; null if there is none. */
  readonly commitTime: string | null;
  readonly snapshot: Lsn;
  readonly downloadedBytes: number;
  /** Of segments, uncompressed. */
  readonly appliedBytes: number;
}

/**
 * A replica file of one moment, from a snapshot before it and the segments between; whole, without a WAL. Throws
 * SNAPSHOT_CORRUPT where something of that is damaged, or the segments have a gap before the position asked for.
 */
export async function rebuildFile(options: RebuildOptions): Promise<RebuildReport> {
  const { store, snapshot, file, signal, onProgress, finish } = options;
  if (snapshot.replicaVersion > REPLICA_FORMAT_VERSION) {
    throw new RivuletError(
      'VERSION_MISMATCH',
      `the snapshot at ${describeSnapshot(snapshot)} holds a replica of format version ${snapshot.replicaVersion}, this program knows ${REPLICA_FORMAT_VERSION}`,
      { hint: 'use the version of rivulet that wrote it, or a newer one' },
    );
  }
  // The WAL of an attempt that got further would be replayed into this one.
  for (const suffix of ['-wal', '-shm', '-journal']) rmSync(`${file}${suffix}`, { force: true });
  const list = await fetchChunkList(store, snapshot, { signal });
  const { downloadedBytes } = await downloadChunks({
    store,
    list,
    file,
    signal,
    onProgress: (progress) => onProgress({ step: 'downloading', ...progress }),
  });
  const db = openReplicaFile(file);
  try {
    // One process, one connection: nothing has to survive before the end.
    db.pragma('wal_autocheckpoint = 4000');
    const applier = new Applier(db);
    const appliedBytes = await applyUpTo(applier, options);
    finish?.(db, applier);
    const commitTime =
      db.prepare<[], string | null>('SELECT commit_time FROM _rivulet_position').pluck().get() ?? null;
    db.pragma('wal_checkpoint(TRUNCATE)');
    const { epoch, position } = applier;
    return { epoch, position, commitTime, snapshot: snapshot.position, downloadedBytes, appliedBytes };
  } finally {
    db.close();
  }
}

async function applyUpTo(applier: Applier, options: RebuildOptions): Promise<number> {
  const { store, target, signal, onProgress, snapshot, manifest } = options;
  const row = await segmentsBehind(store, manifest, snapshot, { signal });
  const reached = row.at(-1)?.to ?? snapshot.position;
  const behindGap = [...manifest.segmentLists, ...manifest.segments].find(
    (each) => each.epoch === snapshot.epoch && each.to > reached,
  );
  if (behindGap !== undefined && target !== 'newest' && 'lsn' in target && behindGap.from < target.lsn) {
    throw new RivuletError(
      'SNAPSHOT_CORRUPT',
      `the segments in ${store.url} lead from ${formatLsn(snapshot.position)} to ${formatLsn(reached)} only: what lies between that and ${formatLsn(behindGap.from)} is missing`,
    );
  }
  const wanted = wantedBy(target);
  const needed = row.filter(
    (segment) => target === 'newest' || !('lsn' in target) || segment.from < target.lsn,
  );
  const totalBytes = needed.flatMap(({ parts }) => parts).reduce((sum, { bytes }) => sum + bytes, 0);
  let bytes = 0;
  let isOver = false;
  for (const segment of needed) {
    for await (const part of readSegment(store, segment, { signal })) {
      signal.throwIfAborted();
      const cut = cutFrames(part, wanted);
      applier.apply(cut.frames);
      bytes += cut.frames.length;
      onProgress({ step: 'applying', bytes, totalBytes });
      isOver = cut.isOver;
      if (isOver) break;
    }
    if (isOver) break;
  }
  // Parts of the transaction that is not wanted.
  applier.abandonParts();
  const isWhole = !isOver && behindGap === undefined;
  const to = endPosition(target, isWhole, manifest, snapshot.epoch);
  if (to !== null && to > applier.position) applier.apply(positionFrame(to, 0n));
  return bytes;
}

function wantedBy(target: RestoreTarget): (header: TransactionHeader) => boolean {
  if (target === 'newest') return () => true;
  if ('lsn' in target) return ({ endLsn }) => endLsn <= target.lsn;
  return ({ commitTimeUs }) => formatCommitTime(commitTimeUs) <= target.time;
}

/**
 * The position of the restored file where nothing lies between its last transaction and that. `isWhole`: it holds all
 * that the store has of this epoch.
 */
function endPosition(target: RestoreTarget, isWhole: boolean, manifest: Manifest, epoch: string): Lsn | null {
  if (target !== 'newest' && 'lsn' in target) return target.lsn;
  return isWhole && manifest.archived?.epoch === epoch ? manifest.archived.position : null;
}
