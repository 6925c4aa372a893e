import type { RivuletError } from '../errors.ts';
import type { Lsn } from '../lsn.ts';
import { backoffMs, START_OVER } from './backoff.ts';

/** A history that is given up sooner than this did not last: the pauses before the next ones grow. */
const LASTING_EPOCH_MS = 60_000;

/** A connection that held for so long is a good one, even if the database was too quiet to show it. */
const LASTING_CONNECTION_MS = 10_000;

/**
 * How long the replicator waits before it tries again. It is told what happens, and remembers what makes one
 * failure the next of a row: that a stream begins says little, since what cannot be stored, or understood, comes
 * again each time; only a position that moved, or a connection that held, ends the row.
 */
export class RetryPause {
  readonly #now: () => number;
  readonly #random: () => number;
  #failures = 0;
  /** Histories in a row that did not last. */
  #shortEpochs = 0;
  #epochBeganAtMs = Number.NEGATIVE_INFINITY;
  #position: Lsn | null = null;
  /** Since when the present connection streams; null until it does. */
  #streamingSinceMs: number | null = null;

  constructor(options: { readonly now?: () => number; readonly random?: () => number } = {}) {
    this.#now = options.now ?? (() => performance.now());
    this.#random = options.random ?? Math.random;
  }

  /** Failures in a row, the last one included. */
  get failures(): number {
    return this.#failures;
  }

  connecting(position: Lsn | null): void {
    this.#position = position;
    this.#streamingSinceMs = null;
  }

  streaming(): void {
    this.#streamingSinceMs = this.#now();
  }

  epochBegan(): void {
    this.#epochBeganAtMs = this.#now();
  }

  /** The pause after `failure`, ms. `position` is the log's as the failure left it. */
  after(failure: RivuletError, position: Lsn | null): number {
    const now = this.#now();
    const since = this.#streamingSinceMs;
    if (since !== null && (now - since > LASTING_CONNECTION_MS || position !== this.#position))
      this.#failures = 0;
    const pauseMs = backoffMs(this.#failures++, undefined, this.#random);
    if (failure.recovery !== 'resnapshot') return pauseMs;
    this.#shortEpochs = now - this.#epochBeganAtMs < LASTING_EPOCH_MS ? this.#shortEpochs + 1 : 0;
    if (this.#shortEpochs === 0) return pauseMs;
    return backoffMs(this.#shortEpochs - 1, START_OVER, this.#random);
  }
}
