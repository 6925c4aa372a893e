import Database from 'better-sqlite3';
import { RivuletError } from '../errors.ts';
import { formatLsn, type Lsn } from '../lsn.ts';
import { readPosition } from '../replica/replica-file.ts';
import { REPLICA_FORMAT_VERSION } from '../replica/schema.ts';
import { fetchBlob, putBlob } from '../store/blob.ts';
import { fetchChunkList } from '../store/chunk-list.ts';
import { chunkAt, encodeChunkList, isSameSnapshot, type Manifest, type Snapshot } from '../store/manifest.ts';
import type { ObjectStore, StoreCallOptions } from '../store/object-store.ts';
import { type TransferProgress, uploadChunks } from './chunk-upload.ts';
import type { ManifestWriter } from './manifest-writer.ts';

const ATTEMPTS = 3;
const READ_BACK_AT_ONCE = 4;

export interface SnapshotWriterOptions extends StoreCallOptions {
  readonly store: ObjectStore;
  readonly manifest: ManifestWriter;
  readonly chunkBytes?: number;
}

export interface SnapshotReport {
  readonly snapshot: Snapshot;
  /** False: a snapshot at this position was there already. */
  readonly isNew: boolean;
  readonly sentBytes: number;
  readonly sentChunks: number;
  readonly tookMs: number;
}

/** Makes snapshots out of replica files that stand still, and reads them back. */
export class SnapshotWriter {
  readonly #options: SnapshotWriterOptions;
  /** Chunks that are named but were found damaged: the next snapshot sends them again. */
  readonly #damaged = new Set<string>();

  constructor(options: SnapshotWriterOptions) {
    this.#options = options;
  }

  /** `file` must be a whole replica file without a WAL, at this position, that nobody writes to. */
  async take(
    source: { readonly file: string; readonly epoch: string; readonly position: Lsn },
    onProgress: (progress: TransferProgress) => void = () => undefined,
  ): Promise<SnapshotReport> {
    const { store, manifest, signal, chunkBytes } = this.#options;
    const startedAtMs = performance.now();
    const facts = checkSource(source);
    for (let attempt = 1; ; attempt++) {
      const base = manifest.current?.snapshots.at(-1) ?? null;
      const isThere = base !== null && base.epoch === source.epoch && base.position === source.position;
      if (isThere && this.#damaged.size === 0)
        return { snapshot: base, isNew: false, sentBytes: 0, sentChunks: 0, tookMs: 0 };
      // The last time somebody had deleted what the manifest names: nothing is relied on then.
      const known = attempt < ATTEMPTS && base !== null ? await this.#knownChunks(base) : new Map();
      const upload = await uploadChunks({
        store,
        file: source.file,
        known,
        signal,
        onProgress,
        ...(chunkBytes === undefined ? {} : { chunkBytes }),
      });
      const snapshot: Snapshot = {
        epoch: source.epoch,
        position: source.position,
        commitTime: facts.commitTime,
        takenAt: new Date().toISOString(),
        replicaVersion: REPLICA_FORMAT_VERSION,
        fileBytes: upload.list.fileBytes,
        pageBytes: facts.pageBytes,
        storedBytes: upload.storedBytes,
        chunkList: await putBlob(store, 'lists', encodeChunkList(upload.list), { signal }),
        verifiedAt: null,
      };
      let isBaseGone = false;
      await manifest.update((before) => {
        isBaseGone = upload.reused.size > 0 && base !== null && isBeingDeleted(before, base);
        if (isBaseGone || before.snapshots.some((each) => isSameSnapshot(each, snapshot))) return null;
        return { ...before, snapshots: [...before.snapshots, snapshot] };
      });
      if (isBaseGone && attempt < ATTEMPTS) continue;
      for (const [name] of upload.list.chunks) this.#damaged.delete(name);
      await manifest.backUp();
      const { sentBytes, sentChunks } = upload;
      return { snapshot, isNew: true, sentBytes, sentChunks, tookMs: performance.now() - startedAtMs };
    }
  }

  /**
   * Reads a snapshot back, all but the chunks that an earlier one was read back with, and notes it in the manifest.
   * Throws SNAPSHOT_CORRUPT.
   */
  async verify(
    snapshot: Snapshot,
    onProgress: (progress: TransferProgress) => void = () => undefined,
  ): Promise<void> {
    const { store, manifest, signal } = this.#options;
    const list = await fetchChunkList(store, snapshot, { signal });
    const verified = manifest.current?.snapshots.findLast(({ verifiedAt }) => verifiedAt !== null);
    const trusted = verified === undefined ? new Map<string, number>() : await this.#knownChunks(verified);
    const indexes = list.chunks.flatMap(([name], index) => (trusted.has(name) ? [] : [index]));
    let next = 0;
    let bytes = 0;
    const totalBytes = indexes.reduce((sum, index) => sum + chunkAt(list, index).bytes, 0);
    const readBack = async (): Promise<void> => {
      while (next < indexes.length) {
        const chunk = chunkAt(list, indexes[next++]!);
        try {
          await fetchBlob(store, 'chunks', chunk, { signal });
        } catch (error) {
          if (error instanceof RivuletError && error.code === 'SNAPSHOT_CORRUPT')
            this.#damaged.add(chunk.hash);
          throw error;
        }
        bytes += chunk.bytes;
        onProgress({ bytes, totalBytes, sentBytes: bytes });
      }
    };
    await Promise.all(Array.from({ length: READ_BACK_AT_ONCE }, readBack));
    const verifiedAt = new Date().toISOString();
    await manifest.update((before) => ({
      ...before,
      snapshots: before.snapshots.map((each) =>
        isSameSnapshot(each, snapshot) ? { ...each, verifiedAt: each.verifiedAt ?? verifiedAt } : each,
      ),
    }));
  }

  async #knownChunks(base: Snapshot): Promise<Map<string, number>> {
    const { store, signal } = this.#options;
    try {
      const { chunks } = await fetchChunkList(store, base, { signal });
      return new Map(chunks.filter(([name]) => !this.#damaged.has(name)));
    } catch (error) {
      if (error instanceof RivuletError && error.code === 'SNAPSHOT_CORRUPT') return new Map();
      throw error;
    }
  }
}

/** What a snapshot was to be built on is gone or about to go. */
function isBeingDeleted(manifest: Manifest, base: Snapshot): boolean {
  if (manifest.snapshots.some((each) => isSameSnapshot(each, base))) return false;
  const removal = manifest.removed.find(({ snapshots }) =>
    snapshots.some((each) => isSameSnapshot(each, base)),
  );
  return removal?.isDeleting ?? true;
}

function checkSource(source: { readonly file: string; readonly epoch: string; readonly position: Lsn }): {
  readonly commitTime: string | null;
  readonly pageBytes: number;
} {
  const db = new Database(source.file, { readonly: true, fileMustExist: true });
  try {
    const { epoch, applied, commitTime } = readPosition(db);
    if (epoch === source.epoch && applied === source.position)
      return { commitTime, pageBytes: db.pragma('page_size', { simple: true }) as number };
    throw new RivuletError(
      'SNAPSHOT_CORRUPT',
      `${source.file} is at ${formatLsn(applied)} of epoch ${epoch}, not at ${formatLsn(source.position)} of ${source.epoch}`,
    );
  } finally {
    db.close();
  }
}
