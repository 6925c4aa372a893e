import { EventEmitter } from 'node:events';
import { hostname } from 'node:os';
import { basename, resolve } from 'node:path';
import { MessageChannel, type MessagePort, Worker } from 'node:worker_threads';
import type { Database } from 'better-sqlite3';
import { ConfigError, RivuletError } from '../errors.ts';
import { type Log, silentLog } from '../log.ts';
import { formatLsn, type Lsn } from '../lsn.ts';
import { fromPlainError } from '../plain-error.ts';
import type { StoreLocation } from '../store/open-store.ts';
import { parseStoreUrl } from '../store/store-url.ts';
import { checkTokenKeys, type Position, type TokenKeys } from '../token.ts';
import { filePosition } from './file-position.ts';
import { followerId } from './follower-id.ts';
import { Freshness, monotonicMs } from './freshness.ts';
import { describeLeftOut, type LeftOut, readLeftOut } from './left-out.ts';
import type { MissingLocalObject, NamedLocalObject } from './local-objects.ts';
import { type LocalSql, parseLocalSql, readLocalSql } from './local-sql.ts';
import {
  DEFAULT_WAIT_TIMEOUT_MS,
  PositionWaiters,
  type WaitOptions,
  type WaitTarget,
} from './position-waiters.ts';
import { ReadDatabase } from './read-database.ts';
import type { ReplicaLag, ReplicaState, ReplicaStatus } from './replica-status.ts';
import {
  type LagSummary,
  MAILBOX,
  type WorkerMessage,
  type WorkerRequest,
  type WorkerSettings,
} from './worker-messages.ts';

/** A replica without a connection is healthy for so long: a replicator that restarts must not empty a load balancer. */
export const DEFAULT_HEALTHY_WITHOUT_CONNECTION_MS = 15_000;

/** A replica that follows the object store is, while that is no older than this: an idle one is touched once a minute. */
const HEALTHY_ON_STORE_MS = 90_000;

/** States in which it is known whether somebody is there to follow. */
const CONTACT: readonly ReplicaState[] = ['live', 'catching-up', 'following-store', 'disconnected'];

/** An existing file is served without waiting for its replicator longer than this. */
const FIRST_CONTACT_MS = 1000;

/** Postgres is heard twice a second and replicas hear of it once: what is longer ago than this is an outage. */
const SOURCE_QUIET_MS = 3000;

/** The server is asked for its position again while somebody waits: first soon, then less and less often. */
const FIRST_HASTEN_MS = 5;
const LONGEST_HASTEN_MS = 250;

export interface ReplicaOptions {
  /** Where the SQLite file is or will be. */
  readonly file: string;
  /** The replicator's URL, http://host:4840, or a port to one in this process. */
  readonly replicator: string | MessagePort;
  readonly token?: string | undefined;
  /**
   * Object store that the replicator writes to: the first file comes from there, and while the replicator is away
   * its segments are followed. With a replicator's URL only.
   */
  readonly store?: StoreLocation | undefined;
  /** What the replicator's status calls this replica. Default: host and file name. */
  readonly name?: string | undefined;
  /**
   * Indexes, views, full-text tables and triggers of your own that the file is to have: the path of a SQL file, or
   * its text. What is not declared any more is dropped.
   */
  readonly localSql?: string | { readonly text: string } | undefined;
  readonly log?: Log | undefined;
  /** Where tokens are signed: waitFor() takes no others then. */
  readonly tokenKeys?: TokenKeys | undefined;
  /** More readers than this do not wait at once; default: 100,000. */
  readonly maxWaiters?: number | undefined;
  /** Gives up opening; a replica that is open is closed by close(). */
  readonly signal?: AbortSignal | undefined;
  /**
   * What has to be through before the file may be touched: the thread gets ready meanwhile. What it rejects with
   * openReplica() does, too.
   */
  readonly startsAfter?: Promise<unknown> | undefined;
  /** Hears of the first download too, before openReplica has resolved; later ones are the event `progress` as well. */
  readonly onProgress?: ((progress: DownloadProgress) => void) | undefined;
}

export interface DownloadProgress {
  /** Received so far. */
  readonly bytes: number;
  readonly totalBytes: number;
}

export interface Commit {
  readonly position: Lsn;
  /** SQLite names of the tables that changed. */
  readonly tables: readonly string[];
  /** How many Postgres transactions became visible together. */
  readonly transactions: number;
}

