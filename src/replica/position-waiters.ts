import type { Lsn } from '../lsn.ts';

interface Waiter {
  readonly lsn: Lsn;
  readonly resolve: () => void;
  readonly reject: (error: unknown) => void;
}

/** Those who wait for a position; each is woken by the message that brings it. */
export class PositionWaiters {
  readonly #waiters = new Set<Waiter>();

  get size(): number {
    return this.#waiters.size;
  }

  wait(
    lsn: Lsn,
    options: {
      readonly timeoutMs: number;
      readonly signal: AbortSignal | undefined;
      readonly onTimeout: () => Error;
    },
  ): Promise<void> {
    const { timeoutMs, signal, onTimeout } = options;
    return new Promise((resolve, reject) => {
      const end = (): void => {
        this.#waiters.delete(waiter);
        clearTimeout(timer);
        signal?.removeEventListener('abort', onAbort);
      };
      const waiter: Waiter = {
        lsn,
        resolve: () => {
          end();
          resolve();
        },
        reject: (error) => {
          end();
          reject(error);
        },
      };
      const onAbort = (): void => waiter.reject(signal?.reason);
      const timer = setTimeout(() => waiter.reject(onTimeout()), timeoutMs);
      signal?.addEventListener('abort', onAbort, { once: true });
      this.#waiters.add(waiter);
    });
  }

  reached(position: Lsn): void {
    for (const waiter of this.#waiters) if (waiter.lsn <= position) waiter.resolve();
  }

  rejectAll(error: () => Error): void {
    for (const waiter of this.#waiters) waiter.reject(error());
  }
}
