import { hostname } from 'node:os';
import { join, resolve } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { asRivuletError, ConfigError, RivuletError } from '../errors.ts';
import type { Log } from '../log.ts';
import { formatLsn, type Lsn } from '../lsn.ts';
import { followerId } from '../replica/follower-id.ts';
import { HttpLink } from '../replica/http-link.ts';
import { ReplicaKeeper, type StillFile } from '../replica/replica-keeper.ts';
import type { ReplicaState } from '../replica/replica-status.ts';
import { StoreSource } from '../replica/store-source.ts';
import { describeSnapshot, type Snapshot } from '../store/manifest.ts';
import type { ObjectStore } from '../store/object-store.ts';
import { openStore, type StoreLocation } from '../store/open-store.ts';
import type { TransferProgress } from './chunk-upload.ts';
import { makeDataDirectory } from './data-directory.ts';
import { ManifestWriter } from './manifest-writer.ts';
import { Pruner } from './pruner.ts';
import { leadsTo } from './restorable.ts';
import { DEFAULT_SNAPSHOT_RETENTION, type SnapshotRetention } from './retention.ts';
import { DEFAULT_SNAPSHOT_INTERVAL_MS, isSnapshotDue } from './snapshot-schedule.ts';
import { type SnapshotReport, SnapshotWriter } from './snapshot-writer.ts';
import { StoreUpkeep } from './store-upkeep.ts';

const TICK_MS = 250;
/** How often the manifest is looked at: whoever was replaced notices within this, also while nothing is due. */
const LOOK_INTERVAL_MS = 10_000;
const RETRY_MS = 10_000;
/** Whoever asks for a snapshot waits so long for the store to be open. */
const OPENING_MS = 15_000;
/** What failed, of what nobody foresaw. */
const FAILED = 'the snapshotter failed';

export interface SnapshotterOptions {
  readonly replicator: { readonly url: string; readonly token?: string | undefined };
  readonly location: StoreLocation;
  /** Its file is there; nobody else's may be. */
  readonly dataDir: string;
  readonly name?: string | undefined;
  readonly intervalMs?: number | undefined;
  readonly retention?: Partial<SnapshotRetention> | undefined;
  readonly log: Log;
  /** Of the first download, which comes before everything else. */
  readonly onDownload?: (progress: { readonly bytes: number; readonly totalBytes: number }) => void;
}

export interface SnapshotterStatus {
  readonly state: ReplicaState;
  readonly isHealthy: boolean;
  readonly reasons: readonly string[];
  readonly position: string | null;
  readonly store: string;
  readonly newestSnapshot: { readonly position: string; readonly takenAt: string } | null;
  readonly upload: TransferProgress | null;
}

/** The store, once it was taken over. */
interface Writing {
  readonly manifest: ManifestWriter;
  readonly snapshots: SnapshotWriter;
  readonly upkeep: StoreUpkeep;
}

/**
 * A replica that serves nobody, and the snapshots that are taken of it, as a process of its own: for a database whose
 * replicator should not read and compress all of it. It follows as any replica does, stands still while a snapshot is
 * under way, and prunes. Replaced by another one (STORE_FENCED) it ends.
 */
export class Snapshotter {
  readonly #options: SnapshotterOptions;
  readonly #retention: SnapshotRetention;
  readonly #stop = new AbortController();
  readonly #upload = new AbortController();
  readonly #ready = Promise.withResolvers<void>();
  #keeper: ReplicaKeeper | null = null;
  #writing: Writing | null = null;
  #epoch: string | null = null;
  #position: Lsn | null = null;
  /** Of the log, since the newest snapshot. */
  #bytesSince = 1;
  #state: ReplicaState = 'opening';
  #reason: RivuletError | null = null;
  #failure: RivuletError | null = null;
  #progress: TransferProgress | null = null;
  #snapshotting: Promise<SnapshotReport> | null = null;

  constructor(options: SnapshotterOptions) {
    this.#options = options;
    this.#retention = { ...DEFAULT_SNAPSHOT_RETENTION, ...options.retention };
    this.#ready.promise.catch(() => undefined);
  }

