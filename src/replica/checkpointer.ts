import { once } from 'node:events';
import { statSync, truncateSync } from 'node:fs';
import { Worker } from 'node:worker_threads';
import type { Database, Statement } from 'better-sqlite3';

/** Shared with the thread: one word, at this place. */
export const CHECKPOINT_STATE = 0;
export const CHECKPOINT_IDLE = 0;
export const CHECKPOINT_RUNNING = 1;

/**
 * Checkpoint when the WAL passes this size. Large enough that a page written again and again (a counter) is
 * copied back rarely, small enough that readers, who look up each page in the WAL first, do not notice.
 */
export const DEFAULT_WAL_LIMIT_BYTES = 16 * 1024 * 1024;

/** What the writer's own thread copies back between two batches at any time: some hundred microseconds' worth. */
const MAX_OWN_BYTES = 1024 * 1024;
/**
 * From here on, in limits, the writer copies all that there is: it writes faster than the thread can copy back.
 * Default for `mostBytes`.
 */
const MOST_LIMITS = 4;
/** From here on readers that overlap are asked to let go (see #restart), and one that does not is reported. */
const RESTART_AT_LIMITS = 2;
/** How long the writer waits for readers of old pages then; they wait for nothing. */
const RESTART_WAIT_MS = 20;
/** How long a checkpoint of the thread is waited for, instead of failing beside it. */
const MAX_THREAD_WAIT_MS = 2_000;
/** While a reader pins the WAL the writer tries only this often. */
const PINNED_RETRY_MS = 1_000;
const PINNED_AGAIN_MS = 10_000;

/** After so many rounds of the thread that left more than MAX_OWN_BYTES, the writer copies what there is: but not in a burst. */
const MAX_ROUNDS = 4;
/** More than this between two looks, in limits, is one large transaction, and no writer that goes on like that. */
const LARGE_COMMIT_LIMITS = 2;

/** What a WAL has been longer than so many limits is given back to the disk in such steps, of some milliseconds each. */
const KEPT_LIMITS = 4;
const SHRINK_STEP_BYTES = 8 * 1024 * 1024;
const SHRINK_INTERVAL_MS = 25;

const COMMITS_BETWEEN_LOOKS = 8;
const MS_BETWEEN_LOOKS = 5;

export interface WalKeeperOptions {
  readonly file: string;
  readonly limitBytes?: number;
  /**
   * From here on the writer copies back itself, and waits for the disk meanwhile: no WAL grows much beyond this, but
   * for a reader in the way. Default: four limits.
   */
  readonly mostBytes?: number;
  /**
   * A long reader keeps the WAL from starting over: bytes it has grown to, with each report; 0 once it can.
   */
  readonly onPinned?: (walBytes: number) => void;
  /** Milliseconds of a clock that does not go back. */
  readonly now?: () => number;
}

/**
 * Keeps the WAL of one file bounded without the writer waiting for it.
 *
 * The writer's connection checkpoints nothing by itself (wal_autocheckpoint = 0). Past the limit a thread with a
 * connection of its own copies pages back (PASSIVE: it blocks neither readers nor the writer, but gets only as
 * far as the oldest reader allows). The WAL can start over only once all of it is copied back, which never
 * happens while the writer is faster; so the writer does the small rest itself, between two batches.
 *
 *   afterCommit ─ WAL past the limit? ── much to copy ──▶ thread: PASSIVE
 *                                    └── little left ───▶ here: PASSIVE; the next write starts the WAL over
 *
 * The little rest ends with a sync of both files, so the thread syncs them before. A file that has become long is not
 * cut by SQLite (journal_size_limit), in the first commit behind its new start and all at once: that holds it up for a
 * quarter of a second where a reader has left 700 MB. It is cut here, by and by.
 *
 * https://www.sqlite.org/wal.html#avoiding_excessively_large_wal_files
 */
