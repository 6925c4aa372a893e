/** The newest so many samples, and what share of them lies below which value. */
export class Percentiles {
  readonly #samples: Float64Array;
  #count = 0;

  constructor(capacity: number) {
    this.#samples = new Float64Array(capacity);
  }

  add(sample: number): void {
    this.#samples[this.#count++ % this.#samples.length] = sample;
  }

  /** `share` between 0 and 1; null without samples. */
  at(share: number): number | null {
    const size = Math.min(this.#count, this.#samples.length);
    if (size === 0) return null;
    const sorted = this.#samples.slice(0, size).sort();
    return sorted[Math.min(size - 1, Math.floor(share * size))]!;
  }
}
