import { Worker } from 'node:worker_threads';
import type { ReplicaDigest } from '../change/table-digest.ts';
import { SQLITE_LOADED, type SqliteLoaded, sqliteThreadEnd } from './sqlite-thread.ts';

/** Shared with the thread: one word, at this place. */
export const DIGEST_STATE = 0;
const DIGEST_AWAITED = 0;
export const DIGEST_BEGUN = 1;

export interface DigestTask {
  readonly id: string;
  readonly file: string;
  readonly limitMs: number;
}

/** A thread that is up opens a snapshot within a millisecond; one that does not must not hold the stream up. */
const MAX_WAIT_MS = 500;

/** The thread is not kept for digests that may come once a day. */
const IDLE_MS = 60_000;

/**
 * Digests of a file as of exactly now, on a thread of their own. begin() returns once that thread has its
 * snapshot: the writer then goes on, and what it writes is in no digest.
 */
export class Digester {
  readonly #onDigest: (digest: ReplicaDigest) => void;
  readonly #onProblem: (message: string) => void;
  readonly #state = new Int32Array(new SharedArrayBuffer(4));
  #worker: Worker | null = null;
  #end: (() => Promise<void>) | null = null;
  #isReady = false;
  /** The announcement that the thread is started for. */
  #preparedId: string | null = null;
  #isBusy = false;
  #idle: NodeJS.Timeout | null = null;

  constructor(options: {
    readonly onDigest: (digest: ReplicaDigest) => void;
    readonly onProblem: (message: string) => void;
  }) {
    this.#onDigest = options.onDigest;
    this.#onProblem = options.onProblem;
  }

  /** A digest will be asked for soon: starting the thread takes longer than the stream should wait. */
  prepare(id: string): void {
    this.#stopLater();
    this.#preparedId = id;
    if (this.#isReady) this.#sayReady();
    else if (this.#worker === null) this.#start();
  }

  #start(): void {
    const path = import.meta.url.endsWith('.ts') ? './digest-worker.ts' : './digest-worker.js';
    const worker = new Worker(new URL(path, import.meta.url), { workerData: { state: this.#state } });
    worker.unref();
    worker.on('message', (message: ReplicaDigest | SqliteLoaded) => {
      if (worker !== this.#worker) return;
      if (message === SQLITE_LOADED) {
        this.#isReady = true;
        this.#sayReady();
        return;
      }
      this.#isBusy = false;
      this.#onDigest(message);
    });
    worker.on('error', (error) => {
      if (worker !== this.#worker) return;
      this.#isBusy = false;
      this.#isReady = false;
      this.#worker = null;
      this.#onProblem(`no digest could be made: ${(error as Error).message}`);
    });
    this.#worker = worker;
    this.#end = sqliteThreadEnd(worker);
  }

  /**
   * Call between two transactions of the writer. One at a time, and only if the thread is ready: what else is asked
   * for is left out.
   */
  begin(task: DigestTask): void {
    if (this.#isBusy || !this.#isReady) return;
    this.#stopLater();
    this.#isBusy = true;
    Atomics.store(this.#state, DIGEST_STATE, DIGEST_AWAITED);
    this.#worker!.postMessage(task);
    const outcome = Atomics.wait(this.#state, DIGEST_STATE, DIGEST_AWAITED, MAX_WAIT_MS);
    if (outcome !== 'timed-out') return;
    // Its snapshot would be of a later position: better none.
    this.close();
    this.#onProblem('no digest was made: its thread was not there in time');
  }

  close(): void {
    if (this.#idle !== null) clearTimeout(this.#idle);
    this.#idle = null;
    this.#isBusy = false;
    this.#isReady = false;
    void this.#end?.();
    this.#end = null;
    this.#worker = null;
  }

  #sayReady(): void {
    if (this.#preparedId !== null) this.#onDigest({ id: this.#preparedId, tables: null, left: 0 });
  }

  #stopLater(): void {
    if (this.#idle !== null) clearTimeout(this.#idle);
    this.#idle = setTimeout(() => {
      if (this.#isBusy) this.#stopLater();
      else this.close();
    }, IDLE_MS);
    this.#idle.unref();
  }
}