export class WalKeeper {
  readonly #limitBytes: number;
  readonly #mostBytes: number;
  readonly #keptBytes: number;
  readonly #onPinned: (walBytes: number) => void;
  readonly #now: () => number;
  readonly #state = new Int32Array(new SharedArrayBuffer(4));
  readonly #file: string;
  #worker: Worker | null = null;
  #db: Database | null = null;
  #look: Statement<[], WalRow> | null = null;
  #pageSize = 4096;
  #copy: Statement<[], WalRow> | null = null;
  #notBefore = Number.NEGATIVE_INFINITY;
  /** What was copied back when the thread was last started, and when that was. */
  #startedAtBytes = -1;
  #startedAt = Number.NEGATIVE_INFINITY;
  #commits = 0;
  #lookedAt = Number.NEGATIVE_INFINITY;
  /** Bytes at the last look; what made it as long as it is; the thread's rounds since then. */
  #lookedAtBytes = 0;
  #isLong = false;
  #rounds = 0;
  #isOversized = true;
  #shrinkNotBefore = Number.NEGATIVE_INFINITY;
  #isPinned = false;
  #reportNotBefore = Number.NEGATIVE_INFINITY;
  #isClosed = false;

  constructor(options: WalKeeperOptions) {
    this.#file = options.file;
    this.#limitBytes = options.limitBytes ?? DEFAULT_WAL_LIMIT_BYTES;
    this.#mostBytes = options.mostBytes ?? this.#limitBytes * MOST_LIMITS;
    this.#keptBytes = this.#limitBytes * KEPT_LIMITS;
    this.#onPinned = options.onPinned ?? (() => {});
    this.#now = options.now ?? (() => performance.now());
  }

