import { rmSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import Database from 'better-sqlite3';
import type { DigestAnnouncement, Hello } from '../change/frame.ts';
import { giveBack } from '../change/give-back.ts';
import { asRivuletError, isDiskFull, ProtocolError, RivuletError } from '../errors.ts';
import { formatLsn, type Lsn, parseLsn } from '../lsn.ts';
import { Applier } from './applier.ts';
import { WalKeeper } from './checkpointer.ts';
import { Digester } from './digester.ts';
import { type FollowedFile, FollowerClient, reconnectDelayMs } from './follower-client.ts';
import type { FollowerLink } from './follower-link.ts';
import type { HttpLink } from './http-link.ts';
import { LagHistogram } from './lag-histogram.ts';
import { type LocalEvents, localLog } from './local-log.ts';
import { LocalObjects } from './local-objects.ts';
import { type LocalScript, NO_LOCAL_OBJECTS } from './local-sql.ts';
import { PortLink } from './port-link.ts';
import { type MendableFile, REPAIR_POLL_MS, RepairDesk } from './repair-desk.ts';
import { sweepReplaced } from './replaced-tables.ts';
import {
  currentTarget,
  type FileLock,
  lockFile,
  openReplicaFile,
  readOrigin,
  readPosition,
  removeOldGenerations,
  replicaFileExists,
  swapInto,
} from './replica-file.ts';
import type { ReplicaState } from './replica-status.ts';
import { downloadSnapshot, type SnapshotFacts } from './snapshot-download.ts';
import type { StoreSource } from './store-source.ts';
import { WallClock } from './wall-clock.ts';

/** How often the thread looks whether the replicator in its process has put a new file in place. */
const NEW_FILE_POLL_MS = 50;

/** Pause between two steps of deleting a table that was replaced. */
const SWEEP_INTERVAL_MS = 20;

/**
 * A file that catches up is written faster than its WAL can be copied back beside it. Copied back rarely, each page is
 * once for many times that it was written, and the writer does not wait for the disk.
 */
const MOST_WAL_BYTES = 512 * 1024 * 1024;
/** So much in one apply does not come from a stream that keeps up. */
const BURST_BYTES = 256 * 1024;

/** What happened, for whoever shows it or wakes up by it. */
export interface KeeperEvents extends LocalEvents {
  /** Readers may open the file (again: after a new bootstrap it is another one). */
  onFile(file: {
    readonly target: string;
    readonly epoch: string;
    readonly position: Lsn;
    /** SQLite names of the tables that are being read again. */
    readonly reloading: readonly string[];
  }): void;
  onApplied(applied: {
    /** Every transaction up to here is in the tables. */
    readonly position: Lsn;
    readonly reloading: readonly string[];
    readonly transactions: number;
    readonly tables: readonly string[];
    readonly lastLagMs: number | null;
    /** Of frames. */
    readonly bytes: number;
  }): void;
  onState(state: ReplicaState, reason: RivuletError | null): void;
  onProgress(progress: { readonly bytes: number; readonly totalBytes: number }): void;
  /** The replicator's position when it was last heard. */
  onHead(position: Lsn): void;
  /**
   * The file holds everything that Postgres had sent at this moment of monotonicMs(); `isWhole`: of tables that are
   * read again as well.
   */
  onCurrent(asOfMs: number, isWhole: boolean): void;
  onPinned(walBytes: number): void;
  onLog(level: 'info' | 'warn' | 'error', message: string, facts: Readonly<Record<string, unknown>>): void;
}

export interface KeeperOptions {
  readonly file: string;
  readonly link: HttpLink | PortLink;
  /** Where snapshots and segments are; with an HttpLink only. */
  readonly store?: StoreSource | null;
  readonly id: string;
  readonly name: string;
  /** The user's own objects, which every file has before readers see it. */
  readonly localScript: LocalScript | null;
  readonly events: KeeperEvents;
}

/** The file while nobody writes to it: whole, without a WAL. */
export interface StillFile {
  readonly path: string;
  readonly epoch: string;
  /** Where the stream goes on from. */
  readonly position: Lsn;
  readonly systemIdentifier: string | null;
  readonly databaseName: string | null;
}

/** A whole file beside the one that is kept, and what its giver says of it. */
interface Download {
  readonly path: string;
  readonly facts: SnapshotFacts;
}

/**
 * Keeps one replica file: makes it from the replicator's snapshot where there is none, follows, and makes it
 * anew when it cannot go on. A new file is brought up to the replicator's position beside the old one before it
 * takes its place: readers see neither an unfinished file nor an older state than before.
 *
 * With an object store the file comes from there, and the replicator is asked only where the store has nothing of
 * use; while the replicator is away, the segments in the store are followed.
 *
 * Killed at any moment, it leaves the old file, or the new one, and a download: the next start goes on with that of
 * a store and throws away that of a replicator.
 */
export class ReplicaKeeper {
  readonly #options: KeeperOptions;
  readonly #lag = new LagHistogram();
  readonly #clock = new WallClock();
  readonly #link: FollowerLink;
  #lock: FileLock | null = null;
  #kept: KeptFile | null = null;
  #client: FollowerClient | null = null;
  #desk: RepairDesk | null = null;
  readonly #digester: Digester;
  /** Whether this process has followed this replicator already: it is the right one for the file. */
  #hasConnected = false;
  /** Ends the stream for a moment. */
  #pause = new AbortController();
  #still: { use(file: StillFile): Promise<void>; refuse(error: Error): void } | null = null;
  /** What standStill() rejects with once run() has ended. */
  #end: RivuletError | null = null;

  constructor(options: KeeperOptions) {
    this.#options = options;
    this.#link = options.store?.link ?? options.link;
    const { id, events } = options;
    this.#digester = new Digester({
      onDigest: (digest) => void this.#link.digest(id, digest).catch(() => undefined),
      onProblem: (message) => events.onLog('warn', message, {}),
    });
  }

  lagSummary(): ReturnType<LagHistogram['summary']> {
    return this.#lag.summary(this.#clock.now());
  }

  hasten(): void {
    this.#client?.hasten();
  }

  /** Somebody in another process waits: for a position, or for rows to be mended. */
  wanted(): void {
    this.hasten();
    this.#mend();
  }

  /**
   * Has `use` run while nobody writes to the file, and none of it is in a WAL; what is committed meanwhile is applied
   * afterwards. One at a time. Rejects (CLOSED) if run() has ended, or ends before.
   */
  standStill<T>(use: (file: StillFile) => Promise<T>): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      if (this.#end !== null) return reject(this.#end);
      this.#still = { use: (file) => use(file).then(resolve, reject), refuse: reject };
      this.#pause.abort();
    });
  }

  /** Runs until `signal` aborts (resolves) or only a human can help (rejects). Then the file is closed. */
  async run(signal: AbortSignal): Promise<void> {
    const { file, events, store = null } = this.#options;
    let mending: NodeJS.Timeout | undefined;
    try {
      this.#lock = lockFile(file);
      this.#desk = new RepairDesk(file, (level, message, facts) => events.onLog(level, message, facts));
      mending = setInterval(() => this.#mend(), REPAIR_POLL_MS);
      this.#removeDownloads(store === null ? null : this.#storeDownloadFile);
      if (replicaFileExists(file)) {
        this.#open();
        removeOldGenerations(file);
      }
      let fruitless = 0;
      while (!signal.aborted) {
        try {
          if (this.#kept === null) await this.#bootstrap(null, signal);
          await this.#standStill();
          await this.#follow(this.#kept!, signal);
        } catch (error) {
          if (signal.aborted) return;
          if (!(error instanceof RivuletError) || error.recovery !== 'resnapshot') throw error;
          events.onLog('warn', `the file has to be made anew: ${error.message}`, { code: error.code });
          const before = this.#kept?.position;
          await this.#bootstrap(error, signal);
          fruitless = this.#kept!.position === before ? fruitless + 1 : 0;
          // A file that fails again at once must not be downloaded in a circle.
          if (fruitless > 1)
            await delay(reconnectDelayMs(fruitless + 3), undefined, { signal }).catch(() => undefined);
        }
      }
    } finally {
      clearInterval(mending);
      this.#end = new RivuletError('CLOSED', 'the replica is closed');
      this.#still?.refuse(this.#end);
      this.#digester.close();
      await this.#kept?.closeForReaders();
      this.#kept = null;
      this.#link.close();
      await store?.close();
      this.#lock?.release();
    }
  }

  /** Mends rows if somebody asks for it. Follows the clock, not the stream: nothing may come for long. */
  #mend(): void {
    const kept = this.#kept;
    if (kept === null || this.#desk === null) return;
    const { tables, again } = this.#desk.look(kept);
    if (tables.length > 0) {
      kept.afterCommit();
      const { settled, reloading } = kept;
      this.#options.events.onApplied({
        position: settled,
        reloading,
        transactions: 0,
        tables,
        lastLagMs: this.#lag.last,
        bytes: 0,
      });
    }
    if (again) setImmediate(() => this.#mend());
  }

  async #standStill(): Promise<void> {
    const [still, kept] = [this.#still, this.#kept!];
    this.#pause = new AbortController();
    this.#still = null;
    if (still === null) return;
    const { path, epoch, position, systemIdentifier, databaseName } = kept;
    try {
      kept.close({ checkpoint: true });
    } catch (error) {
      kept.close();
      this.#open();
      still.refuse(error as Error);
      return;
    }
    this.#kept = null;
    await still.use({ path, epoch, position, systemIdentifier, databaseName });
    this.#open();
  }

  #digest(file: string, { id, limitMs }: DigestAnnouncement): void {
    if (limitMs === null) this.#digester.prepare(id);
    else this.#digester.begin({ id, file, limitMs });
  }

  get #downloadFile(): string {
    return `${this.#options.file}.download`;
  }

  /** Apart from the other: what has come of it is worth keeping whatever happens. */
  get #storeDownloadFile(): string {
    return `${this.#options.file}.store-download`;
  }

  #removeDownloads(except: string | null): void {
    for (const path of [this.#downloadFile, this.#storeDownloadFile])
      if (path !== except)
        for (const suffix of ['', '-wal', '-shm', '-journal']) rmSync(`${path}${suffix}`, { force: true });
  }

  #open(): void {
    const { file, events } = this.#options;
    this.#desk?.endWatch();
    this.#kept = new KeptFile(currentTarget(file) ?? file, this.#options, {
      onDigest: (path, announcement) => this.#digest(path, announcement),
    });
    this.#kept.makeLocalObjects();
    const { epoch, settled, reloading } = this.#kept;
    events.onFile({ target: this.#kept.path, epoch, position: settled, reloading });
  }

  async #follow(kept: KeptFile, signal: AbortSignal): Promise<void> {
    const { id, name, events } = this.#options;
    let head: Lsn | null = null;
    let isLive = false;
    const settle = (): void => {
      if (isLive || head === null || kept.position < head || this.#fallbackReason !== null) return;
      isLive = true;
      events.onState('live', null);
    };
    const file: FollowedFile = {
      get epoch() {
        return kept.epoch;
      },
      get position() {
        return kept.position;
      },
      apply: (frames, commitTimesMs) => {
        const before = kept.position;
        this.#desk?.see(frames);
        const applied = kept.apply(frames);
        const bytes = frames.length;
        giveBack(frames);
        if (applied.position === before) return;
        const nowMs = this.#clock.now();
        for (const commitTimeMs of commitTimesMs) this.#lag.record(nowMs - commitTimeMs, nowMs);
        events.onApplied({
          position: applied.settled,
          reloading: kept.reloading,
          transactions: applied.transactions,
          tables: applied.tables,
          lastLagMs: this.#lag.last,
          bytes,
        });
        settle();
      },
      abandonParts: () => kept.abandonParts(),
    };
    this.#client = new FollowerClient({
      link: this.#link,
      file,
      id,
      name,
      onConnected: (hello) => {
        this.#hasConnected = true;
        head = parseLsn(hello.position);
        isLive = false;
        events.onHead(head);
        const fallback = this.#fallbackReason;
        events.onState(fallback === null ? 'catching-up' : 'following-store', fallback);
        if (fallback !== null) {
          events.onLog('warn', `${fallback.message}: the object store is followed meanwhile`, {
            position: hello.position,
          });
        }
        settle();
      },
      onCurrent: (asOfMs, clockMs) => {
        events.onCurrent(asOfMs, kept.reloading.length === 0);
        if (clockMs === null) return;
        // Without changes this is how long one would take.
        const nowMs = this.#clock.now();
        this.#lag.record(nowMs - clockMs, nowMs);
      },
      onDisconnected: (reason, retryInMs) => this.#disconnected(reason, retryInMs),
      report: () => ({ name, position: kept.position, lagMs: this.lagSummary() }),
    });
    try {
      await this.#client.run(AbortSignal.any([signal, this.#pause.signal]));
    } finally {
      this.#client = null;
    }
  }

  /** A new file from the replicator's snapshot, brought up to date, in place of the one before. */
  async #bootstrap(reason: RivuletError | null, signal: AbortSignal): Promise<void> {
    const { file, link, store = null, events } = this.#options;
    events.onState('bootstrapping', reason);
    if (link instanceof PortLink) {
      if (reason !== null) await link.startOver(reason);
      await this.#awaitNewFile(signal);
      return;
    }
    let wasUseless = false;
    for (let isStoreUseful = store !== null; ; ) {
      const download =
        (isStoreUseful ? await this.#downloadFromStore(signal) : null) ??
        (await this.#downloadFromReplicator(link, wasUseless, signal));
      // The store is asked again: it may be the replicator that is away.
      if (download === null) continue;
      try {
        await this.#catchUpDownload(download, signal);
      } catch (error) {
        if (signal.aborted) throw error;
        if (!(error instanceof RivuletError) || error.recovery !== 'resnapshot') throw error;
        events.onLog('warn', `the snapshot is of no use: ${error.message}`, { code: error.code });
        wasUseless = true;
        // The store's history may be over, and the replicator's have begun.
        isStoreUseful = !isStoreUseful && store !== null;
        await delay(reconnectDelayMs(3), undefined, { signal });
        continue;
      }
      signal.throwIfAborted();
      this.#kept?.close();
      this.#kept = null;
      swapInto(file, download.path, download.facts.epoch);
      this.#removeDownloads(null);
      this.#open();
      return;
    }
  }

  /** Null if the store cannot give one now; why is logged. */
  async #downloadFromStore(signal: AbortSignal): Promise<Download | null> {
    const { file, store = null, events } = this.#options;
    if (store === null) return null;
    const path = this.#storeDownloadFile;
    try {
      const facts = await store.download({
        file: path,
        seed: currentTarget(file) ?? undefined,
        signal,
        // That this is the right replicator does not make it the right store.
        accept: (offered) => this.#checkSameDatabase(offered),
        onProgress: (progress) => events.onProgress(progress),
      });
      return { path, facts };
    } catch (cause) {
      if (signal.aborted) throw cause;
      const error = asRivuletError(cause, 'the download from the object store failed');
      if (error.code === 'VERSION_MISMATCH' || error.code === 'FILE_UNUSABLE') throw error;
      events.onState('bootstrapping', error);
      events.onLog('warn', error.message, { code: error.code, hint: error.hint });
      return null;
    }
  }

  /** For as long as it takes; with a store only until it fails, and then null. */
  async #downloadFromReplicator(
    link: HttpLink,
    wasUseless: boolean,
    signal: AbortSignal,
  ): Promise<Download | null> {
    const { store = null, events } = this.#options;
    const stop = new AbortController();
    const path = this.#downloadFile;
    try {
      const facts = await downloadSnapshot({
        link,
        file: path,
        signal: AbortSignal.any([signal, stop.signal]),
        wasUseless,
        accept: (offered) => {
          if (!this.#hasConnected) this.#checkSameDatabase(offered);
        },
        onProgress: (progress) => events.onProgress(progress),
        onRetry: (error, retryInMs) => {
          // With a file in place a token may be on its way to both sides; without one nothing would ever come of it.
          if (error.code === 'UNAUTHORIZED' && this.#kept === null) throw error;
          events.onState('bootstrapping', error);
          events.onLog('warn', error.message, { code: error.code, hint: error.hint, retryInMs });
          if (store !== null) stop.abort();
        },
      });
      return { path, facts };
    } catch (error) {
      if (signal.aborted || !stop.signal.aborted) throw error;
      await delay(reconnectDelayMs(4), undefined, { signal });
      return null;
    }
  }

  /** In one process the replicator itself builds the file and puts it in place; readers keep the old one till then. */
  async #awaitNewFile(signal: AbortSignal): Promise<void> {
    const { file } = this.#options;
    const before = this.#kept?.epoch ?? null;
    for (;;) {
      signal.throwIfAborted();
      if (replicaFileExists(file) && epochOf(file) !== before) break;
      await delay(NEW_FILE_POLL_MS, undefined, { signal });
    }
    this.#kept?.close();
    this.#kept = null;
    this.#open();
  }

  /** Follows with the downloaded file until it is where the replicator was, and not behind what readers have. */
  async #catchUpDownload({ path, facts }: Download, signal: AbortSignal): Promise<void> {
    const { id, name } = this.#options;
    const download = openDownload(path, this.#options);
    try {
      if (download.epoch !== facts.epoch || download.position !== parseLsn(facts.lsn)) {
        throw new RivuletError(
          'SNAPSHOT_CORRUPT',
          `the snapshot says it is at ${facts.lsn} and holds ${formatLsn(download.position)}`,
        );
      }
      await this.#applySegments(download, signal);
      const before = this.#kept;
      const reached = new AbortController();
      let target: Lsn | null = null;
      const check = (): void => {
        if (target !== null && download.position >= target) reached.abort();
      };
      const client = new FollowerClient({
        link: this.#link,
        file: {
          epoch: download.epoch,
          get position() {
            return download.position;
          },
          apply: (frames) => {
            download.apply(frames);
            giveBack(frames);
            check();
          },
          abandonParts: () => download.abandonParts(),
        },
        id,
        name,
        onConnected: (hello: Hello) => {
          this.#hasConnected = true;
          // Of the store it has all that there is to have.
          target = this.#fallbackReason === null ? parseLsn(hello.position) : download.position;
          if (before !== null && before.epoch === download.epoch && before.position > target)
            target = before.position;
          check();
        },
        onDisconnected: (error, retryInMs) => this.#disconnected(error, retryInMs),
        report: () => ({ name, position: download.position, lagMs: { p50: null, p99: null, last: null } }),
      });
      await client.run(AbortSignal.any([signal, reached.signal]));
      signal.throwIfAborted();
      // Now that the rows are in: filling a table at once is much cheaper than row by row.
      download.makeLocalObjects();
    } finally {
      download.close({ checkpoint: true });
    }
  }

  /** What the store has behind its snapshot; what it does not give, the replicator may. */
  async #applySegments(download: KeptFile, signal: AbortSignal): Promise<void> {
    const { store = null, events } = this.#options;
    if (store === null) return;
    try {
      await store.applySegments({
        epoch: download.epoch,
        position: () => download.position,
        apply: (frames) => download.apply(frames),
        signal,
      });
    } catch (error) {
      if (signal.aborted || !(error instanceof RivuletError) || error.code === 'VERSION_MISMATCH')
        throw error;
      events.onLog('warn', error.message, { code: error.code, hint: error.hint });
    }
  }

  /** A wrong URL must not cost somebody the replica of another database. */
  #checkSameDatabase(offered: SnapshotFacts): void {
    const { file } = this.#options;
    if (this.#kept === null) return;
    const { systemIdentifier, databaseName } = this.#kept;
    const isOther = (ours: string | null, theirs: string | null): boolean =>
      ours !== null && theirs !== null && ours !== theirs;
    if (!isOther(systemIdentifier, offered.systemIdentifier) && !isOther(databaseName, offered.databaseName))
      return;
    throw new RivuletError(
      'FILE_UNUSABLE',
      `${file} was made from another database (${databaseName}) than the one that is offered (${offered.databaseName})`,
      {
        hint: 'name another file, or delete this one if it is not needed any more',
        facts: { file },
      },
    );
  }

  /** Why the store is followed; null while it is not. */
  get #fallbackReason(): RivuletError | null {
    return this.#options.store?.link.fallbackReason ?? null;
  }

  #disconnected(reason: RivuletError, retryInMs: number): void {
    const { events } = this.#options;
    events.onState('disconnected', reason);
    events.onLog('warn', reason.message, { code: reason.code, hint: reason.hint, retryInMs });
  }
}