export interface ReplicaEvents {
  commit: [commit: Commit];
  state: [state: ReplicaState, reason: RivuletError | null];
  /** Another file took the place of the old one; `replica.db` is a new object from now on. */
  file: [file: { readonly epoch: string; readonly position: Lsn }];
  progress: [progress: DownloadProgress];
  /** It cannot go on without a human; reads go on from the file as it is. */
  failed: [error: RivuletError];
}

/**
 * Opens the replica at `file` and keeps it current on a thread of its own. Where there is no file yet, resolves
 * once the first one is complete and as new as the replicator was, however long that takes. An existing file is
 * served even if nobody else is there.
 *
 * Rejects on what only a human can mend: a file that is not ours, kept by another process or made from another
 * database, a replicator of another version.
 */
export async function openReplica(options: ReplicaOptions): Promise<Replica> {
  const { replicator, startsAfter, signal } = options;
  // It may reject before it is waited for.
  startsAfter?.catch(() => undefined);
  if (typeof options.file !== 'string' || options.file === '')
    throw new ConfigError('the file of the replica is missing');
  if (
    typeof replicator === 'string' &&
    !['http:', 'https:'].includes(URL.parse(replicator)?.protocol ?? '')
  ) {
    throw new ConfigError("the replicator's URL is not one", { hint: "for example 'http://127.0.0.1:4840'" });
  }
  checkTokenKeys(options.tokenKeys);
  const localSql = checkLocalSql(options.localSql);
  if (options.store !== undefined && parseStoreUrl(options.store.url) === undefined) {
    throw new ConfigError('the URL of the object store is not one', {
      hint: "'file:///directory' or 's3://bucket/prefix'",
    });
  }
  signal?.throwIfAborted();
  const replica = new Replica(options, localSql);
  try {
    await startsAfter;
    signal?.throwIfAborted();
    await replica[OPENED](signal);
    return replica;
  } catch (error) {
    await replica.close();
    throw error;
  }
}

/** Throws CONFIG, with the line, before anything is opened. */
function checkLocalSql(option: ReplicaOptions['localSql']): LocalSql | null {
  if (option === undefined) return null;
  const localSql = typeof option === 'string' ? readLocalSql(option) : { source: 'localSql', ...option };
  parseLocalSql(localSql);
  return localSql;
}

function closed(): RivuletError {
  return new RivuletError('CLOSED', 'the replica is closed');
}

const OPENED = Symbol('opened');

/**
 * A replica file in this process: read it through `db`, ask it how old it is, wait for a position.
 *
 * The thread applies; this side only reads, on a connection of its own. `db` is the app's to query, but not to
 * keep: after a new bootstrap it is another object, and the old one is closed a minute later.
 */
export class Replica extends EventEmitter<ReplicaEvents> implements AsyncDisposable {
  readonly file: string;
  readonly name: string;
  readonly #log: Log;
  readonly #worker: Worker;
  readonly #port: MessagePort;
  readonly #mailbox = new Int32Array(new SharedArrayBuffer(4));
  readonly #waiters: PositionWaiters;
  readonly #freshness = new Freshness();
  readonly #exited: Promise<void>;
  readonly #database = new ReadDatabase();
  #epoch = '';
  #position: Lsn = 0n;
  #head: Lsn | null = null;
  #state: ReplicaState = 'opening';
  #reason: RivuletError | null = null;
  #currentAtMs: number | null = null;
  /** As of when the file held all that Postgres had. */
  #sourceHeardAtMs: number | null = null;
  /** When a transaction came, however old: Postgres is there, too. */
  #transactionAtMs = Number.NEGATIVE_INFINITY;
  #disconnectedAtMs: number | null = monotonicMs();
  #lag: LagSummary = { p50: null, p99: null, last: null };
  #transactions = 0;
  #files = 0;
  #pinnedWalBytes = 0;
  #reloading: readonly string[] = [];
  #missingLocal: readonly MissingLocalObject[] = [];
  #making: (NamedLocalObject & { readonly sinceMs: number }) | null = null;
  #failure: RivuletError | null = null;
  #closing: Promise<void> | null = null;
  #hastenTimer: NodeJS.Timeout | null = null;
  #onChange: (() => void) | null = null;

