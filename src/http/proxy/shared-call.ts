/**
 * Many callers, few calls: a caller shares the answer of a call that began after it asked, never of one that was
 * under way already, whose answer may be older than what the caller has seen.
 */
export class SharedCall<T> {
  readonly #call: () => Promise<T>;
  readonly #limit: number;
  #running = 0;
  #next: PromiseWithResolvers<T> | null = null;

  /** At most `limit` calls are under way at a time. */
  constructor(call: () => Promise<T>, limit: number) {
    this.#call = call;
    this.#limit = limit;
  }

  run(): Promise<T> {
    if (this.#running < this.#limit) return this.#start();
    this.#next ??= Promise.withResolvers<T>();
    return this.#next.promise;
  }

  async #start(): Promise<T> {
    this.#running++;
    try {
      return await this.#call();
    } finally {
      this.#running--;
      const next = this.#next;
      this.#next = null;
      if (next !== null) this.#start().then(next.resolve, next.reject);
    }
  }
}
