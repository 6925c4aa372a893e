import { accessSync, constants, existsSync, renameSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';
import type Database from 'better-sqlite3';
import { RivuletError } from '../errors.ts';
import { formatLsn } from '../lsn.ts';
import type { Applier } from '../replica/applier.ts';
import { RESTORED_KEY } from '../replica/replica-file.ts';
import { describeSnapshot, type Manifest, type Snapshot } from '../store/manifest.ts';
import { readManifest } from '../store/read-manifest.ts';
import { type RebuildOptions, type RebuildReport, type RestoreTarget, rebuildFile } from './rebuild.ts';
import { type RestorableRange, restorableRanges } from './restorable.ts';

export interface RestoreOptions extends Pick<RebuildOptions, 'store' | 'target' | 'signal' | 'onProgress'> {
  /** Must not exist. */
  readonly file: string;
  readonly onWarning: (message: string) => void;
}

/**
 * Makes a plain SQLite file with the exact content of one moment: the newest usable snapshot before it, and the
 * segments up to it. The file is built aside and takes its name when it is whole; killed before, the next call goes
 * on with what was downloaded. Throws NOT_RESTORABLE with what can be restored.
 */
export async function restore(options: RestoreOptions): Promise<RebuildReport> {
  const { store, file, target, signal, onWarning } = options;
  if (existsSync(file)) {
    throw new RivuletError('FILE_UNUSABLE', `${file} exists already`, {
      hint: 'name a file that does not exist; nothing is overwritten',
    });
  }
  checkDirectory(file);
  const read = await readManifest(store, { signal });
  if (read === null) throw new RivuletError('NOT_RESTORABLE', `there is nothing in ${store.url}`);
  if (read.damage !== null) onWarning(`${read.damage.message}: its backup is used`);
  const { manifest } = read;
  const range = findRange(manifest, target, store.url);
  let damage: RivuletError | null = null;
  for (const snapshot of range.snapshots.filter((each) => isBefore(each, target)).toReversed()) {
    try {
      const building = `${file}.restoring`;
      const report = await rebuildFile({
        ...options,
        manifest,
        snapshot,
        file: building,
        finish: markRestored,
      });
      await putInPlace(building, file);
      return report;
    } catch (error) {
      if (!(error instanceof RivuletError) || error.code !== 'SNAPSHOT_CORRUPT') throw error;
      damage = error;
      onWarning(`the snapshot at ${describeSnapshot(snapshot)} does not lead there: ${error.message}`);
    }
  }
  throw damage ?? notRestorable(manifest, target, store.url);
}

/** Found before anything is downloaded. */
function checkDirectory(file: string): void {
  const directory = dirname(resolve(file));
  try {
    accessSync(directory, constants.W_OK | constants.X_OK);
  } catch (cause) {
    const isMissing = (cause as NodeJS.ErrnoException).code === 'ENOENT';
    throw new RivuletError(
      'FILE_UNUSABLE',
      `${file} is in a directory that ${isMissing ? 'does not exist' : 'cannot be written'}: ${directory}`,
      { cause, hint: 'name a file in a directory that is there, and where this user may write' },
    );
  }
}

function isBefore(snapshot: Snapshot, target: RestoreTarget): boolean {
  if (target === 'newest') return true;
  if ('lsn' in target) return snapshot.position <= target.lsn;
  // A snapshot without a transaction is as old as the history.
  return snapshot.commitTime === null || snapshot.commitTime <= target.time;
}

function findRange(manifest: Manifest, target: RestoreTarget, url: string): RestorableRange {
  const ranges = restorableRanges(manifest).toReversed();
  const reaches = (range: RestorableRange): boolean => {
    if (target === 'newest') return true;
    if ('lsn' in target) return target.lsn <= range.to;
    return target.time <= (range.toTime ?? '');
  };
  const range = ranges.find(
    (each) => each.snapshots.some((snapshot) => isBefore(snapshot, target)) && reaches(each),
  );
  if (range === undefined) throw notRestorable(manifest, target, url);
  return range;
}

/** The file is plain, without anything beside it, and says what it is. */
function markRestored(db: Database.Database, { position, settled, reloading }: Applier): void {
  if (settled !== position) {
    throw new RivuletError(
      'NOT_RESTORABLE',
      `at ${formatLsn(position)} the tables ${reloading.join(', ')} were being read again after a schema change`,
      { hint: `everything is whole at ${formatLsn(settled)}, and again once they had been read` },
    );
  }
  db.prepare('INSERT OR REPLACE INTO _rivulet_meta (key, value) VALUES (?, ?)').run(
    RESTORED_KEY,
    new Date().toISOString(),
  );
  db.pragma('wal_checkpoint(TRUNCATE)');
  db.pragma('journal_mode = DELETE');
}

async function putInPlace(building: string, file: string): Promise<void> {
  await sync(building);
  renameSync(building, file);
  await sync(dirname(resolve(file)));
}

async function sync(path: string): Promise<void> {
  const handle = await open(path, 'r');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

function notRestorable(manifest: Manifest, target: RestoreTarget, url: string): RivuletError {
  const what = target === 'newest' ? 'anything' : 'lsn' in target ? formatLsn(target.lsn) : target.time;
  const ranges = restorableRanges(manifest).map(
    ({ from, to, fromTime, toTime }) =>
      `${formatLsn(from)} to ${formatLsn(to)} (${fromTime ?? '…'} to ${toTime ?? '…'})`,
  );
  // The replicator says now and then up to when the store holds everything; of later moments that is not known yet.
  const newer =
    target !== 'newest' && 'time' in target ? '; without --to-time, the newest that there is' : '';
  return new RivuletError('NOT_RESTORABLE', `${what} cannot be restored from ${url}`, {
    hint:
      ranges.length === 0
        ? 'there is no snapshot in it yet'
        : `what can be restored: ${ranges.join('; ')}${newer}`,
  });
}
