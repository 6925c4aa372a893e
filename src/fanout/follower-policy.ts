import { RivuletError } from '../errors.ts';
import { formatLsn, type Lsn } from '../lsn.ts';

/** What one follower may leave unread before it is cut to catch-up: some seconds of a busy database. */
export const DEFAULT_BUFFER_LIMIT_BYTES = 4 * 1024 * 1024;

/**
 * What all of them together may. What live followers are sent is shared, and counts once; what one that catches up
 * is sent is its own.
 */
export const DEFAULT_TOTAL_BUFFER_BYTES = 64 * 1024 * 1024;

const LEAST_BUFFER_LIMIT_BYTES = 128 * 1024;

/** A follower that reads nothing for so long has lost its machine or its mind; it can come back by itself. */
export const DEFAULT_STALL_LIMIT_MS = 60_000;

/** A follower ahead of a log that was cut short by a power failure is given this long until Postgres has sent it again. */
export const DEFAULT_AHEAD_GRACE_MS = 10_000;

/** A round through some twenty followers takes less than this; a timer would cost more than it spares. */
const CHEAP_ROUND_MS = 0.15;
/** A round waits for so many times what the last one took: they take two fifths of the thread, at most. */
const PAUSE_OF_ROUND = 1.5;
const MAX_ROUND_DELAY_MS = 25;

const LEAST_CHUNK_BYTES = 32 * 1024;
const MAX_CHUNK_BYTES = 256 * 1024;

/** Reports of a thousand followers a second would take a tenth of the thread; so they come at this distance. */
const REPORT_SPACING_MS = 10;

/** How much may wait in one live follower's buffer, with so many followers connected. */
export function bufferLimitBytes(
  followers: number,
  limits: { readonly bufferLimitBytes: number; readonly totalBufferBytes: number },
): number {
  const limit = limits.bufferLimitBytes;
  return Math.max(
    Math.min(limit, LEAST_BUFFER_LIMIT_BYTES),
    Math.min(limit, Math.floor(limits.totalBufferBytes / Math.max(1, followers))),
  );
}

/**
 * How long to gather batches before the next round of writes, ms. A round is one write to each follower's socket,
 * which costs some microseconds whatever is in it. With few followers nothing waits. With a thousand a round takes
 * milliseconds: what is published meanwhile, and in the pause behind it, goes out in the next. A batch that comes
 * when there was none for a while is sent at once, however many they are.
 */
export function roundDelayMs(round: { readonly tookMs: number; readonly endedAgoMs: number }): number {
  if (round.tookMs < CHEAP_ROUND_MS) return 0;
  return Math.max(0, Math.min(PAUSE_OF_ROUND * round.tookMs, MAX_ROUND_DELAY_MS) - round.endedAgoMs);
}

/** How much of the log one follower that catches up is given in one go. */
export function chunkBytes(followers: number, totalBufferBytes: number): number {
  const share = totalBufferBytes / (4 * Math.max(1, followers));
  return Math.max(LEAST_CHUNK_BYTES, Math.min(MAX_CHUNK_BYTES, Math.floor(share)));
}

/** How often each of so many followers should report, ms. */
export function reportIntervalMs(followers: number, leastMs: number): number {
  return Math.max(leastMs, followers * REPORT_SPACING_MS);
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
  /** How long a follower ahead of the log is asked for patience, from the begin of streaming on. */
  readonly aheadGraceMs: number;
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
  // was not told to forget these transactions and sends them again. Ahead of a relay is whoever comes from a faster
  // one, or from the replicator itself.
  if (log.streamingForMs === null || log.streamingForMs < log.aheadGraceMs) {
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
