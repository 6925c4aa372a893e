import { EventEmitter } from 'node:events';
import { existsSync } from 'node:fs';
import { hostname } from 'node:os';
import { basename, join, resolve } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import Database from 'better-sqlite3';
import { type ChangeLog, isRelayed, relayedSource } from '../changelog/change-log.ts';
import {
  DEFAULT_RETENTION_BYTES,
  DEFAULT_RETENTION_MS,
  HOUSEKEEPING_INTERVAL_MS,
} from '../changelog/retention.ts';
import { createChangeLog, openChangeLog, removeChangeLog } from '../changelog/sqlite-change-log.ts';
import { asRivuletError, RivuletError } from '../errors.ts';
import { DigestBoard, digestWarnings } from '../fanout/digest-board.ts';
import { Publisher, type PublisherOptions } from '../fanout/publisher.ts';
import type { Log } from '../log.ts';
import { formatLsn, type Lsn } from '../lsn.ts';
import { FollowerClient, reconnectDelayMs } from '../replica/follower-client.ts';
import { followerId } from '../replica/follower-id.ts';
import { monotonicMs } from '../replica/freshness.ts';
import { HttpLink } from '../replica/http-link.ts';
import { LagHistogram } from '../replica/lag-histogram.ts';
import { type FileLock, lockFile, readOrigin } from '../replica/replica-file.ts';
import { downloadSnapshot, type SnapshotFacts } from '../replica/snapshot-download.ts';
import { WallClock } from '../replica/wall-clock.ts';
import { changeLogStatus, type ReplicatorState, type ReplicatorStatus } from '../replicator/status.ts';
import { BaseFile } from '../snapshot/base-file.ts';
import { makeDataDirectory } from '../snapshot/data-directory.ts';
import type { SnapshotProvider } from '../snapshot/snapshot-provider.ts';
import { RelayedLog } from './relayed-log.ts';

export interface RelayOptions {
  /** URL of the replicator, or relay, that is followed. */
  readonly replicator: string;
  /** That one's. */
  readonly token?: string | undefined;
  readonly dataDir: string;
  /** What the replicator's status calls this relay. Default: host and directory. */
  readonly name?: string | undefined;
  readonly log: Log;
  readonly retention?: { readonly maxAgeMs?: number; readonly maxBytes?: number };
  readonly followers?: Partial<PublisherOptions>;
  readonly onProgress?: (progress: { readonly bytes: number; readonly totalBytes: number }) => void;
}

interface Events {
  state: [state: ReplicatorState, reasons: readonly string[]];
  failed: [error: RivuletError];
}

/**
 * A replicator whose source is another replicator: it follows that one as a replica does, keeps the frames as they
 * come in a log of its own, beside a base file, and serves both to followers as the replicator would. They see no
 * difference: the same bytes, positions and epoch, so that one may move from the one to the other and back.
 *
 * It never holds anything that its source may take back: what a replicator has sent is in Postgres's WAL, which is
 * kept until the replicator's log is on the disk, and comes again at the same position. So the relay itself need not
 * sync its log: what it loses with its machine's power it gets again, and followers that were ahead wait for that.
 *
 * While its source is away it goes on serving what it has, and its followers see the age grow. What ends a history
 * there ends it here: a new base file is fetched beside the old one, and its followers start from it.
 */
export class Relay extends EventEmitter<Events> implements AsyncDisposable {
  readonly publisher: Publisher;
  readonly digests: DigestBoard;
  /** Resolves once followers are served; rejects if that can never be. */
  readonly ready: Promise<void>;
  readonly #ready = Promise.withResolvers<void>();
  readonly #options: RelayOptions;
  readonly #id: string;
  readonly #name: string;
  readonly #lock: FileLock;
  readonly #link: HttpLink;
  readonly #base: BaseFile;
  readonly #abort = new AbortController();
  readonly #lag = new LagHistogram();
  readonly #clock = new WallClock();
  readonly #housekeeping: NodeJS.Timeout;
  readonly #running: Promise<void>;
  #changeLog: ChangeLog | null = null;
  #client: FollowerClient | null = null;
  #state: ReplicatorState = 'starting';
  #lastError: string | null = null;
  /** Ends following: the present history is of no use, for this reason. */
  #giveUp: ((reason: RivuletError) => void) | null = null;
  /** It has followed this source already: it is the right one for the directory. */
  #hasConnected = false;
  #toldFollowersAtMs = Number.NEGATIVE_INFINITY;

