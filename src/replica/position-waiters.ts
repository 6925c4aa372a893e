import { ConfigError, RivuletError } from '../errors.ts';
import { formatLsn, type Lsn } from '../lsn.ts';
import { decodeToken, type Position, seenLsn, type TokenKeys } from '../token.ts';
import { type HeapEntry, WaiterHeap } from './waiter-heap.ts';

export const DEFAULT_WAIT_TIMEOUT_MS = 30_000;

/** A day: what nobody sits through, and far below where a timer overflows and fires at once. */
const LONGEST_TIMEOUT_MS = 24 * 60 * 60 * 1000;

/** About 100 MB of them; more are more likely a mistake, or an attack, than readers. */
export const DEFAULT_MAX_WAITERS = 100_000;

/** A token this far ahead of the file is of no server: at a GB per second it would take most of a day. */
const FARTHEST_AHEAD_BYTES = 1n << 46n;

/**
 * What to wait for: a token, what a token carries, or a position of whatever epoch the file is of. Null, which stands
 * for a token where nothing was written: nothing.
 */
export type WaitTarget = string | Position | Lsn | null;

export interface WaitOptions {
  /** Default: 30 s. */
  readonly timeoutMs?: number | undefined;
  readonly signal?: AbortSignal | undefined;
}

export interface PositionWaitersOptions {
  readonly current: () => Position;
  readonly tokenKeys?: TokenKeys | undefined;
  readonly maxWaiters?: number | undefined;
  /** Somebody has begun to wait. */
  readonly onWait?: () => void;
  /** What keeps the file from going on, if it is known; said at the timeout. */
  readonly obstacle?: () => RivuletError | null;
}

interface Waiter extends HeapEntry {
  readonly lsn: Lsn;
  readonly seen: Lsn;
  readonly epoch: string | null;
  end(error: unknown): void;
}

/** Those who wait for a position of one file, each woken by the apply that brings it. */
export class PositionWaiters {
  readonly #options: PositionWaitersOptions;
  readonly #waiting = new WaiterHeap<Waiter>(({ lsn }) => lsn);
  /** The file has their position, and yet to come to what they were shown. */
  readonly #shown = new WaiterHeap<Waiter>(({ seen }) => seen);
  #closed: RivuletError | null = null;

  constructor(options: PositionWaitersOptions) {
    this.#options = options;
  }

  get size(): number {
    return this.#waiting.size + this.#shown.size;
  }

