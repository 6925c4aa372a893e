import { RivuletError } from '../errors.ts';
import type { Lsn } from '../lsn.ts';
import { describeSnapshot, type Manifest } from '../store/manifest.ts';
import type { ObjectStore } from '../store/object-store.ts';
import type { TransferProgress } from './chunk-upload.ts';
import { ManifestWriter } from './manifest-writer.ts';
import { type PruneReport, Pruner } from './pruner.ts';
import { leadsTo } from './restorable.ts';
import type { SnapshotRetention } from './retention.ts';
import { type LogHead, SegmentWriter, type SegmentWriterOptions } from './segment-writer.ts';
import { type SnapshotReport, SnapshotWriter } from './snapshot-writer.ts';

/** What the archive is of. */
export interface ArchiveSource {
  readonly epoch: string;
  readonly source: Manifest['source'];
  readonly resume: SegmentWriterOptions['resume'];
  /** The log reaches back to here. */
  readonly oldestPosition: Lsn;
}

/** What the replicator wants to know of the store after every call. */
export interface ArchiveFacts {
  /** Everything up to here is in segments. */
  readonly archived: Lsn;
  /** The log is to be read from here: equal to `archived` right after opening. */
  readonly logFrom: Lsn;
  readonly snapshots: number;
  /** Of this epoch. */
  readonly newest: { readonly position: Lsn; readonly takenAtMs: number; readonly fileBytes: number } | null;
  /** The segments lead on from the newest snapshot. */
  readonly isRestorable: boolean;
  /** Up to here the loss of the replicator's disk would lose nothing; null: a new copy would have to be made. */
  readonly resumable: Lsn | null;
}

export interface ArchiveEvents {
  onProgress(progress: TransferProgress): void;
  onLog(level: 'info' | 'warn', message: string, facts: Readonly<Record<string, unknown>>): void;
}

export interface ArchiveSettings {
  readonly segmentBytes?: number;
  readonly chunkBytes?: number;
  readonly graceMs?: number;
  /** Another process takes the snapshots. */
  readonly snapshotsElsewhere?: boolean;
}

/**
 * The writing side of an object store for one replicator: takes the manifest over, adds segments and snapshots, and
 * prunes. Segments and the rest do not wait for each other; calls of one kind must not overlap.
 */
export class ArchiveSession {
  readonly #store: ObjectStore;
  readonly #settings: ArchiveSettings;
  readonly #events: ArchiveEvents;
  #source: ArchiveSource | null = null;
  #manifest: ManifestWriter | null = null;
  #snapshots: SnapshotWriter | null = null;
  #pruner: Pruner | null = null;
  #segments: SegmentWriter | null = null;
  readonly #abort = new AbortController();
  #maintenance: Promise<unknown> = Promise.resolve();

  constructor(store: ObjectStore, settings: ArchiveSettings, events: ArchiveEvents) {
    this.#store = store;
    this.#settings = settings;
    this.#events = events;
  }

  /** Begins with this history, or again with the same one after a failure. */
  async open(source: ArchiveSource): Promise<ArchiveFacts> {
    const store = this.#store;
    const { segmentBytes, chunkBytes, graceMs, snapshotsElsewhere = false } = this.#settings;
    const { signal } = this.#abort;
    const onWarning = (message: string, facts: Readonly<Record<string, unknown>>): void =>
      this.#events.onLog('warn', message, facts);
    if (this.#manifest === null) {
      const manifest = new ManifestWriter({
        store,
        source: source.source,
        role: snapshotsElsewhere ? 'archiver' : 'writer',
        signal,
        onWarning,
      });
      await manifest.takeOver();
      this.#manifest = manifest;
      this.#snapshots = new SnapshotWriter({
        store,
        manifest,
        signal,
        ...(chunkBytes === undefined ? {} : { chunkBytes }),
      });
      this.#pruner = new Pruner({
        store,
        manifest,
        snapshots: this.#snapshots,
        signal,
        onWarning,
        ...(graceMs === undefined ? {} : { graceMs }),
      });
    } else {
      // A swap whose answer was lost may have worked.
      await this.#manifest.refresh();
    }
    this.#source = source;
    this.#segments = new SegmentWriter({
      store,
      manifest: this.#manifest,
      epoch: source.epoch,
      oldestPosition: source.oldestPosition,
      resume: source.resume,
      signal,
      ...(segmentBytes === undefined ? {} : { segmentBytes }),
    });
    return this.facts();
  }

  async append(frames: Uint8Array): Promise<ArchiveFacts> {
    const { buffer, byteOffset, byteLength } = frames;
    await this.#opened(this.#segments).append(Buffer.from(buffer, byteOffset, byteLength));
    return this.facts();
  }

  async seal(head: LogHead): Promise<ArchiveFacts> {
    await this.#opened(this.#segments).seal(head);
    return this.facts();
  }

  snapshot(source: {
    readonly file: string;
    readonly epoch: string;
    readonly position: Lsn;
  }): Promise<SnapshotReport> {
    return this.#inTurn(async () => {
      const report = await this.#opened(this.#snapshots).take(source, (progress) =>
        this.#events.onProgress(progress),
      );
      const { snapshot, isNew, sentBytes, sentChunks, tookMs } = report;
      if (isNew) {
        this.#events.onLog('info', `snapshot at ${describeSnapshot(snapshot)}`, {
          fileBytes: snapshot.fileBytes,
          storedBytes: snapshot.storedBytes,
          sentBytes,
          sentChunks,
          tookMs: Math.round(tookMs),
        });
      }
      return report;
    });
  }

  prune(retention: SnapshotRetention): Promise<PruneReport> {
    return this.#inTurn(() => this.#opened(this.#pruner).prune(retention));
  }

  sweep(): Promise<number> {
    return this.#inTurn(() => this.#opened(this.#pruner).sweep());
  }

  facts(): ArchiveFacts {
    const { epoch } = this.#opened(this.#source);
    const { archived, logFrom } = this.#opened(this.#segments);
    const manifest = this.#manifest?.current ?? null;
    const newest = manifest?.snapshots.findLast((snapshot) => snapshot.epoch === epoch) ?? null;
    const isRestorable = newest !== null && manifest !== null && leadsTo(manifest, newest, archived);
    const resume = manifest?.resume?.epoch === epoch ? manifest.resume.position : null;
    return {
      archived,
      logFrom,
      snapshots: manifest?.snapshots.length ?? 0,
      newest:
        newest === null
          ? null
          : {
              position: newest.position,
              takenAtMs: Date.parse(newest.takenAt),
              fileBytes: newest.fileBytes,
            },
      isRestorable,
      resumable: isRestorable ? resume : null,
    };
  }

  /** Ends what is under way. May be called twice. */
  async close(): Promise<void> {
    this.#abort.abort(new RivuletError('CLOSED', 'the archive was closed'));
    await this.#maintenance.catch(() => undefined);
    await this.#store.close();
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const turn = this.#maintenance.then(work, work);
    this.#maintenance = turn.catch(() => undefined);
    return turn;
  }

  #opened<T>(part: T | null): T {
    if (part === null) throw new RivuletError('NOT_READY', `${this.#store.url} is not open for writing yet`);
    return part;
  }
}
