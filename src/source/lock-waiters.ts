import type pg from 'pg';

/** How often it is looked whether somebody waits for a table that is being read. */
const INTERVAL_MS = 250;

/**
 * Cancels what a reading connection does as soon as anybody waits for a lock that it holds: whoever wants to change
 * a table goes first. `control` is another connection, for this alone.
 */
export class LockWaiters implements AsyncDisposable {
  readonly #control: pg.Client;
  readonly #readers: readonly number[];
  readonly #timer: NodeJS.Timeout;
  #looking: Promise<unknown> = Promise.resolve();
  #isLooking = false;

  /** `readers`: process ids of the server. */
  constructor(control: pg.Client, readers: readonly number[]) {
    this.#control = control;
    this.#readers = readers;
    this.#timer = setInterval(() => {
      if (this.#isLooking) return;
      this.#isLooking = true;
      this.#looking = this.#look().finally(() => {
        this.#isLooking = false;
      });
    }, INTERVAL_MS);
  }

  async #look(): Promise<void> {
    await this.#control
      .query(
        `select pg_cancel_backend(reader) from unnest($1::int[]) reader
          where exists (select from pg_locks l where not l.granted and reader = any (pg_blocking_pids(l.pid)))`,
        [this.#readers],
      )
      .catch(() => undefined); // the readers find out themselves that the server is gone
  }

  async [Symbol.asyncDispose](): Promise<void> {
    clearInterval(this.#timer);
    await this.#looking;
  }
}
