/** Date.now() and this may differ by so much before the machine's clock must have been set. */
const MAX_DIFFERENCE_MS = 2;

/**
 * The time of day with the resolution of the monotonic clock: Date.now() knows whole milliseconds only, which is
 * the size of what is measured here.
 *
 * Date.now() cuts off, so its distance to the monotonic clock is never larger than the true one, and of many
 * looks the largest comes nearest.
 */
export class WallClock {
  readonly #now: () => number;
  readonly #monotonic: () => number;
  #offset = Number.NEGATIVE_INFINITY;

  constructor(now: () => number = Date.now, monotonic: () => number = () => performance.now()) {
    this.#now = now;
    this.#monotonic = monotonic;
  }

  /** Milliseconds since 1970, with a fraction. */
  now(): number {
    const monotonic = this.#monotonic();
    const offset = this.#now() - monotonic;
    if (offset > this.#offset || offset < this.#offset - MAX_DIFFERENCE_MS) this.#offset = offset;
    return monotonic + this.#offset;
  }
}