function epochOf(file: string): string {
  const db = openReplicaFile(file);
  try {
    return readPosition(db).epoch;
  } finally {
    db.close();
  }
}

function openDownload(path: string, options: KeeperOptions): KeptFile {
  try {
    return new KeptFile(path, options, { isDownload: true });
  } catch (cause) {
    if (cause instanceof RivuletError && cause.code === 'VERSION_MISMATCH') throw cause;
    throw new RivuletError('SNAPSHOT_CORRUPT', `the snapshot is not a replica: ${(cause as Error).message}`, {
      cause,
    });
  }
}

/** One open replica file with all that it takes to apply to it. */
class KeptFile implements MendableFile {
  readonly path: string;
  readonly systemIdentifier: string | null;
  readonly databaseName: string | null;
  readonly #db: Database.Database;
  readonly #applier: Applier;
  readonly #local: LocalObjects;
  readonly #walKeeper: WalKeeper | null;
  readonly #onLog: KeeperEvents['onLog'];
  #sweeping: NodeJS.Timeout | null = null;

  constructor(
    path: string,
    { events, localScript }: KeeperOptions,
    {
      isDownload = false,
      onDigest,
    }: {
      readonly isDownload?: boolean;
      readonly onDigest?: (path: string, announcement: DigestAnnouncement) => void;
    } = {},
  ) {
    this.path = path;
    this.#onLog = events.onLog;
    this.#db = openReplicaFile(path);
    // Nobody reads a download yet, so its writer may as well checkpoint by itself; no thread must hold it open
    // when it is moved.
    if (isDownload) this.#db.pragma('wal_autocheckpoint = 4000');
    try {
      const { systemIdentifier, databaseName } = readOrigin(this.#db);
      this.systemIdentifier = systemIdentifier;
      this.databaseName = databaseName;
      this.#local = new LocalObjects(this.#db, {
        script: localScript ?? NO_LOCAL_OBJECTS,
        ...localLog(events, localScript),
      });
      this.#applier = new Applier(this.#db, {
        local: this.#local,
        ...(onDigest === undefined ? {} : { onDigest: (announcement) => onDigest(path, announcement) }),
        onNotice: ({ type, name, table, reason }) => {
          events.onLog(
            'warn',
            `the ${type} ${name} on ${table} stood in the way and was dropped: ${reason}`,
            {},
          );
        },
      });
      this.#walKeeper = isDownload
        ? null
        : new WalKeeper({
            file: path,
            mostBytes: MOST_WAL_BYTES,
            onPinned: (walBytes) => events.onPinned(walBytes),
          });
      this.#sweep();
    } catch (error) {
      this.#db.close();
      throw error;
    }
  }

  get epoch(): string {
    return this.#applier.epoch;
  }

  /** Those that the script declares, and no others. Readers see all of them at once. */
  makeLocalObjects(): void {
    try {
      this.#local.open();
    } catch (error) {
      if (isDiskFull(error))
        throw new RivuletError('DISK_FULL', `no space is left to write ${this.path}`, { cause: error });
      throw error;
    }
    this.#walKeeper?.afterCommit(this.#db);
  }

  /** Where the stream goes on from. */
  get position(): Lsn {
    return this.#applier.position;
  }

  get settled(): Lsn {
    return this.#applier.settled;
  }

  get reloading(): readonly string[] {
    return this.#applier.reloading;
  }

  get db(): Database.Database {
    return this.#db;
  }

  get layouts(): Applier['layouts'] {
    return this.#applier.layouts;
  }

  get isIdle(): boolean {
    return this.#db.open && !this.#applier.hasOpenParts && !this.#db.inTransaction;
  }

  apply(frames: Buffer): ReturnType<Applier['apply']> {
    const applied = this.#applier.apply(frames);
    this.afterCommit(frames.length >= BURST_BYTES);
    if (applied.schemaChanged) this.#sweep();
    return applied;
  }

  afterCommit(isBurst = false): void {
    this.#walKeeper?.afterCommit(this.#db, isBurst);
  }

  /** Deletes tables that were replaced, a little at a time between the transactions. */
  #sweep(): void {
    this.#sweeping ??= setTimeout(() => {
      this.#sweeping = null;
      if (!this.#db.open) return;
      try {
        if (!this.#db.inTransaction && !sweepReplaced(this.#db)) return;
        this.afterCommit();
      } catch (error) {
        // A full disk, a reader's lock: what is left is deleted the next time that the file is opened.
        this.#onLog('warn', `a table that was replaced is not deleted yet: ${(error as Error).message}`, {});
        return;
      }
      this.#sweep();
    }, SWEEP_INTERVAL_MS);
  }

  abandonParts(): void {
    if (this.#db.open) this.#applier.abandonParts();
  }

  /**
   * Ends it for a while. Who may only read the file and its directory could not open it without -wal and -shm, and the
   * last connection to close takes them away, unless that may only read as well.
   * https://www.sqlite.org/wal.html#read_only_databases
   */
  async closeForReaders(): Promise<void> {
    if (!this.#db.open) return;
    let reader: Database.Database | null = null;
    try {
      reader = new Database(this.path, { readonly: true });
      // It joins the others at its first read.
      reader.prepare('SELECT 1 FROM sqlite_schema').get();
      await this.#walKeeper?.close();
      this.#applier.abandonParts();
      // So that whoever copies the file alone has all of it.
      this.#db.pragma('busy_timeout = 0');
      this.#db.pragma('wal_checkpoint(TRUNCATE)');
    } catch (error) {
      // On a full disk, say. Everything is in the -wal still, for the next who opens the file.
      this.#onLog('warn', `the WAL of ${this.path} stays as it is: ${(error as Error).message}`, {});
    } finally {
      this.close();
      reader?.close();
    }
  }

  close(options: { readonly checkpoint?: boolean } = {}): void {
    if (!this.#db.open) return;
    clearTimeout(this.#sweeping ?? undefined);
    this.#walKeeper?.close();
    this.#applier.abandonParts();
    if (options.checkpoint === true) {
      const [row] = this.#db.pragma('wal_checkpoint(TRUNCATE)') as { busy: number }[];
      if (row?.busy !== 0) throw new ProtocolError(`the WAL of ${this.path} could not be written back`);
    }
    this.#db.close();
  }
}
