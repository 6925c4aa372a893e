import type pg from 'pg';
import { isUnanswered } from './connection.ts';

/** How often it is looked whether somebody waits for a table that is being read. */
const INTERVAL_MS = 250;

export interface LockWaitersOptions {
  /** Another connection, for this alone, whose queries fail when no answer comes. */
  readonly control: pg.Client;
  /** Process ids of the server; may be added to. */
  readonly readers: readonly number[];
  /** The server does not answer: who reads a COPY would wait for more of it until TCP gives up, minutes later. */
  readonly onLost: () => void;
}

/**
 * Cancels what a reading connection does as soon as anybody waits for a lock that it holds: whoever wants to change
 * a table goes first.
 */
export class LockWaiters implements AsyncDisposable {
  readonly #options: LockWaitersOptions;
  readonly #timer: NodeJS.Timeout;
  #looking: Promise<unknown> = Promise.resolve();
  #isLooking = false;

  constructor(options: LockWaitersOptions) {
    this.#options = options;
    this.#timer = setInterval(() => {
      if (this.#isLooking) return;
      this.#isLooking = true;
      this.#looking = this.#look().finally(() => {
        this.#isLooking = false;
      });
    }, INTERVAL_MS);
  }

  async #look(): Promise<void> {
    const { control, readers, onLost } = this.#options;
    await control
      .query(
        `select pg_cancel_backend(reader) from unnest($1::int[]) reader
          where exists (select from pg_locks l where not l.granted and reader = any (pg_blocking_pids(l.pid)))`,
        [readers],
      )
      .catch((error: unknown) => {
        // Whatever else is the matter with it, those who read go on.
        if (isUnanswered(error)) onLost();
      });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    clearInterval(this.#timer);
    await this.#looking;
  }
}