  /** Checks the options, takes the data directory, and begins. Rejects on what only a human can mend. */
  static async start(options: RelayOptions): Promise<Relay> {
    makeDataDirectory(options.dataDir);
    const lock = lockFile(join(options.dataDir, 'replicator'), `the data directory ${options.dataDir}`);
    try {
      return new Relay(options, lock);
    } catch (error) {
      lock.release();
      throw error;
    }
  }

  private constructor(options: RelayOptions, lock: FileLock) {
    super();
    this.#options = options;
    this.#lock = lock;
    const { replicator, token, dataDir, log } = options;
    this.#name = options.name ?? `${hostname()}:${basename(resolve(dataDir))}`;
    this.#id = followerId(resolve(dataDir), 'relay');
    this.#link = new HttpLink({ url: replicator, token });
    // Whoever is ahead of a relay comes from one that is faster: it gets there.
    this.publisher = new Publisher({ ...options.followers, log, aheadGraceMs: Number.POSITIVE_INFINITY });
    this.digests = new DigestBoard(this.publisher);
    this.#base = new BaseFile({
      file: join(dataDir, 'base.db'),
      isOurs: true,
      log,
      onDamaged: (damage) => this.#giveUp?.(damage),
    });
    this.ready = this.#ready.promise;
    this.ready.catch(() => undefined);
    this.#housekeeping = setInterval(() => this.#keepHouse(), HOUSEKEEPING_INTERVAL_MS);
    this.#housekeeping.unref();
    this.#running = this.#run();
  }

  get state(): ReplicatorState {
    return this.#state;
  }

  get position(): Lsn | null {
    return this.#changeLog?.position ?? null;
  }

  get snapshots(): SnapshotProvider {
    return this.#base;
  }

  /** Somebody waits for a position: the source is asked in turn, up to Postgres. */
  hasten(): void {
    this.publisher.hasten();
    this.#client?.hasten();
  }

  takeSnapshot(): Promise<never> {
    return Promise.reject(
      new RivuletError('CONFIG', 'a relay has no object store', { hint: 'ask the replicator' }),
    );
  }

  status(): ReplicatorStatus {
    const log = this.#changeLog;
    const { heardAgoMs } = this.publisher;
    return {
      state: this.#state,
      reasons: [
        ...(this.#lastError === null ? [] : [this.#lastError]),
        ...digestWarnings(this.digests.newest),
      ],
      upstream: {
        url: this.#link.base.origin,
        connected: this.#state === 'streaming',
        lastError: this.#lastError,
        postgresHeardAgoMs: heardAgoMs === null ? null : Math.round(heardAgoMs),
        lagMs: this.#lag.summary(this.#clock.now()),
      },
      epoch: log?.epoch ?? null,
      position: log === null ? null : formatLsn(log.position),
      durablePosition: null,
      copy: null,
      postgres: null,
      slot: null,
      tables: null,
      openTransactions: null,
      log: changeLogStatus(log),
      followers: this.publisher.followers(),
      buffers: this.publisher.buffers,
      digest: this.digests.newest,
      snapshot: this.#base.status(),
      store: null,
    };
  }

  /** Stops following and serving. May be called twice. */
  async close(): Promise<void> {
    this.#abort.abort();
    clearInterval(this.#housekeeping);
    await this.#running;
    this.#link.close();
    await this.#base.close();
    await this.publisher.close();
    await this.#changeLog?.close();
    this.#changeLog = null;
    this.#lock.release();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** Ends with the signal, or with what only a human can mend; never rejects. */
  async #run(): Promise<void> {
    const { signal } = this.#abort;
    const { log } = this.#options;
    let fruitless = 0;
    try {
      await this.#openExisting();
      while (!signal.aborted) {
        const before = this.position;
        try {
          if (this.#changeLog === null) await this.#begin(signal);
          await this.#follow(this.#changeLog!, signal);
        } catch (error) {
          if (signal.aborted) return;
          if (!(error instanceof RivuletError) || error.recovery !== 'resnapshot') throw error;
          log.error({ code: error.code }, `this history cannot go on (${error.message}): it is begun anew`);
          this.#become('reconnecting', error.message);
          await this.#begin(signal);
        }
        fruitless = this.position === before ? fruitless + 1 : 0;
        if (fruitless > 1)
          await delay(reconnectDelayMs(fruitless + 3), undefined, { signal }).catch(() => undefined);
      }
    } catch (error) {
      if (signal.aborted) return;
      const failure = asRivuletError(error, 'unexpected');
      this.#become('failed', failure.message);
      log.error({ code: failure.code, hint: failure.hint, err: failure.cause }, failure.message);
      this.#ready.reject(failure);
      this.emit('failed', failure);
    }
  }

  /** What an earlier run left: served at once, whether the source is there or not. */
  async #openExisting(): Promise<void> {
    const { dataDir, log } = this.#options;
    if (!existsSync(join(dataDir, 'log.db'))) return;
    const changeLog = openChangeLog({ dir: dataDir });
    if (!isRelayed(changeLog.source)) {
      await changeLog.close();
      throw new RivuletError('FILE_UNUSABLE', `${dataDir} is the data directory of a replicator`, {
        hint: 'name another directory with --data',
      });
    }
    if (this.#base.matches(changeLog.epoch)) {
      this.#serve(changeLog);
      return;
    }
    await changeLog.close();
    log.warn('the log has no whole base file: it is begun anew');
    removeChangeLog(dataDir);
  }

  /**
   * A base file from the source, and a log that begins where it stands, in place of what there is. Killed on the
   * way, the next start finds the old ones, or a base file without its log, and begins again.
   */
  async #begin(signal: AbortSignal): Promise<void> {
    const { dataDir, log, onProgress } = this.#options;
    if (this.#changeLog === null) this.#become('copying', null);
    const file = join(dataDir, 'base.db.download');
    const facts = await downloadSnapshot({
      link: this.#link,
      file,
      signal,
      accept: (offered) => this.#checkSameDatabase(offered),
      onProgress: (progress) => onProgress?.(progress),
      onRetry: (error, retryInMs) => {
        // With something to serve a token may be on its way to both sides; without it nothing would ever come of it.
        if (error.code === 'UNAUTHORIZED' && this.#changeLog === null) throw error;
        this.#lastError = error.message;
        log.warn({ code: error.code, hint: error.hint, retryInMs }, error.message);
      },
    });
    await this.#forget();
    this.#base.adopt(file, facts);
    const startPosition = this.#base.position;
    if (startPosition === null || !this.#base.matches(facts.epoch))
      throw new RivuletError('SNAPSHOT_CORRUPT', 'the snapshot is not a replica');
    this.#serve(
      createChangeLog({
        dir: dataDir,
        epoch: facts.epoch,
        startPosition,
        source: relayedSource(readIdentity(this.#base.file)),
        sourceState: '{}',
      }),
    );
  }

  async #forget(): Promise<void> {
    this.publisher.detach();
    await this.#base.invalidate();
    await this.#changeLog?.close();
    this.#changeLog = null;
    removeChangeLog(this.#options.dataDir);
  }

  #serve(changeLog: ChangeLog): void {
    this.#changeLog = changeLog;
    this.#base.attach(changeLog);
    this.publisher.attach(changeLog);
    this.publisher.open();
    this.#become('reconnecting', null);
    this.#ready.resolve();
  }

  /** Until the signal (resolves), or until this history cannot go on (rejects). */
  async #follow(changeLog: ChangeLog, signal: AbortSignal): Promise<void> {
    const { publisher } = this;
    const { log } = this.#options;
    const stop = new AbortController();
    let reason: RivuletError | null = null;
    this.#giveUp = (why) => {
      reason ??= why;
      stop.abort();
    };
    this.#client = new FollowerClient({
      link: this.#link,
      file: new RelayedLog({
        changeLog,
        publisher,
        onTransactions: (commitTimesMs) => {
          const nowMs = this.#clock.now();
          for (const commitTimeMs of commitTimesMs) this.#lag.record(nowMs - commitTimeMs, nowMs);
        },
      }),
      id: this.#id,
      name: this.#name,
      // The digests of its followers are compared here.
      digests: false,
      // Somebody below may wait for a position: each is passed on.
      positionIntervalMs: 0,
      onConnected: (hello) => {
        this.#hasConnected = true;
        log.info({ position: hello.position }, `following ${this.#link.base.origin}`);
        this.#become('streaming', null);
      },
      onCurrent: (asOfMs, clockMs) => {
        publisher.heard(
          Math.max(0, monotonicMs() - asOfMs),
          clockMs === null ? 0n : BigInt(Math.round(clockMs * 1000)),
        );
        if (clockMs === null) return;
        const nowMs = this.#clock.now();
        this.#lag.record(nowMs - clockMs, nowMs);
      },
      onDisconnected: (error, retryInMs) => {
        publisher.paused();
        this.#become('reconnecting', error.message);
        log.warn({ code: error.code, hint: error.hint, retryInMs }, error.message);
      },
      report: () => this.#report(changeLog),
    });
    try {
      await this.#client.run(AbortSignal.any([signal, stop.signal]));
      if (reason !== null) throw reason;
    } finally {
      this.#client = null;
      this.#giveUp = null;
      publisher.paused();
    }
  }

  #report(changeLog: ChangeLog): Parameters<HttpLink['report']>[1] {
    const own = {
      name: this.#name,
      position: changeLog.position,
      lagMs: this.#lag.summary(this.#clock.now()),
    };
    // They report to us no more often than that.
    if (performance.now() - this.#toldFollowersAtMs < this.publisher.reportIntervalMs - 500) return own;
    this.#toldFollowersAtMs = performance.now();
    return { ...own, followers: this.publisher.followers() };
  }

  /** A wrong URL must not give all followers another database. */
  #checkSameDatabase({ systemIdentifier, databaseName }: SnapshotFacts): void {
    const ours = this.#changeLog?.source;
    if (ours === undefined || this.#hasConnected) return;
    if (ours.systemIdentifier === systemIdentifier && ours.database === databaseName) return;
    throw new RivuletError(
      'FILE_UNUSABLE',
      `${this.#options.dataDir} is of another database (${ours.database}) than the one that is offered (${databaseName})`,
      { hint: 'name another directory with --data, or delete this one if it is not needed any more' },
    );
  }

  #keepHouse(): void {
    const changeLog = this.#changeLog;
    if (changeLog === null) return;
    const { maxAgeMs = DEFAULT_RETENTION_MS, maxBytes = DEFAULT_RETENTION_BYTES } =
      this.#options.retention ?? {};
    this.#base.advanceIfDue();
    const keepFrom = this.#base.position ?? changeLog.position;
    changeLog.prune({ maxAgeMs, maxBytes, keepFrom }).catch((error: unknown) => {
      this.#options.log.warn({ err: error }, 'the change log could not be shortened: it is tried again');
    });
  }

  #become(state: ReplicatorState, error: string | null): void {
    if (this.#state !== state) this.#options.log.info({ from: this.#state, to: state }, `relay is ${state}`);
    this.#state = state;
    this.#lastError = error;
    this.emit('state', state, error === null ? [] : [error]);
  }
}

function readIdentity(file: string): { readonly systemIdentifier: string; readonly database: string } {
  const db = new Database(file, { readonly: true });
  try {
    const { systemIdentifier, databaseName } = readOrigin(db);
    return { systemIdentifier: systemIdentifier ?? '', database: databaseName ?? '' };
  } finally {
    db.close();
  }
}

/** See Relay. */
export function startRelay(options: RelayOptions): Promise<Relay> {
  return Relay.start(options);
}
