import { setTimeout as delay } from 'node:timers/promises';
import type { ChangeLog, LogCursor } from '../changelog/change-log.ts';
import { asRivuletError, ConfigError, RivuletError } from '../errors.ts';
import type { Log } from '../log.ts';
import { formatLsn, type Lsn } from '../lsn.ts';
import { Archive } from '../snapshot/archive.ts';
import type { ArchiveFacts, ArchiveSettings } from '../snapshot/archive-session.ts';
import { DEFAULT_SNAPSHOT_RETENTION, type SnapshotRetention } from '../snapshot/retention.ts';
import { DEFAULT_SEGMENT_BYTES } from '../snapshot/segment-writer.ts';
import type { SnapshotProvider } from '../snapshot/snapshot-provider.ts';
import { DEFAULT_SNAPSHOT_INTERVAL_MS, isSnapshotDue } from '../snapshot/snapshot-schedule.ts';
import type { SnapshotReport } from '../snapshot/snapshot-writer.ts';
import { StoreUpkeep } from '../snapshot/store-upkeep.ts';
import type { StoreLocation } from '../store/open-store.ts';
import { backoffMs } from './backoff.ts';
import type { StoreStatus } from './status.ts';

/** Where an acknowledgement to Postgres rests: on the log's disk, or on segments in the store. */
export type Durability = 'local' | 'store';

/** How old a change may become before it is in the store. */
export const DEFAULT_SEGMENT_AGE_MS = 10_000;

const TICK_MS = 250;
/** Read from the log in one turn of the event loop. */
const READ_BYTES = 512 * 1024;
/** On an idle database the archived position still moves, for whoever follows from the store. */
const IDLE_INTERVAL_MS = 60_000;
const SNAPSHOT_RETRY_MS = 30_000;
/** What failed, of what nobody foresaw. */
const FAILED = 'archiving failed';
/** A store that is away for longer shows in the status. */
const TOLERATED_OUTAGE_MS = 30_000;

export interface StoreOptions {
  readonly location: StoreLocation;
  readonly durability?: Durability;
  readonly segmentAgeMs?: number;
  readonly snapshotIntervalMs?: number;
  readonly retention?: Partial<SnapshotRetention>;
  readonly settings?: ArchiveSettings;
}

export interface ArchiverOptions extends StoreOptions {
  /** How long ago Postgres last said that there is no more than what is in the log, ms. */
  readonly heardAgoMs: () => number;
  readonly snapshots: SnapshotProvider;
  readonly log: Log;
}

/**
 * Keeps the object store up to date with one replicator: what was committed goes there as segments, some seconds
 * behind, and the base file as a snapshot every so often. The store's being away only makes it wait; what it then
 * takes up is whatever the log still holds.
 *
 * Replaced by another replicator (STORE_FENCED) it stops for good.
 */
export class Archiver implements AsyncDisposable {
  readonly #options: ArchiverOptions;
  readonly #archive: Archive;
  #changeLog: ChangeLog | null = null;
  #epochEnd = new AbortController();
  #running: Promise<void> = Promise.resolve();
  #cursor: LogCursor | null = null;
  /** True while the facts of the archive are of the present history. */
  #isOpen = false;
  #dueAtMs = Number.POSITIVE_INFINITY;
  #sealedAtMs = Number.NEGATIVE_INFINITY;
  #snapshotting: Promise<SnapshotReport> | null = null;
  #nextSnapshotAtMs = 0;
  readonly #upkeep: StoreUpkeep;
  #failure: RivuletError | null = null;
  #failingSinceMs: number | null = null;
  #snapshotFailure: RivuletError | null = null;
  #isFenced = false;

