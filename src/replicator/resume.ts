import { renameSync, rmSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import type { ChangeLog } from '../changelog/change-log.ts';
import { createChangeLog } from '../changelog/sqlite-change-log.ts';
import { RivuletError } from '../errors.ts';
import type { Log } from '../log.ts';
import { formatLsn, type Lsn } from '../lsn.ts';
import { removeChecksum } from '../snapshot/file-checksum.ts';
import { rebuildFile } from '../snapshot/rebuild.ts';
import { leadsTo } from '../snapshot/restorable.ts';
import type { SourceIdentity } from '../source/catalog.ts';
import { fetchBlob } from '../store/blob.ts';
import type { Manifest } from '../store/manifest.ts';
import type { ObjectStore } from '../store/object-store.ts';
import { openStore, type StoreLocation } from '../store/open-store.ts';
import { type ReadManifest, readManifest } from '../store/read-manifest.ts';

/** Beside a copy of everything, which comes otherwise, this is nothing. */
const STALE_READS = 10;
const STALE_READ_RETRY_MS = 500;

export interface ResumeOptions {
  readonly location: StoreLocation;
  readonly dataDir: string;
  /** Where the base file goes. */
  readonly baseFile: string;
  readonly identity: SourceIdentity;
  readonly slot: string;
  readonly publication: string;
  /** What Postgres has forgotten: the slot's confirmed position. */
  readonly forgotten: Lsn;
  readonly log: Log;
  readonly signal: AbortSignal;
}

/**
 * Goes on with a history whose log was lost with its disk, from the object store: the base file is rebuilt, and a
 * new log begins where the segments end. Null where the store does not lead to what Postgres still has; then only a
 * new copy helps. The log is made last: killed before, the next start finds nothing and begins here again.
 */
export async function resumeFromStore(options: ResumeOptions): Promise<ChangeLog | null> {
  const { dataDir, baseFile, identity, slot, publication, log, signal } = options;
  await using store = await openStore(options.location);
  const read = await readUpToDate(store, options);
  const resume = read?.manifest.resume ?? null;
  if (read === null || resume === null) return null;
  const reason = unfit(read.manifest, resume, options);
  if (reason !== null) {
    log.warn({ store: store.url }, `the object store does not lead on: ${reason}`);
    return null;
  }
  const { epoch, position } = resume;
  log.info({ store: store.url, epoch, position: formatLsn(position) }, 'going on from the object store');
  const sourceState = (await fetchBlob(store, 'lists', resume.state, { signal })).toString();
  const building = `${baseFile}.resuming`;
  if (!(await rebuild(store, read.manifest, building, options))) return null;
  for (const suffix of ['-wal', '-shm', '-journal', '']) rmSync(`${baseFile}${suffix}`, { force: true });
  removeChecksum(baseFile);
  renameSync(building, baseFile);
  return createChangeLog({
    dir: dataDir,
    epoch,
    startPosition: position,
    source: { ...identity, slot, publication },
    sourceState,
  });
}

/** A store may take a moment to show what was written last, which is what Postgres was told to forget. */
async function readUpToDate(
  store: ObjectStore,
  { forgotten, signal }: ResumeOptions,
): Promise<ReadManifest | null> {
  for (let attempt = 1; ; attempt++) {
    const read = await readManifest(store, { signal });
    const position = read?.manifest.resume?.position;
    if (position === undefined || position >= forgotten || attempt === STALE_READS) return read;
    await delay(STALE_READ_RETRY_MS, undefined, { signal });
  }
}

/** From the newest snapshot that leads there. */
async function rebuild(
  store: ObjectStore,
  manifest: Manifest,
  file: string,
  { log, signal }: ResumeOptions,
): Promise<boolean> {
  const { epoch, position } = manifest.resume!;
  const usable = manifest.snapshots.filter(
    (each) => each.epoch === epoch && each.position <= position && leadsTo(manifest, each, position),
  );
  if (usable.length === 0) log.warn({ store: store.url }, 'no snapshot in the object store leads on');
  for (const snapshot of usable.toReversed()) {
    try {
      const target = { lsn: position };
      const report = await rebuildFile({
        store,
        manifest,
        snapshot,
        file,
        target,
        signal,
        onProgress: () => undefined,
      });
      if (report.position === position) return true;
    } catch (error) {
      if (!(error instanceof RivuletError) || error.code !== 'SNAPSHOT_CORRUPT') throw error;
      log.warn({ code: error.code }, `a snapshot in the object store is of no use: ${error.message}`);
    }
  }
  return false;
}

function unfit(
  { source }: Manifest,
  resume: NonNullable<Manifest['resume']>,
  { identity, slot, publication, forgotten }: ResumeOptions,
): string | null {
  if (source.systemIdentifier !== identity.systemIdentifier || source.database !== identity.database)
    return `it is of another database (${source.database})`;
  if (resume.timeline !== identity.timeline) return 'the server is on another timeline by now';
  if (resume.slot !== slot || resume.publication !== publication)
    return `it belongs to the slot ${resume.slot} and the publication ${resume.publication}`;
  if (forgotten > resume.position)
    return `Postgres has forgotten what lies behind ${formatLsn(resume.position)}, up to ${formatLsn(forgotten)}`;
  return null;
}