  /**
   * Call between transactions of the writer's connection, best after each. Costs some microseconds. `isBurst`: more
   * follows at once, so that a page copied back now would soon be written again; that waits for half of `mostBytes`.
   */
  afterCommit(db: Database, isBurst = false): void {
    if (this.#isClosed || db.inTransaction) return;
    // Looking costs as much as a small commit, so of many small ones in a row only some are followed by a look.
    const at = this.#now();
    if (++this.#commits < COMMITS_BETWEEN_LOOKS && at - this.#lookedAt < MS_BETWEEN_LOOKS) return;
    this.#commits = 0;
    this.#lookedAt = at;
    const wal = this.#read(this.#prepare(db));
    const cameBytes = wal.bytes - this.#lookedAtBytes;
    this.#lookedAtBytes = wal.bytes;
    if (wal.bytes < (isBurst ? Math.max(this.#limitBytes, this.#mostBytes / 2) : this.#limitBytes)) {
      this.#startedAtBytes = -1;
      this.#isLong = false;
      this.#rounds = 0;
      this.#notPinned();
      if (!isBurst) this.#shrink(wal, at);
      return;
    }
    const left = wal.bytes - wal.copiedBytes;
    const now = this.#now();
    this.#isLong ||= cameBytes > (isBurst ? this.#mostBytes / 2 : LARGE_COMMIT_LIMITS * this.#limitBytes);
    this.#isOversized ||= wal.bytes > this.#keptBytes;
    const isShort = wal.bytes < this.#mostBytes;
    // What a reader, or one transaction, has made long is the thread's all the same.
    if (isShort || this.#isLong) {
      if (Atomics.load(this.#state, CHECKPOINT_STATE) === CHECKPOINT_RUNNING) return;
      if (left > MAX_OWN_BYTES && (this.#rounds <= MAX_ROUNDS || (isBurst && isShort))) {
        this.#startWorker(wal, now);
        return;
      }
    }
    if (now < this.#notBefore) return;
    // The thread may be at it; there is no second checkpoint beside it.
    Atomics.wait(this.#state, CHECKPOINT_STATE, CHECKPOINT_RUNNING, MAX_THREAD_WAIT_MS);
    const after = this.#read(this.#copy!);
    const isCopied = after.bytes - after.copiedBytes <= MAX_OWN_BYTES;
    if (isCopied && left <= MAX_OWN_BYTES && wal.bytes >= this.#limitBytes * RESTART_AT_LIMITS) {
      this.#restart(db, now);
    } else if (after.copiedBytes < after.bytes) {
      this.#pinned(now, after);
    } else {
      this.#notPinned();
    }
  }

  /** Ends the thread; resolves once it has closed the file. May be called twice. */
  async close(): Promise<void> {
    this.#isClosed = true;
    this.#look = null;
    this.#copy = null;
    this.#db = null;
    const worker = this.#worker;
    this.#worker = null;
    if (worker === null) return;
    worker.ref();
    const exited = once(worker, 'exit');
    worker.postMessage('close');
    // A thread that fails while it ends is gone all the same.
    await exited.catch(() => {});
  }

  #prepare(db: Database): Statement<[], WalRow> {
    if (this.#look === null || this.#db !== db) {
      this.#db = db;
      this.#pageSize = db.pragma('page_size', { simple: true }) as number;
      // NOOP reports and does nothing (since SQLite 3.51).
      this.#look = db.prepare<[], WalRow>('PRAGMA wal_checkpoint(NOOP)');
      this.#copy = db.prepare<[], WalRow>('PRAGMA wal_checkpoint(PASSIVE)');
    }
    return this.#look;
  }

  #read(statement: Statement<[], WalRow>): WalSize {
    const row = statement.get();
    if (row === undefined || row.log < 0) return { bytes: 0, copiedBytes: 0 };
    return { bytes: row.log * this.#pageSize, copiedBytes: row.checkpointed * this.#pageSize };
  }

  #startWorker(wal: WalSize, now: number): void {
    // It came no further last time: a reader is in the way.
    if (wal.copiedBytes === this.#startedAtBytes) {
      if (now - this.#startedAt < PINNED_RETRY_MS) return;
      this.#pinned(now, wal);
    } else {
      this.#rounds++;
    }
    this.#startedAtBytes = wal.copiedBytes;
    this.#startedAt = now;
    if (this.#worker === null) {
      const path = import.meta.url.endsWith('.ts') ? './checkpoint-worker.ts' : './checkpoint-worker.js';
      this.#worker = new Worker(new URL(path, import.meta.url), {
        workerData: { file: this.#file, state: this.#state },
        // It makes next to no objects.
        resourceLimits: { maxYoungGenerationSizeMb: 1 },
      });
      this.#worker.unref();
      // Without its thread the writer still keeps the WAL, only less smoothly: a new one is tried next time.
      this.#worker.on('error', () => {
        this.#worker = null;
        Atomics.store(this.#state, CHECKPOINT_STATE, CHECKPOINT_IDLE);
      });
    }
    Atomics.store(this.#state, CHECKPOINT_STATE, CHECKPOINT_RUNNING);
    this.#worker.postMessage('checkpoint');
  }

  /**
   * Nearly all was copied back before, yet readers that come and go, overlapping, have kept each write from
   * starting the WAL over. Once all is, new readers need it no more, so a short wait sees the last old one off.
   */
  #restart(db: Database, now: number): void {
    const timeout = db.pragma('busy_timeout', { simple: true }) as number;
    db.pragma(`busy_timeout = ${RESTART_WAIT_MS}`);
    try {
      const row = (db.pragma('wal_checkpoint(RESTART)') as readonly WalRow[])[0]!;
      if (row.busy !== 0) this.#pinned(now, { bytes: row.log * this.#pageSize, copiedBytes: 0 });
      else this.#notPinned();
    } finally {
      db.pragma(`busy_timeout = ${timeout}`);
    }
  }

  /** The file behind what is used of it; nobody writes beside the writer. */
  #shrink(wal: WalSize, at: number): void {
    if (!this.#isOversized || at < this.#shrinkNotBefore || wal.bytes > this.#limitBytes / 2) return;
    this.#shrinkNotBefore = at + SHRINK_INTERVAL_MS;
    const path = `${this.#file}-wal`;
    try {
      const { size } = statSync(path);
      this.#isOversized = size > this.#keptBytes;
      if (this.#isOversized) truncateSync(path, Math.max(this.#keptBytes, size - SHRINK_STEP_BYTES));
    } catch {
      // It is only space: of what is wrong with the file the next write tells.
      this.#isOversized = false;
    }
  }

  /** A reader is in the way: trying again at every commit would only cost time. */
  #pinned(now: number, wal: WalSize): void {
    this.#notBefore = now + PINNED_RETRY_MS;
    this.#isLong = true;
    this.#rounds = 0;
    if (now < this.#reportNotBefore || wal.bytes < this.#limitBytes * RESTART_AT_LIMITS) return;
    this.#isPinned = true;
    this.#reportNotBefore = now + PINNED_AGAIN_MS;
    this.#onPinned(wal.bytes);
  }

  #notPinned(): void {
    this.#notBefore = Number.NEGATIVE_INFINITY;
    if (!this.#isPinned) return;
    this.#isPinned = false;
    this.#reportNotBefore = Number.NEGATIVE_INFINITY;
    this.#onPinned(0);
  }
}

interface WalRow {
  readonly busy: number;
  readonly log: number;
  readonly checkpointed: number;
}

interface WalSize {
  readonly bytes: number;
  readonly copiedBytes: number;
}
