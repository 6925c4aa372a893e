import type { Lsn } from '../lsn.ts';
import type { Retention } from './change-log.ts';

/** Followers that were away for longer start from a snapshot again. */
export const DEFAULT_RETENTION_MS = 24 * 60 * 60 * 1000;
export const DEFAULT_RETENTION_BYTES = 4 * 1024 ** 3;

/** How often a log is pruned, and the base file beside it brought forward if it is due. */
export const HOUSEKEEPING_INTERVAL_MS = 10_000;

/** What the decision needs to know of one batch. */
export interface BatchFacts {
  readonly seq: number;
  readonly endLsn: Lsn;
  /** Where the open parts begin that this batch continues, ends or aborts; its own number if it does not. */
  readonly firstSeq: number;
  readonly appendedAtMs: number;
  /** Bytes of all batches ever appended, up to and with this one. */
  readonly endOffset: number;
}

export interface PruneSituation {
  /** The oldest batches, in order, without gaps. */
  readonly oldest: readonly BatchFacts[];
  /** endOffset of the newest batch. */
  readonly endOffset: number;
  readonly nowMs: number;
}

/**
 * The last of the oldest batches that may go, or null. The cut never lies inside a transaction that came in
 * parts: a follower that begins behind the cut must find the whole of it. So a batch goes only together with
 * those that continue it, and the newest of `oldest` always stays, since what follows it is not known here.
 */
export function lastPrunable(situation: PruneSituation, retention: Retention): BatchFacts | null {
  const { oldest, nowMs } = situation;
  let last: BatchFacts | null = null;
  for (let index = 0; index + 1 < oldest.length; index++) {
    const batch = oldest[index]!;
    const isNeeded = batch.endLsn > retention.keepFrom;
    // Judged by what stays if it goes: a single batch larger than the limit is still kept for its followers.
    const isTooMuch = situation.endOffset - batch.endOffset >= retention.maxBytes;
    const isOld = nowMs - batch.appendedAtMs > retention.maxAgeMs;
    if (isNeeded || !(isOld || isTooMuch)) break;
    if (oldest[index + 1]!.firstSeq > batch.seq) last = batch;
  }
  return last;
}