  /** Resolves once its file is there and the store is open to it; rejects if run() ends before. */
  get ready(): Promise<void> {
    return this.#ready.promise;
  }

  /** Until `signal` aborts (resolves), or only a human can help, or another one has taken its place (rejects). */
  async run(signal: AbortSignal): Promise<void> {
    const { replicator, location, dataDir, log, onDownload } = this.#options;
    makeDataDirectory(dataDir);
    const file = join(resolve(dataDir), 'snapshotter.db');
    const name = this.#options.name ?? `${hostname()}:snapshotter`;
    const stopping = AbortSignal.any([signal, this.#stop.signal]);
    const link = new HttpLink(replicator);
    await using store = await openStore(location);
    this.#keeper = new ReplicaKeeper({
      file,
      link,
      store: await StoreSource.open(location, link, (level, message, facts) => log[level](facts, message)),
      id: followerId(file),
      name,
      localScript: null,
      events: {
        onFile: ({ epoch, position }) => {
          if (epoch !== this.#epoch) this.#bytesSince = 1;
          this.#epoch = epoch;
          this.#position = position;
        },
        onApplied: ({ position, bytes }) => {
          this.#position = position;
          this.#bytesSince += bytes;
        },
        onState: (state, reason) => {
          this.#state = state;
          this.#reason = reason;
        },
        onProgress: (progress) => onDownload?.(progress),
        onHead: () => undefined,
        onCurrent: () => undefined,
        onPinned: () => undefined,
        onLocal: () => undefined,
        onMaking: () => undefined,
        onLog: (level, message, facts) => log[level](facts, message),
      },
    });
    const keeping = this.#keeper.run(stopping);
    const scheduling = this.#schedule(store, stopping);
    try {
      await Promise.race([keeping, scheduling]);
    } catch (error) {
      this.#ready.reject(error);
      throw error;
    } finally {
      this.#stop.abort();
      this.#upload.abort(new RivuletError('CLOSED', 'the snapshotter was closed'));
      await Promise.allSettled([keeping, scheduling]);
      this.#ready.reject(new RivuletError('CLOSED', 'the snapshotter was closed'));
    }
  }

  /** Takes one now, or gives the one that is under way. */
  async takeSnapshot(): Promise<SnapshotReport> {
    // Right after the start the store is about to be opened.
    for (const fromMs = performance.now(); performance.now() - fromMs < OPENING_MS; ) {
      if (this.#writing !== null || this.#failure !== null) break;
      await delay(TICK_MS);
    }
    if (this.#writing === null)
      throw this.#failure ?? new RivuletError('NOT_READY', 'the object store is not open yet');
    this.#snapshotting ??= this.#take(this.#writing).finally(() => {
      this.#snapshotting = null;
    });
    return await this.#snapshotting;
  }

  status(): SnapshotterStatus {
    const newest = this.#newest();
    const failures = [this.#reason, this.#failure].flatMap((each) => each?.message ?? []);
    return {
      state: this.#state,
      isHealthy: this.#epoch !== null && this.#failure === null,
      reasons: failures,
      position: this.#position === null ? null : formatLsn(this.#position),
      store: this.#options.location.url,
      newestSnapshot:
        newest === null ? null : { position: formatLsn(newest.position), takenAt: newest.takenAt },
      upload: this.#progress,
    };
  }

  async #schedule(store: ObjectStore, signal: AbortSignal): Promise<void> {
    const { log } = this.#options;
    let lookAtMs = 0;
    while (!signal.aborted) {
      try {
        await delay(TICK_MS, undefined, { signal });
        if (this.#epoch === null) continue;
        if (this.#writing === null) {
          this.#writing = await this.#open(store);
          this.#failure = null;
          this.#ready.resolve();
        }
        if (performance.now() >= lookAtMs) {
          await this.#writing.manifest.refresh();
          lookAtMs = performance.now() + LOOK_INTERVAL_MS;
          this.#failure = null;
        }
        if (this.#isDue()) await this.takeSnapshot();
        this.#failure = null;
      } catch (cause) {
        if (signal.aborted) return;
        const error = asRivuletError(cause, FAILED);
        if (error.code === 'STORE_FENCED' || error.code === 'VERSION_MISMATCH') throw error;
        if (error.message !== this.#failure?.message)
          log.warn({ code: error.code, hint: error.hint, retryInMs: RETRY_MS }, error.message);
        this.#failure = error;
        await delay(RETRY_MS, undefined, { signal }).catch(() => undefined);
      }
    }
  }

  /** Takes the place in the store. Refuses a store of another database than the file's. */
  async #open(store: ObjectStore): Promise<Writing> {
    const { log } = this.#options;
    const { signal } = this.#upload;
    const onWarning = (message: string, facts: Readonly<Record<string, unknown>>): void =>
      log.warn(facts, message);
    const source = await this.#keeper!.standStill((file) => Promise.resolve(sourceOf(file)));
    const manifest = new ManifestWriter({ store, source, role: 'snapshotter', signal, onWarning });
    await manifest.takeOver();
    const snapshots = new SnapshotWriter({ store, manifest, signal });
    const pruner = new Pruner({ store, manifest, snapshots, signal, onWarning });
    const upkeep = new StoreUpkeep({
      log,
      prune: () => pruner.prune(this.#retention),
      sweep: () => pruner.sweep(),
    });
    log.info({ store: store.url }, 'taking snapshots');
    return { manifest, snapshots, upkeep };
  }

  #newest(): Snapshot | null {
    const snapshots = this.#writing?.manifest.current?.snapshots ?? [];
    return snapshots.findLast(({ epoch }) => epoch === this.#epoch) ?? null;
  }

  #isDue(): boolean {
    const manifest = this.#writing!.manifest.current!;
    const newest = this.#newest();
    const { archived } = manifest;
    const isRestorable =
      newest !== null && (archived?.epoch !== newest.epoch || leadsTo(manifest, newest, archived.position));
    const { intervalMs = DEFAULT_SNAPSHOT_INTERVAL_MS } = this.#options;
    return isSnapshotDue(
      {
        newest:
          newest === null ? null : { takenAtMs: Date.parse(newest.takenAt), fileBytes: newest.fileBytes },
        isRestorable,
        bytesSince: this.#bytesSince,
      },
      { intervalMs, nowMs: Date.now() },
    );
  }

  async #take({ snapshots }: Writing): Promise<SnapshotReport> {
    const { log } = this.#options;
    try {
      const report = await this.#keeper!.standStill(async ({ path: file, epoch, position }) => {
        const taken = await snapshots.take({ file, epoch, position }, (progress) => {
          this.#progress = progress;
        });
        this.#bytesSince = 0;
        return taken;
      });
      const { snapshot, isNew, sentBytes, sentChunks, tookMs } = report;
      if (isNew) {
        const { fileBytes, storedBytes } = snapshot;
        log.info(
          { fileBytes, storedBytes, sentBytes, sentChunks, tookMs: Math.round(tookMs) },
          `snapshot at ${describeSnapshot(snapshot)}`,
        );
      }
      await this.#prune();
      return report;
    } finally {
      this.#progress = null;
    }
  }

  async #prune(): Promise<void> {
    const { log } = this.#options;
    try {
      await this.#writing!.upkeep.run();
    } catch (cause) {
      const error = asRivuletError(cause, FAILED);
      if (error.code === 'CLOSED' || error.code === 'STORE_FENCED') throw error;
      log.warn({ code: error.code, hint: error.hint }, `the object store was not pruned: ${error.message}`);
    }
  }
}

function sourceOf({ path, systemIdentifier, databaseName }: StillFile): {
  readonly systemIdentifier: string;
  readonly database: string;
} {
  if (systemIdentifier !== null && databaseName !== null) return { systemIdentifier, database: databaseName };
  throw new ConfigError(`${path} does not say which database it is of`, {
    hint: 'delete it: it is made anew',
  });
}
