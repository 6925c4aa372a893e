/** Each bucket is 9% wider than the one before: fine enough for a percentile that people read. */
const BUCKETS_PER_OCTAVE = 8;
/** From 1 µs to about 12 days. */
const OCTAVES = 40;

const WINDOW_MS = 5000;

/**
 * Lags of the last five to ten seconds, in buckets, so that recording costs nothing and memory is fixed: two
 * windows, of which the older one is dropped whole.
 */
export class LagHistogram {
  #current = new Uint32Array(BUCKETS_PER_OCTAVE * OCTAVES);
  #previous = new Uint32Array(BUCKETS_PER_OCTAVE * OCTAVES);
  #windowEndsAtMs = 0;
  #last: number | null = null;

  /** Lag of one transaction, ms; clocks that differ can make it negative, which counts as none. */
  record(lagMs: number, nowMs: number): void {
    this.#turn(nowMs);
    this.#last = Math.max(0, lagMs);
    const us = this.#last * 1000;
    const bucket =
      us < 1 ? 0 : Math.min(this.#current.length - 1, Math.floor(Math.log2(us) * BUCKETS_PER_OCTAVE));
    this.#current[bucket]!++;
  }

  /** Of the newest transaction, ms. */
  get last(): number | null {
    return this.#last;
  }

  /** Quantiles in ms, null while there is no sample in the window. */
  summary(nowMs: number): {
    readonly p50: number | null;
    readonly p99: number | null;
    readonly last: number | null;
  } {
    this.#turn(nowMs);
    return { p50: this.#quantile(0.5), p99: this.#quantile(0.99), last: this.#last };
  }

  #turn(nowMs: number): void {
    if (nowMs < this.#windowEndsAtMs) return;
    const isNext = nowMs < this.#windowEndsAtMs + WINDOW_MS;
    [this.#previous, this.#current] = [this.#current, this.#previous];
    if (!isNext) this.#previous.fill(0);
    this.#current.fill(0);
    this.#windowEndsAtMs = nowMs + WINDOW_MS;
  }

  #quantile(fraction: number): number | null {
    let count = 0;
    for (let bucket = 0; bucket < this.#current.length; bucket++)
      count += this.#current[bucket]! + this.#previous[bucket]!;
    if (count === 0) return null;
    let rank = Math.ceil(count * fraction);
    for (let bucket = 0; bucket < this.#current.length; bucket++) {
      rank -= this.#current[bucket]! + this.#previous[bucket]!;
      // The middle of the bucket.
      if (rank <= 0) return Number((2 ** ((bucket + 0.5) / BUCKETS_PER_OCTAVE) / 1000).toPrecision(3));
    }
    return null;
  }
}
