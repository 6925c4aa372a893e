import { rmSync } from 'node:fs';
import { RivuletError } from '../errors.ts';
import { formatLsn, type Lsn } from '../lsn.ts';
import { downloadChunks } from '../store/chunk-download.ts';
import { fetchChunkList } from '../store/chunk-list.ts';
import { describeSnapshot, type Manifest, type Snapshot } from '../store/manifest.ts';
import type { ObjectStore } from '../store/object-store.ts';
import { readManifest } from '../store/read-manifest.ts';
import { readSegment, segmentsBehind } from '../store/segments.ts';
import { REPLICA_FORMAT_VERSION } from './schema.ts';
import type { SnapshotFacts } from './snapshot-download.ts';

export interface StoreBootstrapOptions {
  readonly store: ObjectStore;
  /** Where the file goes. What an earlier attempt left there is used as far as it is right. */
  readonly file: string;
  /** The replica that is there now: chunks that it holds in the same place are not downloaded. */
  readonly seed: string | undefined;
  readonly signal: AbortSignal;
  /** Before anything is written. Throws to refuse. */
  readonly accept: (facts: SnapshotFacts) => void;
  readonly onProgress: (progress: { readonly bytes: number; readonly totalBytes: number }) => void;
  readonly onLog: (level: 'info' | 'warn', message: string, facts: Readonly<Record<string, unknown>>) => void;
}

export interface ApplySegmentsOptions {
  readonly store: ObjectStore;
  readonly epoch: string;
  /** Of the file, as it is applied to. */
  readonly position: () => Lsn;
  readonly apply: (frames: Buffer) => void;
  readonly signal: AbortSignal;
  readonly onLog: StoreBootstrapOptions['onLog'];
}

/**
 * Downloads the newest usable snapshot: one that turns out to be damaged is named, and the one before is taken. The
 * file is complete and synced when this resolves. Throws NOT_RESTORABLE if the store has none, SNAPSHOT_CORRUPT if
 * none is usable, VERSION_MISMATCH if they are of a newer program.
 */
export async function downloadFromStore(options: StoreBootstrapOptions): Promise<SnapshotFacts> {
  const { store, file, seed, signal, accept, onProgress, onLog } = options;
  const tried = new Set<string>();
  let damage: RivuletError | null = null;
  for (;;) {
    const manifest = await readOrExplain(store, { signal, onLog });
    const snapshot = manifest.snapshots.findLast(({ chunkList }) => !tried.has(chunkList.hash));
    if (snapshot === undefined) {
      throw damage ?? new RivuletError('NOT_RESTORABLE', `there is no snapshot in ${store.url} yet`);
    }
    tried.add(snapshot.chunkList.hash);
    checkReplicaVersion(snapshot, store.url);
    const facts = factsOf(snapshot, manifest);
    accept(facts);
    // The WAL of an attempt that got further would be replayed into this one.
    for (const suffix of ['-wal', '-shm', '-journal']) rmSync(`${file}${suffix}`, { force: true });
    try {
      const startedAtMs = performance.now();
      const list = await fetchChunkList(store, snapshot, { signal });
      const report = await downloadChunks({ store, list, file, seed, signal, onProgress });
      onLog('info', `snapshot at ${describeSnapshot(snapshot)} taken from ${store.url}`, {
        ...report,
        tookMs: Math.round(performance.now() - startedAtMs),
      });
      return facts;
    } catch (error) {
      if (!(error instanceof RivuletError) || error.code !== 'SNAPSHOT_CORRUPT') throw error;
      damage = error;
      onLog('warn', `the snapshot at ${describeSnapshot(snapshot)} is of no use: ${error.message}`, {
        code: error.code,
      });
    }
  }
}

/**
 * Brings a file forward with what the store has behind it. What is damaged there is named, and the file stays where
 * it is: what comes next (the replicator, or a newer snapshot) has to do.
 */
export async function applySegments(options: ApplySegmentsOptions): Promise<void> {
  const { store, epoch, position, apply, signal, onLog } = options;
  const manifest = await readOrExplain(store, { signal, onLog });
  const from = position();
  try {
    const row = await segmentsBehind(store, manifest, { epoch, position: from }, { signal });
    for (const segment of row) {
      for await (const frames of readSegment(store, segment, { signal })) {
        signal.throwIfAborted();
        apply(frames);
      }
    }
    if (row.length > 0)
      onLog('info', `${row.length} segments applied, up to ${formatLsn(position())}`, {
        from: formatLsn(from),
      });
  } catch (error) {
    if (!(error instanceof RivuletError) || error.code !== 'SNAPSHOT_CORRUPT') throw error;
    onLog('warn', `the store leads no further than ${formatLsn(position())}: ${error.message}`, {
      code: error.code,
    });
  }
}

async function readOrExplain(
  store: ObjectStore,
  { signal, onLog }: Pick<StoreBootstrapOptions, 'signal' | 'onLog'>,
): Promise<Manifest> {
  const read = await readManifest(store, { signal });
  if (read === null) {
    throw new RivuletError('NOT_RESTORABLE', `there is nothing in ${store.url}`, {
      hint: 'is this the --store that the replicator writes to?',
    });
  }
  if (read.damage !== null)
    onLog('warn', `${read.damage.message}: its backup is used`, { code: read.damage.code });
  return read.manifest;
}

function checkReplicaVersion(snapshot: Snapshot, url: string): void {
  if (snapshot.replicaVersion <= REPLICA_FORMAT_VERSION) return;
  throw new RivuletError(
    'VERSION_MISMATCH',
    `the snapshot at ${describeSnapshot(snapshot)} in ${url} holds a replica of format version ${snapshot.replicaVersion}, this program knows ${REPLICA_FORMAT_VERSION}`,
    { hint: 'use the version of rivulet that wrote it, or a newer one' },
  );
}

function factsOf(snapshot: Snapshot, { source }: Manifest): SnapshotFacts {
  return {
    epoch: snapshot.epoch,
    lsn: formatLsn(snapshot.position),
    bytes: snapshot.fileBytes,
    systemIdentifier: source.systemIdentifier,
    databaseName: source.database,
  };
}
