import { isSameSnapshot, type Manifest, type Snapshot } from '../store/manifest.ts';

/** What may be restored, and for how long. */
export interface SnapshotRetention {
  /** So many of the newest snapshots always stay. */
  readonly keepCount: number;
  /** Any position of the last so many ms can be restored. */
  readonly keepAgeMs: number;
}

export const DEFAULT_SNAPSHOT_RETENTION: SnapshotRetention = {
  keepCount: 3,
  keepAgeMs: 24 * 60 * 60 * 1000,
};

export type Removable = Pick<Manifest, 'snapshots' | 'segmentLists' | 'segments'>;

/**
 * What retention no longer asks for; pure. A snapshot stays if it is one of the newest, young enough, or the one
 * that the oldest moment of the kept time is restored from. Segments stay from the oldest kept snapshot of their
 * epoch on; those of an epoch without a snapshot only while it is the one that is being written.
 */
export function planRemoval(manifest: Manifest, retention: SnapshotRetention, nowMs: number): Removable {
  const kept = new Set<Snapshot>(manifest.snapshots.slice(-Math.max(1, retention.keepCount)));
  const oldestMs = nowMs - retention.keepAgeMs;
  for (const snapshot of manifest.snapshots) if (Date.parse(snapshot.takenAt) >= oldestMs) kept.add(snapshot);
  const basis = manifest.snapshots.findLast(({ takenAt }) => Date.parse(takenAt) < oldestMs);
  if (basis !== undefined) kept.add(basis);
  const isNeeded = ({ epoch, to }: { readonly epoch: string; readonly to: bigint }): boolean => {
    const ofEpoch = [...kept].filter((snapshot) => snapshot.epoch === epoch);
    if (ofEpoch.length === 0) return manifest.archived?.epoch === epoch;
    return ofEpoch.some(({ position }) => to > position);
  };
  return {
    snapshots: manifest.snapshots.filter((snapshot) => !kept.has(snapshot)),
    segmentLists: manifest.segmentLists.filter((list) => !isNeeded(list)),
    segments: manifest.segments.filter((segment) => !isNeeded(segment)),
  };
}

export function isNothing({ snapshots, segmentLists, segments }: Removable): boolean {
  return snapshots.length === 0 && segmentLists.length === 0 && segments.length === 0;
}

/** The manifest with these taken out into `removed`. */
export function withRemoval(manifest: Manifest, removable: Removable, nowMs: number): Manifest {
  const { snapshots, segmentLists, segments } = removable;
  return {
    ...manifest,
    snapshots: manifest.snapshots.filter((each) => !snapshots.some((gone) => isSameSnapshot(gone, each))),
    segmentLists: manifest.segmentLists.filter((each) => !segmentLists.includes(each)),
    segments: manifest.segments.filter((each) => !segments.includes(each)),
    removed: [
      ...manifest.removed,
      { at: new Date(nowMs).toISOString(), isDeleting: false, snapshots, segmentLists, segments },
    ],
  };
}
