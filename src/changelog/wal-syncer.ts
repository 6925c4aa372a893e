import { closeSync, fdatasync, fdatasyncSync, fsyncSync, openSync } from 'node:fs';
import { dirname } from 'node:path';
import { RivuletError } from '../errors.ts';
import { explainSqliteError } from './sqlite-error.ts';

/**
 * Syncs begin at least so far apart. Nobody waits for them but Postgres, which may forget its WAL a moment later;
 * a sync for each of some hundred small commits a second would cost more than all the rest of their way.
 */
const MIN_INTERVAL_MS = 25;

/**
 * Syncs a -wal file on libuv's threads: one sync runs, and at most one more waits for everybody who came
 * meanwhile.
 *
 * The descriptor stays right for as long as the owner's connection is open: SQLite begins the file anew in
 * place, and removes it only when the last connection closes.
 *
 * A sync that failed once is never tried again: the kernel may have dropped the pages it could not write and
 * would call the next sync a success. Only a new open, which reads back what the disk has, can be trusted.
 */
export class WalSyncer {
  readonly #fd: number;
  #running: Promise<void> | null = null;
  #waiting: Promise<void> | null = null;
  #failure: RivuletError | null = null;
  #isClosed = false;
  #startedAtMs = Number.NEGATIVE_INFINITY;

  /** The file must exist. What it holds already is synced at once, its directory entry too. */
  constructor(file: string) {
    this.#fd = openSync(file, 'r');
    fdatasyncSync(this.#fd);
    const directory = openSync(dirname(file), 'r');
    try {
      fsyncSync(directory);
    } finally {
      closeSync(directory);
    }
  }

  get hasFailed(): boolean {
    return this.#failure !== null;
  }

  /** Resolves once everything written before the call is on the disk. */
  sync(): Promise<void> {
    if (this.#failure !== null) return Promise.reject(this.#failure);
    if (this.#isClosed) return Promise.reject(new RivuletError('CLOSED', 'the change log is closed'));
    if (this.#running === null) return this.#start();
    // The running one may have begun before the caller's write.
    this.#waiting ??= this.#running
      .catch(() => undefined)
      .then(() => {
        this.#waiting = null;
        return this.#failure === null ? this.#start() : Promise.reject(this.#failure);
      });
    return this.#waiting;
  }

  async close(): Promise<void> {
    if (this.#isClosed) return;
    this.#isClosed = true;
    while (this.#running !== null) await (this.#waiting ?? this.#running).catch(() => undefined);
    closeSync(this.#fd);
  }

  #start(): Promise<void> {
    const waitMs = this.#startedAtMs + MIN_INTERVAL_MS - performance.now();
    this.#running = new Promise<void>((resolve, reject) => {
      const sync = (): void => {
        this.#startedAtMs = performance.now();
        fdatasync(this.#fd, (cause) => {
          this.#running = null;
          if (cause === null) {
            resolve();
            return;
          }
          this.#failure = explainSqliteError(cause, 'syncing the change log failed');
          reject(this.#failure);
        });
      };
      if (waitMs <= 0) sync();
      else setTimeout(sync, waitMs);
    });
    return this.#running;
  }
}