  /** Use openReplica(). */
  constructor(options: ReplicaOptions, localSql: LocalSql | null) {
    super();
    this.file = resolve(options.file);
    this.name = options.name ?? `${hostname()}:${basename(this.file)}`;
    this.#log = options.log ?? silentLog();
    const { replicator, token, tokenKeys, maxWaiters, onProgress } = options;
    if (onProgress !== undefined) this.on('progress', onProgress);
    this.#waiters = new PositionWaiters({
      current: () => this.#current(),
      tokenKeys,
      maxWaiters,
      onWait: () => this.#hasten(FIRST_HASTEN_MS),
      obstacle: () => this.#reason,
    });
    const { port1, port2 } = new MessageChannel();
    this.#port = port1;
    const settings: WorkerSettings = {
      port: port2,
      file: this.file,
      id: followerId(this.file),
      name: this.name,
      localSql,
      source: typeof replicator === 'string' ? { url: replicator, token } : { port: replicator },
      store: typeof replicator === 'string' ? (options.store ?? null) : null,
      mailbox: this.#mailbox,
    };
    const script = import.meta.url.endsWith('.ts') ? './follower-worker.ts' : './follower-worker.js';
    this.#worker = new Worker(new URL(script, import.meta.url), {
      workerData: settings,
      transferList: typeof replicator === 'string' ? [port2] : [port2, replicator],
      name: `rivulet ${basename(this.file)}`,
    });
    this.#port.on('message', (message: WorkerMessage) => this.#handle(message));
    this.#worker.on('error', (cause) => {
      this.#fail(
        new RivuletError(
          'PROTOCOL',
          `the thread that keeps ${this.file} broke: ${(cause as Error).message}`,
          { cause },
        ),
      );
    });
    this.#exited = new Promise((resolveExit) => this.#worker.once('exit', () => resolveExit()));
  }

  /** Reads the file; writing is refused. Another object after a new bootstrap: do not keep it. */
  get db(): Database {
    const db = this.#database.current;
    if (db === null) throw closed();
    return db;
  }

  get epoch(): string {
    return this.#epoch;
  }

  /** Every published transaction that ended at or before this is in the file. */
  get position(): Lsn {
    return this.#position;
  }

  get state(): ReplicaState {
    return this.#state;
  }

  get lag(): ReplicaLag {
    const connected = this.#state === 'live' || this.#state === 'catching-up';
    // What the store says of itself counts from when it was written.
    const sinceMs = this.#state === 'following-store' ? this.#sourceHeardAtMs : this.#currentAtMs;
    const ageMs = sinceMs === null ? null : Math.max(0, monotonicMs() - sinceMs);
    return {
      ms: this.#state === 'live' ? Math.max(this.#lag.last ?? 0, this.#sourceSilentMs) : ageMs,
      bytes:
        this.#head === null ? null : Number(this.#head > this.#position ? this.#head - this.#position : 0n),
      p50Ms: this.#lag.p50,
      p99Ms: this.#lag.p99,
      boundMs: this.#freshness.boundMs,
      connected,
    };
  }

  /** How long Postgres has been out of the replicator's reach, ms; 0 while it is not. */
  get #sourceSilentMs(): number {
    if (this.#sourceHeardAtMs === null) return 0;
    const silentMs = monotonicMs() - Math.max(this.#sourceHeardAtMs, this.#transactionAtMs);
    return silentMs > SOURCE_QUIET_MS ? silentMs : 0;
  }

  status(): ReplicaStatus {
    const reasons: string[] = [];
    const displaced = this.#database.displaced(this.file);
    if (displaced !== null) reasons.push(displaced.message);
    if (this.#reason !== null) reasons.push(this.#reason.message);
    const silentMs = this.#state === 'live' ? this.#sourceSilentMs : 0;
    if (silentMs > 0)
      reasons.push(`the replicator has not heard from Postgres for ${Math.round(silentMs / 1000)} s`);
    if (this.#pinnedWalBytes > 0) {
      reasons.push(
        `a long reader keeps the WAL of the file from starting over: ${Math.round(this.#pinnedWalBytes / 2 ** 20)} MB so far`,
      );
    }
    for (const table of this.#reloading)
      reasons.push(`${table} is being read again after a schema change; until then it keeps what it had`);
    const db = this.#database.current;
    let leftOut: readonly LeftOut[] = [];
    let isReadable = db !== null;
    try {
      if (db !== null) leftOut = readLeftOut(db);
    } catch (error) {
      isReadable = false;
      reasons.push(`${this.file} cannot be read: ${(error as Error).message}`);
    }
    reasons.push(...leftOut.map(describeLeftOut));
    for (const { type, name, reason } of this.#missingLocal)
      reasons.push(`the local ${type} ${name} is not there: ${reason}`);
    const making = this.#making;
    const makingForMs = making === null ? 0 : Math.round(monotonicMs() - making.sinceMs);
    if (making !== null) {
      reasons.push(
        `the local ${making.type} ${making.name} is being made, for ${(makingForMs / 1000).toFixed(1)} s so far: changes are applied once it is there`,
      );
    }
    const goneForMs = this.#disconnectedAtMs === null ? silentMs : monotonicMs() - this.#disconnectedAtMs;
    const limitMs =
      this.#state === 'following-store' ? HEALTHY_ON_STORE_MS : DEFAULT_HEALTHY_WITHOUT_CONNECTION_MS;
    return {
      state: this.#state,
      isHealthy: isReadable && displaced === null && this.#failure === null && goneForMs < limitMs,
      reasons,
      file: this.file,
      name: this.name,
      epoch: this.#epoch,
      position: formatLsn(this.#position),
      lag: this.lag,
      transactions: this.#transactions,
      bootstraps: Math.max(0, this.#files - 1),
      pinnedWalBytes: this.#pinnedWalBytes,
      reloading: this.#reloading,
      leftOut,
      missingLocalObjects: this.#missingLocal,
      makingLocalObject:
        making === null ? null : { type: making.type, name: making.name, forMs: makingForMs },
    };
  }

  /**
   * Resolves once the file contains everything up to the target: a token, what a token carries, or a position;
   * `replica.db` then reads it. Not inside a transaction of `replica.db` that has read already: it goes on reading
   * what was there when it began.
   *
   * Rejects at once with TOKEN_MALFORMED, TOKEN_FORGED, TOKEN_IMPOSSIBLE, EPOCH_MISMATCH, TOO_MANY_WAITERS, CLOSED,
   * or what ended the replica, unless the file has the target already; later with WAIT_TIMEOUT or the signal's reason.
   */
  waitFor(target: WaitTarget, options?: WaitOptions): Promise<void> {
    if (this.#closing !== null) return Promise.reject(closed());
    return this.#waiters.waitFor(target, options);
  }

  /** Readers that wait for a position now. */
  get waiting(): number {
    return this.#waiters.size;
  }

  /** Resolves once `lag.boundMs` is at most `maxLagMs`; rejects with TOO_STALE at the timeout. */
  async waitUntilFresh(maxLagMs: number, options: WaitOptions = {}): Promise<void> {
    if (this.#closing !== null) throw closed();
    const { timeoutMs = DEFAULT_WAIT_TIMEOUT_MS, signal } = options;
    const waiting = this.#freshness.waitFor(maxLagMs, { timeoutMs, signal });
    if (this.#freshness.isWaitedFor) this.#hasten(FIRST_HASTEN_MS);
    await waiting;
  }

  /** Stops applying and closes the file; what is applied stays. May be called twice. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async [OPENED](signal: AbortSignal | undefined): Promise<void> {
    this.#say({ kind: 'begin' });
    let deadlineMs = Number.POSITIVE_INFINITY;
    let timer: NodeJS.Timeout | undefined;
    try {
      for (;;) {
        signal?.throwIfAborted();
        if (this.#failure !== null) throw this.#failure;
        if (this.#database.current !== null) {
          // The first contact shows whether this replicator and this file belong together.
          if (CONTACT.includes(this.#state)) return;
          if (deadlineMs === Number.POSITIVE_INFINITY) {
            deadlineMs = performance.now() + FIRST_CONTACT_MS;
            timer = setTimeout(() => this.#onChange?.(), FIRST_CONTACT_MS);
          }
          if (performance.now() >= deadlineMs - 1) return;
        }
        await new Promise<void>((wake) => {
          this.#onChange = wake;
          signal?.addEventListener('abort', () => wake(), { once: true });
        });
      }
    } finally {
      clearTimeout(timer);
      this.#onChange = null;
    }
  }

  async #close(): Promise<void> {
    if (this.#hastenTimer !== null) clearTimeout(this.#hastenTimer);
    this.#endWaits(new RivuletError('CLOSED', 'the replica was closed'));
    try {
      // Before the thread does, which takes the -wal into the file.
      this.#database.close();
    } finally {
      this.#say({ kind: 'close' });
      await this.#exited;
    }
    this.#become('closed', null);
  }

  #say(request: WorkerRequest): void {
    this.#port.postMessage(request);
  }

  #handle(message: WorkerMessage): void {
    switch (message.kind) {
      case 'applied':
        this.#applied(message);
        break;
      case 'file':
        this.#newFile(message);
        break;
      case 'state':
        this.#become(message.state, message.reason === null ? null : fromPlainError(message.reason));
        break;
      case 'lag':
        this.#lag = message.lag;
        break;
      case 'current':
        this.#sourceHeardAtMs = message.asOfMs;
        if (message.isWhole) this.#freshness.knownAt(message.asOfMs);
        if (this.#state === 'following-store') this.#disconnectedAtMs = this.#sourceHeardAtMs;
        break;
      case 'head':
        this.#head = message.position;
        break;
      case 'progress':
        this.emit('progress', { bytes: message.bytes, totalBytes: message.totalBytes });
        break;
      case 'pinned':
        this.#pinnedWalBytes = message.walBytes;
        if (message.walBytes > 0)
          this.#log.warn(
            { file: this.file, walBytes: message.walBytes },
            'a long reader keeps the WAL from starting over',
          );
        break;
      case 'local':
        this.#missingLocal = message.missing;
        break;
      case 'making':
        this.#making = message.object === null ? null : { ...message.object, sinceMs: monotonicMs() };
        break;
      case 'log':
        this.#log[message.level](message.facts, message.message);
        break;
      case 'ended':
        if (message.error !== null) this.#fail(fromPlainError(message.error));
        break;
    }
    this.#onChange?.();
  }

  /** For those who wait. While tables are read again only the file says how far the others are. */
  #current(): Position {
    const db = this.#database.current;
    if (this.#reloading.length > 0 && db !== null) return filePosition(db);
    return { epoch: this.#epoch, lsn: this.#position };
  }

  #applied(message: Extract<WorkerMessage, { kind: 'applied' }>): void {
    const { position, transactions, tables, lastLagMs, asOfMs } = message;
    if (Atomics.exchange(this.#mailbox, 0, MAILBOX.free) === MAILBOX.hasMore) this.#say({ kind: 'more' });
    if (this.#closing !== null) return;
    this.#reloading = message.reloading;
    this.#position = position;
    if (this.#head === null || position > this.#head) this.#head = position;
    this.#lag = { ...this.#lag, last: lastLagMs };
    this.#transactions += transactions;
    if (transactions > 0) this.#transactionAtMs = monotonicMs();
    if (this.#state === 'live') this.#currentAtMs = monotonicMs();
    this.#waiters.moved();
    if (asOfMs !== null) this.#freshness.knownAt(asOfMs);
    if (transactions > 0 || tables.length > 0) this.emit('commit', { position, tables, transactions });
  }

  #newFile({ target, epoch, position, reloading }: Extract<WorkerMessage, { kind: 'file' }>): void {
    if (this.#closing !== null) return;
    this.#reloading = reloading;
    const isFirst = this.#database.current === null;
    try {
      this.#database.open(target);
    } catch (error) {
      this.#fail(error as RivuletError);
      return;
    }
    this.#epoch = epoch;
    this.#position = position;
    this.#files++;
    this.#waiters.entered();
    if (!isFirst) this.emit('file', { epoch, position });
  }

  #become(state: ReplicaState, reason: RivuletError | null): void {
    const isConnected = state === 'live' || state === 'catching-up';
    if (isConnected) this.#disconnectedAtMs = null;
    else if (state === 'following-store') this.#disconnectedAtMs = this.#sourceHeardAtMs ?? monotonicMs();
    else this.#disconnectedAtMs ??= monotonicMs();
    if (state === 'live' || (this.#state === 'live' && !isConnected)) this.#currentAtMs = monotonicMs();
    const hasChanged = state !== this.#state || reason?.message !== this.#reason?.message;
    this.#state = state;
    this.#reason = reason;
    if (hasChanged) this.emit('state', state, reason);
  }

  #fail(error: RivuletError): void {
    if (this.#failure !== null || this.#closing !== null) return;
    this.#failure = error;
    this.#become('failed', error);
    this.#endWaits(error);
    this.#log.error({ code: error.code, hint: error.hint, file: this.file }, error.message);
    this.emit('failed', error);
    this.#onChange?.();
  }

  #endWaits(error: RivuletError): void {
    this.#waiters.close(error);
    this.#freshness.close(error);
  }

  #hasten(inMs: number): void {
    if (inMs === FIRST_HASTEN_MS) this.#say({ kind: 'hasten' });
    if (this.#hastenTimer !== null) return;
    this.#hastenTimer = setTimeout(() => {
      this.#hastenTimer = null;
      if (this.#waiters.size === 0 && !this.#freshness.isWaitedFor) return;
      this.#say({ kind: 'hasten' });
      this.#hasten(Math.min(inMs * 2, LONGEST_HASTEN_MS));
    }, inMs);
  }
}