  /**
   * Resolves once the file contains everything up to the target. Rejects at once with TOKEN_MALFORMED,
   * TOKEN_FORGED or TOKEN_IMPOSSIBLE, EPOCH_MISMATCH (also when the file is replaced by one of another epoch),
   * TOO_MANY_WAITERS or CLOSED; later with WAIT_TIMEOUT or the signal's reason.
   */
  async waitFor(target: WaitTarget, options: WaitOptions = {}): Promise<void> {
    const { signal, timeoutMs = DEFAULT_WAIT_TIMEOUT_MS } = options;
    if (!(timeoutMs >= 0 && timeoutMs <= LONGEST_TIMEOUT_MS))
      throw new ConfigError(`timeoutMs must be a number of milliseconds from 0 to ${LONGEST_TIMEOUT_MS}`);
    if (target === null) return;
    const { epoch, lsn, seen } = this.#resolve(target);
    const current = this.#options.current();
    const isThere = lsn <= current.lsn && seen <= seenLsn(current);
    if (this.#closed !== null && !(isThere && (epoch === null || epoch === current.epoch)))
      throw this.#closed;
    if (epoch !== null) checkSameHistory({ epoch, lsn: seen }, current);
    if (isThere) return;
    signal?.throwIfAborted();
    if (timeoutMs === 0) throw this.#timeout(lsn, timeoutMs);
    const { maxWaiters = DEFAULT_MAX_WAITERS } = this.#options;
    if (this.size >= maxWaiters) {
      throw new RivuletError('TOO_MANY_WAITERS', `${maxWaiters} readers wait already`, {
        hint: 'the file is far behind, or is made to wait for what does not come: see its lag',
      });
    }
    const waiting = new Promise<void>((resolve, reject) => {
      const onAbort = (): void => waiter.end(signal?.reason);
      const waiter: Waiter = {
        lsn,
        seen,
        epoch,
        at: -1,
        end: (error) => {
          clearTimeout(timer);
          signal?.removeEventListener('abort', onAbort);
          this.#waiting.remove(waiter);
          this.#shown.remove(waiter);
          if (error === null) resolve();
          else reject(error);
        },
      };
      const timer = setTimeout(() => waiter.end(this.#timeout(lsn, timeoutMs)), timeoutMs);
      signal?.addEventListener('abort', onAbort, { once: true });
      this.#waiting.add(waiter);
    });
    this.#options.onWait?.();
    await waiting;
  }

  /** The file has moved, or is another one. */
  moved(): void {
    const waiting = this.#waiting;
    if (this.size === 0) return;
    const current = this.#options.current();
    const seen = seenLsn(current);
    for (let first = waiting.first; first !== undefined && first.lsn <= current.lsn; first = waiting.first) {
      if (first.epoch !== null && first.epoch !== current.epoch) first.end(mismatch(first.epoch, current));
      else if (first.seen <= seen) first.end(null);
      else {
        waiting.remove(first);
        this.#shown.add(first);
      }
    }
    const shown = this.#shown;
    for (let first = shown.first; first !== undefined && first.seen <= seen; first = shown.first)
      first.end(null);
  }

  /** The file is one of another history: whoever waits for a position of the one before waits in vain. */
  entered(): void {
    const current = this.#options.current();
    for (const waiter of [...this.#waiting.entries(), ...this.#shown.entries()]) {
      if (waiter.epoch !== null && waiter.epoch !== current.epoch)
        waiter.end(mismatch(waiter.epoch, current));
    }
    this.moved();
  }

  /** Ends every wait, and those that begin later, with this. */
  close(error: RivuletError): void {
    this.#closed ??= error;
    for (const waiter of [...this.#waiting.entries(), ...this.#shown.entries()]) waiter.end(error);
  }

  #resolve(target: NonNullable<WaitTarget>): {
    readonly epoch: string | null;
    readonly lsn: Lsn;
    readonly seen: Lsn;
  } {
    if (typeof target === 'bigint') return { epoch: null, lsn: target, seen: target };
    const position = isPosition(target) ? target : decodeToken(target, this.#options.tokenKeys);
    return { epoch: position.epoch, lsn: position.lsn, seen: seenLsn(position) };
  }

  #timeout(lsn: Lsn, timeoutMs: number): RivuletError {
    const position = this.#options.current().lsn;
    const obstacle = this.#options.obstacle?.() ?? null;
    return new RivuletError(
      'WAIT_TIMEOUT',
      `after ${timeoutMs} ms the file is at ${formatLsn(position)}, before ${formatLsn(lsn)}`,
      {
        ...(obstacle === null ? {} : { cause: obstacle, hint: obstacle.message }),
        facts: { lsn, position },
      },
    );
  }
}

/** Of what may come from a program without types. */
function isPosition(target: string | Position): target is Position {
  const { epoch, lsn, seen } = Object(target) as Partial<Position>;
  return (
    typeof epoch === 'string' && typeof lsn === 'bigint' && ['undefined', 'bigint'].includes(typeof seen)
  );
}

function checkSameHistory(wanted: Position, current: Position): void {
  if (wanted.epoch !== current.epoch) throw mismatch(wanted.epoch, current);
  if (wanted.lsn - current.lsn <= FARTHEST_AHEAD_BYTES) return;
  throw new RivuletError('TOKEN_IMPOSSIBLE', `${formatLsn(wanted.lsn)} is where no server can have come`, {
    hint: 'pass on a token as it was given; signed tokens cannot be made up',
    facts: { position: current.lsn },
  });
}

function mismatch(wanted: string, current: Position): RivuletError {
  return new RivuletError(
    'EPOCH_MISMATCH',
    'the token is of another history than this file: of another database, or from before or after a new copy was made',
    {
      hint: 'read from Postgres, or take a new token there',
      facts: { token: wanted, file: current.epoch },
    },
  );
}
