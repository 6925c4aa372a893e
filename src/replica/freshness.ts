import { RivuletError } from '../errors.ts';

interface Reader {
  readonly maxLagMs: number;
  end(error: unknown): void;
}

/** Milliseconds of a clock that never jumps and is the same in every thread of this process. */
export function monotonicMs(): number {
  return Number(process.hrtime.bigint()) / 1e6;
}

/**
 * Until when a file is known to hold everything. Two things tell: a transaction that was applied (everything that
 * was committed before it is there), and the replicator, which says once a second, or when asked, that Postgres
 * has sent no more. So the bound of a quiet file grows to about a second and falls back.
 */
export class Freshness {
  readonly #readers = new Set<Reader>();
  #knownAtMs: number | null = null;
  #closed: RivuletError | null = null;

  /** The file holds everything that was committed before this moment of monotonicMs(). */
  knownAt(atMs: number): void {
    if (this.#knownAtMs !== null && atMs <= this.#knownAtMs) return;
    this.#knownAtMs = atMs;
    if (this.#readers.size === 0) return;
    const boundMs = this.boundMs!;
    for (const reader of this.#readers) if (boundMs <= reader.maxLagMs) reader.end(null);
  }

  /** The file lacks nothing that was committed longer ago than this, ms; null while nothing is known. */
  get boundMs(): number | null {
    return this.#knownAtMs === null ? null : Math.max(0, monotonicMs() - this.#knownAtMs);
  }

  /** Resolves once the bound is at most `maxLagMs`; rejects with TOO_STALE, the signal's reason, or CLOSED. */
  async waitFor(
    maxLagMs: number,
    options: { readonly timeoutMs: number; readonly signal?: AbortSignal | undefined },
  ): Promise<void> {
    const { timeoutMs, signal } = options;
    const { boundMs } = this;
    if (boundMs !== null && boundMs <= maxLagMs) return;
    if (this.#closed !== null) throw this.#closed;
    signal?.throwIfAborted();
    await new Promise<void>((resolve, reject) => {
      const onAbort = (): void => reader.end(signal?.reason);
      const reader: Reader = {
        maxLagMs,
        end: (error) => {
          clearTimeout(timer);
          signal?.removeEventListener('abort', onAbort);
          this.#readers.delete(reader);
          if (error === null) resolve();
          else reject(error);
        },
      };
      const timer = setTimeout(() => reader.end(this.#tooStale(maxLagMs)), timeoutMs);
      signal?.addEventListener('abort', onAbort, { once: true });
      this.#readers.add(reader);
    });
  }

  get isWaitedFor(): boolean {
    return this.#readers.size > 0;
  }

  close(error: RivuletError): void {
    this.#closed ??= error;
    for (const reader of this.#readers) reader.end(error);
  }

  #tooStale(maxLagMs: number): RivuletError {
    const { boundMs } = this;
    const says = boundMs === null ? 'of unknown age' : `up to ${Math.ceil(boundMs)} ms behind`;
    return new RivuletError('TOO_STALE', `the file is ${says}, this read allows ${maxLagMs} ms`, {
      facts: { maxLagMs, boundMs },
    });
  }
}
