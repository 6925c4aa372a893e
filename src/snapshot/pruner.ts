import { RivuletError } from '../errors.ts';
import { blobKey, fetchBlob } from '../store/blob.ts';
import { fetchChunkList } from '../store/chunk-list.ts';
import { decodeSegments, type Manifest, type Removal } from '../store/manifest.ts';
import type { ObjectStore, StoreCallOptions } from '../store/object-store.ts';
import type { ManifestWriter } from './manifest-writer.ts';
import { isNothing, planRemoval, type SnapshotRetention, withRemoval } from './retention.ts';
import type { SnapshotWriter } from './snapshot-writer.ts';

/** What was taken out stays so long for whoever has begun to read it: longer than a bootstrap takes. */
export const DEFAULT_GRACE_MS = 6 * 60 * 60 * 1000;

/** An object that nothing names may belong to a snapshot under way; after this it is a leftover. */
const LEFTOVER_AGE_MS = 24 * 60 * 60 * 1000;

export interface PrunerOptions extends StoreCallOptions {
  readonly store: ObjectStore;
  readonly manifest: ManifestWriter;
  readonly snapshots: SnapshotWriter;
  readonly graceMs?: number;
  readonly onWarning: (message: string, facts: Readonly<Record<string, unknown>>) => void;
  readonly nowMs?: () => number;
}

export interface PruneReport {
  readonly removedSnapshots: number;
  readonly removedSegments: number;
  /** Of this and of earlier removals. */
  readonly deletedObjects: number;
}

/** What a part of the manifest names. */
interface Names {
  readonly keys: Set<string>;
  /** Some of it could not be read: what else it names is not known. */
  isWhole: boolean;
}

/**
 * Takes out what retention no longer asks for, and deletes what was taken out long enough ago. Nothing goes before
 * the newest snapshot has been read back, and nothing that anything left in the manifest names.
 */
export class Pruner {
  readonly #options: PrunerOptions;
  readonly #now: () => number;

  constructor(options: PrunerOptions) {
    this.#options = options;
    this.#now = options.nowMs ?? Date.now;
  }