  constructor(options: ArchiverOptions) {
    this.#options = options;
    this.#archive = new Archive({
      location: options.location,
      settings: options.settings ?? {},
      log: options.log,
    });
    const retention = { ...DEFAULT_SNAPSHOT_RETENTION, ...options.retention };
    this.#upkeep = new StoreUpkeep({
      log: options.log,
      prune: () => this.#archive.call('prune', retention),
      sweep: () => this.#archive.call('sweep', undefined),
    });
  }

  /** The log to archive from now on. */
  attach(changeLog: ChangeLog): void {
    if (this.#isFenced) return;
    this.#changeLog = changeLog;
    this.#epochEnd = new AbortController();
    const { signal } = this.#epochEnd;
    this.#running = this.#running.then(() => this.#run(changeLog, signal)).catch(() => undefined);
  }

  /** The history ends, or the replicator does: the log is not touched any more. */
  detach(): void {
    this.#changeLog = null;
    this.#isOpen = false;
    this.#epochEnd.abort();
  }

  /** Up to where Postgres may forget, as far as the store is concerned. */
  durablePosition(changeLog: ChangeLog): Lsn {
    if (this.#options.durability !== 'store') return changeLog.durablePosition;
    const position = this.#resumable(changeLog) ?? changeLog.oldestPosition;
    return position < changeLog.durablePosition ? position : changeLog.durablePosition;
  }

  /** The log has to stay from here on; null: the store asks for nothing. */
  keepFrom(changeLog: ChangeLog): Lsn | null {
    return this.#options.durability === 'store' ? this.durablePosition(changeLog) : null;
  }

  /** Takes one now, or gives the one that is under way. */
  async takeSnapshot(): Promise<SnapshotReport> {
    if (this.#isFenced) throw this.#failure!;
    if (this.#isElsewhere) {
      throw new ConfigError('this replicator leaves the snapshots to another process', {
        hint: 'ask the `rivulet snapshotter`, where it listens',
      });
    }
    if (!this.#isOpen)
      throw this.#failure ?? new RivuletError('NOT_READY', 'the object store is not open yet');
    this.#snapshotting ??= this.#snapshot().finally(() => {
      this.#snapshotting = null;
    });
    return await this.#snapshotting;
  }

  get #isElsewhere(): boolean {
    return this.#options.settings?.snapshotsElsewhere === true;
  }

  status(): StoreStatus {
    const log = this.#changeLog;
    const facts = this.#isOpen ? this.#archive.facts : null;
    const { progress } = this.#archive;
    return {
      url: this.#options.location.url,
      durability: this.#options.durability ?? 'local',
      state: this.#isFenced ? 'fenced' : this.#isOpen ? 'archiving' : 'opening',
      archivedPosition: facts === null ? null : formatLsn(facts.archived),
      behindBytes: facts === null || log === null ? null : log.bytesAfter(facts.archived),
      snapshots: facts?.snapshots ?? null,
      newestSnapshot:
        facts?.newest == null
          ? null
          : {
              position: formatLsn(facts.newest.position),
              takenAt: new Date(facts.newest.takenAtMs).toISOString(),
              fileBytes: facts.newest.fileBytes,
            },
      upload: progress,
      lastError: this.#failure?.message ?? this.#snapshotFailure?.message ?? null,
    };
  }

  /** What is not well; empty when all is. */
  get reasons(): readonly string[] {
    const reasons: string[] = [];
    const isLong =
      this.#failingSinceMs !== null && performance.now() - this.#failingSinceMs > TOLERATED_OUTAGE_MS;
    if (this.#failure !== null && (this.#isFenced || isLong)) reasons.push(this.#failure.message);
    if (this.#snapshotFailure !== null) reasons.push(`no snapshot: ${this.#snapshotFailure.message}`);
    return reasons;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.detach();
    await this.#archive[Symbol.asyncDispose]();
    await this.#running;
    await this.#snapshotting?.catch(() => undefined);
  }

  /** A replicator without its disk could go on from here. */
  #resumable(changeLog: ChangeLog): Lsn | null {
    return this.#isOpen && this.#changeLog === changeLog ? (this.#archive.facts?.resumable ?? null) : null;
  }

  async #run(changeLog: ChangeLog, signal: AbortSignal): Promise<void> {
    const { log } = this.#options;
    for (let attempt = 0; !signal.aborted; attempt++) {
      try {
        await this.#open(changeLog, signal);
        if (this.#failure !== null) log.info('the object store is back');
        this.#failure = null;
        this.#failingSinceMs = null;
        for (;;) {
          signal.throwIfAborted();
          if (await this.#tick(changeLog, signal)) attempt = 0;
          await delay(TICK_MS, undefined, { signal });
        }
      } catch (cause) {
        if (signal.aborted) return;
        const error = asRivuletError(cause, FAILED);
        const isNews = this.#failure?.message !== error.message;
        this.#failure = error;
        this.#failingSinceMs ??= performance.now();
        if (error.code === 'STORE_FENCED') {
          this.#isFenced = true;
          log.error({ code: error.code, hint: error.hint }, error.message);
          return;
        }
        const retryInMs = backoffMs(attempt);
        if (isNews) log.warn({ code: error.code, hint: error.hint, retryInMs }, error.message);
        await delay(retryInMs, undefined, { signal }).catch(() => undefined);
      }
    }
  }

  async #open(changeLog: ChangeLog, signal: AbortSignal): Promise<void> {
    const { epoch, source, oldestPosition } = changeLog;
    const facts = await this.#archive.call('open', {
      epoch,
      oldestPosition,
      resume: { timeline: source.timeline, slot: source.slot, publication: source.publication },
      source: { systemIdentifier: source.systemIdentifier, database: source.database },
    });
    signal.throwIfAborted();
    this.#cursor = changeLog.openCursor(facts.logFrom);
    this.#dueAtMs = Number.POSITIVE_INFINITY;
    this.#isOpen = true;
    this.#options.log.info(
      { store: this.#options.location.url, archived: formatLsn(facts.archived), snapshots: facts.snapshots },
      'archiving to the object store',
    );
  }

  /** One look at what is due. True if something was done. */
  async #tick(changeLog: ChangeLog, signal: AbortSignal): Promise<boolean> {
    const { archived } = this.#facts();
    const nowMs = performance.now();
    const segmentBytes = this.#options.settings?.segmentBytes ?? DEFAULT_SEGMENT_BYTES;
    const bytes = changeLog.bytesAfter(archived);
    this.#snapshotIfDue(changeLog, nowMs);
    if (bytes === 0) {
      this.#dueAtMs = Number.POSITIVE_INFINITY;
      if (changeLog.position === archived || nowMs - this.#sealedAtMs < this.#idleIntervalMs) return false;
    } else {
      this.#dueAtMs = Math.min(this.#dueAtMs, nowMs + (this.#options.segmentAgeMs ?? DEFAULT_SEGMENT_AGE_MS));
      if (bytes < segmentBytes && nowMs < this.#dueAtMs) return false;
    }
    await this.#pump(changeLog, signal);
    this.#dueAtMs = Number.POSITIVE_INFINITY;
    this.#sealedAtMs = performance.now();
    return true;
  }

  /** Where the slot waits for it, an idle database's position moves as often as a busy one's. */
  get #idleIntervalMs(): number {
    const { durability, segmentAgeMs = DEFAULT_SEGMENT_AGE_MS } = this.#options;
    return durability === 'store' ? segmentAgeMs : IDLE_INTERVAL_MS;
  }

  /** Everything that is in the log goes to the store. */
  async #pump(changeLog: ChangeLog, signal: AbortSignal): Promise<void> {
    const cursor = this.#cursor!;
    const { headSeq, position, sourceState } = changeLog;
    const asOfMs = Date.now() - this.#options.heardAgoMs();
    let syncedSeq = 0;
    while (cursor.nextSeq <= headSeq) {
      const frames = cursor.next(READ_BYTES);
      if (frames === null) break;
      // What the disk may still lose must not be in the store: Postgres would send it again, perhaps not the same.
      if (cursor.nextSeq > syncedSeq + 1) {
        const appendedSeq = changeLog.headSeq;
        await changeLog.sync();
        syncedSeq = appendedSeq;
        signal.throwIfAborted();
      }
      await this.#archive.call('append', new Uint8Array(frames));
      signal.throwIfAborted();
    }
    // What was read may go further than the state that was noted; it is right where the schema has not changed meanwhile.
    const isKnown = cursor.nextSeq > changeLog.headSeq || changeLog.sourceState === sourceState;
    await this.#archive.call('seal', {
      position,
      asOfMs,
      sourceState: isKnown ? changeLog.sourceState : null,
    });
  }

  #snapshotIfDue(changeLog: ChangeLog, nowMs: number): void {
    if (this.#isElsewhere || this.#snapshotting !== null || nowMs < this.#nextSnapshotAtMs) return;
    if (!this.#isSnapshotDue(changeLog)) return;
    // Failures are kept for the status.
    this.takeSnapshot().catch((error: unknown) => {
      // While the initial copy runs there is nothing to take, and it may end at any moment.
      if ((error as RivuletError).code !== 'NOT_READY') this.#nextSnapshotAtMs = nowMs + SNAPSHOT_RETRY_MS;
    });
  }

  #isSnapshotDue(changeLog: ChangeLog): boolean {
    const { newest, isRestorable } = this.#facts();
    const bytesSince = newest === null ? 0 : changeLog.bytesAfter(newest.position);
    const { snapshotIntervalMs: intervalMs = DEFAULT_SNAPSHOT_INTERVAL_MS } = this.#options;
    return isSnapshotDue({ newest, isRestorable, bytesSince }, { intervalMs, nowMs: Date.now() });
  }

  async #snapshot(): Promise<SnapshotReport> {
    const { log, snapshots } = this.#options;
    try {
      const lease = await snapshots.acquire({ fresh: true });
      let report: SnapshotReport;
      try {
        const { path: file, epoch, position } = lease;
        report = await this.#archive.call('snapshot', { file, epoch, position });
      } finally {
        lease.release();
      }
      this.#snapshotFailure = null;
      await this.#prune();
      return report;
    } catch (cause) {
      const error = asRivuletError(cause, FAILED);
      if (error.code === 'CLOSED' || error.code === 'NOT_READY') throw error;
      this.#snapshotFailure = error;
      log.warn({ code: error.code, hint: error.hint }, `no snapshot could be taken: ${error.message}`);
      throw error;
    }
  }

  async #prune(): Promise<void> {
    const { log } = this.#options;
    try {
      await this.#upkeep.run();
    } catch (cause) {
      const error = asRivuletError(cause, FAILED);
      if (error.code === 'CLOSED') return;
      log.warn({ code: error.code, hint: error.hint }, `the object store was not pruned: ${error.message}`);
    }
  }

  #facts(): ArchiveFacts {
    const { facts } = this.#archive;
    if (facts === null) throw new RivuletError('NOT_READY', 'the object store is not open yet');
    return facts;
  }
}
