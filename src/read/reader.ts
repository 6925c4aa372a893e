import { type FSWatcher, watch } from 'node:fs';
import { basename, dirname, resolve } from 'node:path';
import type { Database } from 'better-sqlite3';
import { ConfigError, RivuletError } from '../errors.ts';
import type { Lsn } from '../lsn.ts';
import { PositionWaiters, type WaitOptions, type WaitTarget } from '../replica/position-waiters.ts';
import { ReadDatabase } from '../replica/read-database.ts';
import { checkSqliteVersion } from '../replica/replica-file.ts';
import { sayWanted } from '../replica/wanted-file.ts';
import { checkTokenKeys, type Position, type TokenKeys } from '../token.ts';
import { ReplicaPositionReader } from './position-reader.ts';
import type { ReadSource } from './read-source.ts';

/**
 * While somebody waits the file is looked at after so long, then after twice as long, up to the longest, and from
 * the beginning whenever it was written: the write is seen a moment before the commit that it is part of.
 */
const FIRST_LOOK_MS = 1;
const LONGEST_LOOK_MS = 64;
/** Where the platform does not tell of writes, looking is all there is. */
const LONGEST_BLIND_LOOK_MS = 4;

/** The process that keeps the file is told again after so long that somebody waits. */
const SAY_WANTED_MS = 20;

/** Being told of every write costs a little: not for longer than this after the last wait. */
const WATCH_LINGER_MS = 2_000;

export interface ReaderOptions {
  /** The file that a replica process on this machine keeps. */
  readonly file: string;
  /** Where tokens are signed: waitFor() takes no others then. */
  readonly tokenKeys?: TokenKeys | undefined;
  /** More than this do not wait at once; default: 100,000. */
  readonly maxWaiters?: number | undefined;
}

/** Opens a file that another process keeps, for reading only. Throws FILE_UNUSABLE if there is none of ours. */
export function openReader(options: ReaderOptions): Reader {
  return new Reader(options);
}

/**
 * A replica file that another process on this machine keeps: read it through `db`, wait for a position. Nothing
 * is followed here, and the other process need not run: then the file simply stays as it is.
 *
 * Use openReader().
 */
export class Reader implements ReadSource, Disposable {
  readonly file: string;
  readonly #positions: ReplicaPositionReader;
  readonly #waiters: PositionWaiters;
  readonly #database = new ReadDatabase();
  #inode: bigint | null;
  #position: Position = { epoch: '', lsn: 0n };
  #watcher: FSWatcher | null = null;
  #isBlind = false;
  #linger: NodeJS.Timeout | undefined;
  #timer: NodeJS.Timeout | null = null;
  #nextLookMs = FIRST_LOOK_MS;
  #isLookScheduled = false;
  #saidWantedAtMs = Number.NEGATIVE_INFINITY;
  #isClosed = false;

  constructor(options: ReaderOptions) {
    if (typeof options.file !== 'string' || options.file === '')
      throw new ConfigError('the file to read is missing');
    checkTokenKeys(options.tokenKeys);
    checkSqliteVersion();
    this.file = resolve(options.file);
    this.#positions = new ReplicaPositionReader(this.file);
    this.#waiters = new PositionWaiters({
      current: () => this.#position,
      tokenKeys: options.tokenKeys,
      maxWaiters: options.maxWaiters,
      onWait: () => this.#begin(),
    });
    this.#inode = this.#positions.inode;
    this.#database.open(this.file);
    this.#look();
  }

  /** Reads the file; writing is refused. Another object after a new bootstrap: do not keep it. */
  get db(): Database {
    this.#look();
    return this.#database.current!;
  }

  get epoch(): string {
    this.#look();
    return this.#position.epoch;
  }

  get position(): Lsn {
    this.#look();
    return this.#position.lsn;
  }

  /** What only the process that keeps the file knows; see its GET /status. */
  get lag(): { readonly boundMs: null } {
    return { boundMs: null };
  }

  /** As Replica.waitFor(). */
  async waitFor(target: WaitTarget, options?: WaitOptions): Promise<void> {
    this.#look();
    await this.#waiters.waitFor(target, options);
  }

  waitUntilFresh(): Promise<never> {
    return Promise.reject(
      new ConfigError('how far behind a file is, only the process that keeps it knows', {
        hint: 'open it with openReplica() where maxLagMs is wanted',
      }),
    );
  }

  /** May be called twice. */
  close(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#waiters.close(new RivuletError('CLOSED', 'the reader was closed'));
    this.#rest();
    this.#unwatch();
    this.#positions.close();
    this.#database.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #look(): void {
    if (this.#isClosed) throw new RivuletError('CLOSED', 'the reader is closed');
    const position = this.#positions.read();
    if (this.#positions.inode !== this.#inode) {
      this.#inode = this.#positions.inode;
      this.#database.open(this.file);
    }
    const hasEntered = position.epoch !== this.#position.epoch;
    this.#position = position;
    if (hasEntered) this.#waiters.entered();
    else this.#waiters.moved();
  }

  /** Somebody waits. First the watch, then the look: what is written in between is heard. */
  #begin(): void {
    this.#watch();
    this.#nextLookMs = FIRST_LOOK_MS;
    this.#sayWanted();
    this.#step();
  }

  #step(): void {
    this.#rest();
    try {
      this.#look();
    } catch (error) {
      if (!this.#isClosed) this.#waiters.close(error as RivuletError);
      return;
    }
    if (this.#waiters.size === 0) {
      this.#linger = setTimeout(() => this.#unwatch(), WATCH_LINGER_MS);
      this.#linger.unref();
      return;
    }
    this.#sayWanted();
    this.#timer = setTimeout(() => this.#step(), this.#nextLookMs);
    const longestMs = this.#isBlind ? LONGEST_BLIND_LOOK_MS : LONGEST_LOOK_MS;
    this.#nextLookMs = Math.min(this.#nextLookMs * 2, longestMs);
  }

  #rest(): void {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
    clearTimeout(this.#linger);
  }

  #sayWanted(): void {
    const nowMs = performance.now();
    if (nowMs - this.#saidWantedAtMs < SAY_WANTED_MS) return;
    this.#saidWantedAtMs = nowMs;
    sayWanted(this.file);
  }

  #watch(): void {
    if (this.#watcher !== null || this.#isBlind) return;
    try {
      // The directory, not the -wal: it is another file after a checkpoint of the last writer or a new bootstrap.
      const name = basename(this.file);
      this.#watcher = watch(dirname(this.file), { persistent: false }, (_event, changed) => {
        if (changed?.startsWith(name) && !changed.endsWith('-wanted')) this.#wasWritten();
      });
      this.#watcher.on('error', () => this.#goBlind());
    } catch {
      // Out of watches, or a file system without them.
      this.#goBlind();
    }
  }

  #goBlind(): void {
    this.#isBlind = true;
    this.#unwatch();
  }

  #unwatch(): void {
    this.#watcher?.close();
    this.#watcher = null;
  }

  #wasWritten(): void {
    if (this.#isLookScheduled || this.#waiters.size === 0) return;
    this.#isLookScheduled = true;
    setImmediate(() => {
      this.#isLookScheduled = false;
      if (this.#isClosed || this.#waiters.size === 0) return;
      this.#nextLookMs = FIRST_LOOK_MS;
      this.#step();
    });
  }
}
