import type { Lsn } from '../lsn.ts';
import { formatCommitTime } from '../replica/schema.ts';
import type { Manifest, Segment, SegmentList, Snapshot } from '../store/manifest.ts';

/** Positions of one history that can be restored, without a gap between. */
export interface RestorableRange {
  readonly epoch: string;
  readonly from: Lsn;
  readonly to: Lsn;
  /** Commit time of the newest transaction at `from`; null if there was none yet. */
  readonly fromTime: string | null;
  /**
   * All that was committed up to then is in the range: commit time of the newest transaction in it, or, of the newest
   * history, the later moment at which there was nothing more. Null if neither is known.
   */
  readonly toTime: string | null;
  readonly snapshots: readonly Snapshot[];
}

type Span = Pick<Segment | SegmentList, 'epoch' | 'from' | 'to' | 'lastCommitTime'>;

/** What the manifest leads to, oldest history first. Pure. */
export function restorableRanges(manifest: Manifest): readonly RestorableRange[] {
  const ranges: RestorableRange[] = [];
  const spans: readonly Span[] = [...manifest.segmentLists, ...manifest.segments];
  for (const snapshot of manifest.snapshots) {
    const last = ranges.at(-1);
    if (last !== undefined && last.epoch === snapshot.epoch && snapshot.position <= last.to) {
      ranges[ranges.length - 1] = { ...last, snapshots: [...last.snapshots, snapshot] };
      continue;
    }
    const { epoch, position, commitTime } = snapshot;
    let to = position;
    let toTime = commitTime;
    for (const span of spans) {
      if (span.epoch !== epoch || span.to <= to) continue;
      if (span.from > to) break;
      to = span.to;
      if (toTime === null || span.lastCommitTime > toTime) toTime = span.lastCommitTime;
    }
    // Behind the last segment there may be positions without anything in them.
    const { archived } = manifest;
    const isHead = !spans.some((span) => span.epoch === epoch && span.to > to);
    if (isHead && archived?.epoch === epoch) {
      if (archived.position > to) to = archived.position;
      const atMs = Date.parse(archived.at);
      const headTime = atMs > 0 ? formatCommitTime(BigInt(atMs) * 1000n) : null;
      if (headTime !== null && (toTime === null || headTime > toTime)) toTime = headTime;
    }
    ranges.push({ epoch, from: position, to, fromTime: commitTime, toTime, snapshots: [snapshot] });
  }
  return ranges;
}

/** Whether the segments lead from a snapshot to a position of its history. Pure. */
export function leadsTo(
  manifest: Manifest,
  { epoch, position }: Pick<Snapshot, 'epoch' | 'position'>,
  to: Lsn,
): boolean {
  let reached = position;
  for (const segment of [...manifest.segmentLists, ...manifest.segments]) {
    if (segment.epoch !== epoch || segment.to <= reached) continue;
    if (segment.from > reached) return false;
    reached = segment.to;
  }
  // Behind the last segment there may be positions without anything in them.
  return reached >= to || manifest.archived?.position === to;
}