  async prune(retention: SnapshotRetention): Promise<PruneReport> {
    const { manifest, snapshots } = this.#options;
    const before = manifest.current;
    if (before === null) return { removedSnapshots: 0, removedSegments: 0, deletedObjects: 0 };
    let removed: Removal | null = null;
    if (!isNothing(planRemoval(before, retention, this.#now()))) {
      const newest = before.snapshots.at(-1);
      if (newest !== undefined && newest.verifiedAt === null) await snapshots.verify(newest);
      await manifest.update((present) => {
        const removable = planRemoval(present, retention, this.#now());
        // A newer snapshot came meanwhile, which nobody has read back.
        const isSafe = present.snapshots.at(-1)?.verifiedAt !== null;
        removed = null;
        if (isNothing(removable) || !isSafe) return null;
        const next = withRemoval(present, removable, this.#now());
        removed = next.removed.at(-1)!;
        return next;
      });
    }
    const deletedObjects = await this.#deleteDue();
    const gone = removed as Removal | null;
    return {
      removedSnapshots: gone?.snapshots.length ?? 0,
      removedSegments:
        (gone?.segments.length ?? 0) + (gone?.segmentLists ?? []).reduce((sum, { count }) => sum + count, 0),
      deletedObjects,
    };
  }

  /** Lists the store, which nothing else does, and deletes what was left behind by processes that were killed. */
  async sweep(): Promise<number> {
    const { store, manifest, signal } = this.#options;
    const present = manifest.current;
    if (present === null) return 0;
    const names = await this.#names([present, ...present.removed]);
    if (!names.isWhole) return 0;
    let deleted = 0;
    for (const prefix of ['chunks/', 'lists/', 'segments/', 'probe-']) {
      const leftovers: string[] = [];
      for await (const { key, modifiedAtMs } of store.list(prefix, { signal })) {
        if (!names.keys.has(key) && this.#now() - modifiedAtMs > LEFTOVER_AGE_MS) leftovers.push(key);
      }
      await store.delete(leftovers, { signal });
      deleted += leftovers.length;
    }
    return deleted;
  }

  async #deleteDue(): Promise<number> {
    const { store, manifest, graceMs = DEFAULT_GRACE_MS, signal } = this.#options;
    const isDue = ({ at }: Removal): boolean => this.#now() - Date.parse(at) >= graceMs;
    if (!(manifest.current?.removed.some(isDue) ?? false)) return 0;
    // From here on no snapshot can be named that relies on them.
    const marked = await manifest.update((present) =>
      present.removed.every((removal) => removal.isDeleting || !isDue(removal))
        ? null
        : {
            ...present,
            removed: present.removed.map((removal) =>
              isDue(removal) ? { ...removal, isDeleting: true } : removal,
            ),
          },
    );
    const going = marked.removed.filter(({ isDeleting }) => isDeleting);
    const staying = await this.#staying(marked);
    let deleted = 0;
    if (staying.isWhole) {
      const keys = [...(await this.#names(going)).keys].filter((key) => !staying.keys.has(key));
      await store.delete(keys, { signal });
      deleted = keys.length;
    }
    const done = new Set(going.map(({ at }) => at));
    if (staying.isWhole) {
      await manifest.update((present) => ({
        ...present,
        removed: present.removed.filter(({ at, isDeleting }) => !(isDeleting && done.has(at))),
      }));
    }
    return deleted;
  }

  /**
   * What anything that stays names, as of the moment at which this resolves: a process that was stopped meanwhile, and
   * replaced, finds that out here, before it deletes what another one relies on by now.
   */
  async #staying(marked: Manifest): Promise<Names> {
    const snapshotsOf = ({ snapshots }: Manifest): string =>
      snapshots.map(({ chunkList }) => chunkList.hash).join();
    for (let present = marked; ; ) {
      const kept = present.removed.filter(({ isDeleting }) => !isDeleting);
      const names = await this.#names([present, ...kept]);
      const now = (await this.#options.manifest.refresh()) ?? present;
      if (snapshotsOf(now) === snapshotsOf(present)) return names;
      present = now;
    }
  }

  async #names(parts: readonly Pick<Manifest, 'snapshots' | 'segmentLists' | 'segments'>[]): Promise<Names> {
    const { store, signal, onWarning } = this.#options;
    const names: Names = { keys: new Set(), isWhole: true };
    const state = this.#options.manifest.current?.resume?.state;
    if (state !== undefined) names.keys.add(blobKey('lists', state.hash));
    const seen = new Set<string>();
    const read = async (hash: string, work: () => Promise<void>): Promise<void> => {
      names.keys.add(blobKey('lists', hash));
      if (seen.has(hash)) return;
      seen.add(hash);
      try {
        await work();
      } catch (error) {
        if (!(error instanceof RivuletError) || error.code !== 'SNAPSHOT_CORRUPT') throw error;
        names.isWhole = false;
        onWarning(`${error.message}: what it names is not deleted`, { code: error.code });
      }
    };
    const addSegments = (segments: Manifest['segments']): void => {
      for (const { parts: blobs } of segments)
        for (const { hash } of blobs) names.keys.add(blobKey('segments', hash));
    };
    for (const { snapshots, segmentLists, segments } of parts) {
      for (const snapshot of snapshots) {
        await read(snapshot.chunkList.hash, async () => {
          const { chunks } = await fetchChunkList(store, snapshot, { signal });
          for (const [hash] of chunks) names.keys.add(blobKey('chunks', hash));
        });
      }
      for (const { list } of segmentLists) {
        await read(list.hash, async () => {
          const bytes = await fetchBlob(store, 'lists', list, { signal });
          addSegments([...decodeSegments(bytes, `the segment list ${list.hash} in ${store.url}`)]);
        });
      }
      addSegments(segments);
    }
    return names;
  }
}
