import { RivuletError } from '../errors.ts';
import { formatLsn, type Lsn } from '../lsn.ts';

/** What one follower may leave unread before it is cut to catch-up: some seconds of a busy database. */
export const DEFAULT_BUFFER_LIMIT_BYTES = 4 * 1024 * 1024;

/** What all of them together may: buffers are shared, so this is reached only by many that stall at different times. */
export const TOTAL_BUFFER_BYTES = 64 * 1024 * 1024;

const LEAST_BUFFER_LIMIT_BYTES = 128 * 1024;

/** A follower that reads nothing for so long has lost its machine or its mind; it can come back by itself. */
export const DEFAULT_STALL_LIMIT_MS = 60_000;

/** A follower ahead of a log that was cut short by a power failure is given this long until Postgres has sent it again. */
export const AHEAD_GRACE_MS = 10_000;

/** Rounds through all followers that take less than this never wait for each other. */
const CHEAP_ROUND_MS = 1;

/** How much may wait in one live follower's buffer, with so many followers connected. */
export function bufferLimitBytes(followers: number, limit: number): number {
  return Math.max(
    Math.min(limit, LEAST_BUFFER_LIMIT_BYTES),
    Math.min(limit, Math.floor(TOTAL_BUFFER_BYTES / Math.max(1, followers))),
  );
}

/**
 * How long to gather batches before the next round of writes, ms. With few followers a round costs
 * microseconds and nothing waits. With a thousand it costs milliseconds, and half of this thread's time is
 * left to whoever feeds it.
 */
export function roundDelayMs(round: { readonly tookMs: number; readonly endedAgoMs: number }): number {
  if (round.tookMs < CHEAP_ROUND_MS) return 0;
  return Math.max(0, Math.min(round.tookMs, 50) - round.endedAgoMs);
}

export interface Progress {
  /** Bytes that left our buffer so far, and when that last grew. */
  readonly sentBytes: number;
  readonly atMs: number;
}

/** The follower's progress now; one with nothing in its buffer is never late. */
export function nextProgress(
  before: Progress,
  now: { readonly sentBytes: number; readonly bufferedBytes: number; readonly nowMs: number },
): Progress {
  if (now.sentBytes === before.sentBytes && now.bufferedBytes > 0) return before;
  return { sentBytes: now.sentBytes, atMs: now.nowMs };
}

export function isStalled(progress: Progress, nowMs: number, limitMs: number): boolean {
  return nowMs - progress.atMs > limitMs;
}

export interface LogState {
  readonly epoch: string;
  readonly position: Lsn;
  readonly oldestPosition: Lsn;
  /** For how long Postgres has been streaming into this log without a break, ms; null while it is not. */
  readonly streamingForMs: number | null;
}

/** Why a follower at `position` of `epoch` cannot be served; null if it can. */
export function refusal(
  follower: { readonly epoch: string; readonly position: Lsn },
  log: LogState,
): RivuletError | null {
  const { epoch, position } = follower;
  if (epoch !== log.epoch) {
    return new RivuletError(
      'EPOCH_MISMATCH',
      `the file is of epoch ${epoch}, the log of epoch ${log.epoch}`,
      {
        hint: 'the replicator has begun a new history; the follower starts from its snapshot',
      },
    );
  }
  if (position < log.oldestPosition) {
    return new RivuletError(
      'POSITION_TOO_OLD',
      `the log begins at ${formatLsn(log.oldestPosition)}, the file is at ${formatLsn(position)}`,
      {
        hint: 'the follower was away for longer than the log is kept (--retain-age, --retain-size); it starts from a snapshot',
      },
    );
  }
  if (position <= log.position) return null;
  // Frames go out before the log is synced, so after a power failure a follower can be ahead of it. Postgres
  // was not told to forget these transactions and sends them again.
  if (log.streamingForMs === null || log.streamingForMs < AHEAD_GRACE_MS) {
    return new RivuletError(
      'NOT_READY',
      `the log is at ${formatLsn(log.position)} and has yet to reach ${formatLsn(position)} again`,
    );
  }
  return new RivuletError(
    'POSITION_AHEAD',
    `the log ends at ${formatLsn(log.position)}, the file is at ${formatLsn(position)}`,
  );
}
