import {
  accessSync,
  closeSync,
  constants,
  existsSync,
  fsyncSync,
  lstatSync,
  openSync,
  readdirSync,
  readlinkSync,
  readSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
} from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';
import Database from 'better-sqlite3';
import { RivuletError } from '../errors.ts';
import { type Lsn, parseLsn } from '../lsn.ts';
import { REPLICA_FORMAT_VERSION } from './schema.ts';

/** Older ones can lose pages when two connections write and checkpoint at once: https://www.sqlite.org/wal.html#walresetbug */
export const MIN_SQLITE_VERSION = '3.51.3';

/** Part of the 300 MB that a replica may take: hot pages stay, large transactions spill into the WAL. */
const APPLIER_CACHE_KIB = 32 * 1024;
/** Somebody may hold the write lock for a moment with a tool of their own. */
const BUSY_TIMEOUT_MS = 10_000;

export interface ReplicaPosition {
  readonly epoch: string;
  /** Every transaction that ends at or before this is in the tables. */
  readonly lsn: Lsn;
  /** Up to where the stream was applied: ahead of `lsn` while tables are read again. */
  readonly applied: Lsn;
  /** `2026-11-21 03:00:00.123456Z`, or null before the first transaction. */
  readonly commitTime: string | null;
}

export interface OpenReplicaFileOptions {
  /** The database that the file must have been made from, if that is known already. */
  readonly systemIdentifier?: string;
  readonly databaseName?: string;
}

/** Which database a file is of; null where it does not say. */
export interface FileOrigin {
  readonly systemIdentifier: string | null;
  readonly databaseName: string | null;
}

export function readOrigin(db: Database.Database): FileOrigin {
  const meta = db.prepare<[string], unknown>('SELECT value FROM _rivulet_meta WHERE key = ?').pluck();
  const text = (key: string): string | null => {
    const value = meta.get(key);
    return value === undefined || value === null ? null : String(value);
  };
  return { systemIdentifier: text('system_identifier'), databaseName: text('database_name') };
}

/** Key in `_rivulet_meta`: when the file was restored. */
export const RESTORED_KEY = 'restored_at';

/** The connection that writes. Readers need none of this. */
export function configureForApplying(db: Database.Database): void {
  db.pragma('journal_mode = WAL');
  // A crash of the machine may lose the newest commits, whole and from the end only; position and rows are
  // lost together, and the replicator sends them again. So no commit waits for the disk.
  db.pragma('synchronous = NORMAL');
  // WalKeeper does it, off the critical path, and cuts the file where it has become long.
  db.pragma('wal_autocheckpoint = 0');
  db.pragma('journal_size_limit = -1');
  db.pragma(`cache_size = -${APPLIER_CACHE_KIB}`);
  // No mmap: its pages would count as this process's memory, and writes do not gain from it.
  db.pragma('mmap_size = 0');
  // Sorting for a new index goes to files, not to memory.
  db.pragma('temp_store = FILE');
  // Postgres has checked every constraint; a reader's own foreign key must not act on replicated rows.
  db.pragma('foreign_keys = OFF');
  db.pragma('trusted_schema = OFF');
  db.pragma(`busy_timeout = ${BUSY_TIMEOUT_MS}`);
}

/** Opens an existing replica file for the one process that applies to it. */
export function openReplicaFile(path: string, options: OpenReplicaFileOptions = {}): Database.Database {
  checkSqliteVersion();
  checkWritable(path);
  checkHeader(path);
  let db: Database.Database | undefined;
  try {
    // Somebody else's database is not written to, not even to take its WAL in when it is closed.
    db = new Database(path, { readonly: true, timeout: BUSY_TIMEOUT_MS });
    checkReplica(db, path, options);
    db.close();
    db = new Database(path, { fileMustExist: true, timeout: BUSY_TIMEOUT_MS });
    configureForApplying(db);
    return db;
  } catch (error) {
    db?.close();
    if (error instanceof RivuletError) throw error;
    throw unusable(path, `cannot be opened: ${(error as Error).message}`, {
      hint: 'check the file and its directory; a damaged replica can be deleted, it is then made anew',
      cause: error,
    });
  }
}

/** Makes a new, empty database to build a replica in; swapInto() puts it in place once it is whole. */
export function createReplicaFile(path: string): Database.Database {
  checkSqliteVersion();
  checkWritable(path);
  removeDatabase(path);
  const db = new Database(path);
  db.pragma('page_size = 4096');
  // Nothing survives a crash in the middle of building anyway: it begins again.
  db.pragma('journal_mode = OFF');
  db.pragma('synchronous = OFF');
  db.pragma(`cache_size = -${APPLIER_CACHE_KIB}`);
  db.pragma('temp_store = FILE');
  db.pragma('foreign_keys = OFF');
  return db;
}

/** Ends the building of a file: readers may open it from its first moment in place, so it is in WAL mode then. */
export function finishReplicaFile(db: Database.Database): void {
  db.pragma('journal_mode = WAL');
  db.close();
}

export function replicaFileExists(path: string): boolean {
  return existsSync(path);
}

export function readPosition(db: Database.Database): ReplicaPosition {
  const row = db
    .prepare<[], { epoch: string; lsn: string; commitTime: string | null; applied: string }>(
      'SELECT epoch, lsn, commit_time AS commitTime, applied_lsn AS applied FROM _rivulet_position',
    )
    .get();
  if (row === undefined)
    throw new RivuletError('SNAPSHOT_CORRUPT', `the file ${db.name} holds no position`, {
      hint: 'somebody has emptied a table of it: delete the file, it is then made anew',
    });
  return {
    epoch: row.epoch,
    lsn: parseLsn(row.lsn),
    applied: parseLsn(row.applied),
    commitTime: row.commitTime,
  };
}

/** Refuses to go on with a SQLite library that can lose pages. */
export function checkSqliteVersion(version: string = runningSqliteVersion()): void {
  const parts = version.split('.').map(Number);
  const needed = MIN_SQLITE_VERSION.split('.').map(Number);
  const difference = needed.map((each, index) => (parts[index] ?? 0) - each).find((each) => each !== 0) ?? 0;
  if (difference >= 0) return;
  throw new RivuletError(
    'FILE_UNUSABLE',
    `SQLite ${version} is too old: ${MIN_SQLITE_VERSION} or newer is needed`,
    {
      hint: 'install the version of better-sqlite3 that this package asks for',
      facts: { version },
    },
  );
}

function runningSqliteVersion(): string {
  const db = new Database(':memory:');
  try {
    return db.prepare<[], string>('SELECT sqlite_version()').pluck().get()!;
  } finally {
    db.close();
  }
}

// ---- checks

function checkWritable(path: string): void {
  const directory = dirname(resolve(path));
  try {
    accessSync(directory, constants.W_OK | constants.X_OK);
  } catch (error) {
    const isMissing = (error as { code?: unknown }).code === 'ENOENT';
    throw unusable(
      path,
      isMissing
        ? `is in a directory that does not exist: ${directory}`
        : `is in a directory that cannot be written: ${directory}`,
      {
        hint: 'SQLite needs to make files beside the database (-wal, -shm)',
        cause: error,
      },
    );
  }
  if (!existsSync(path)) return;
  if (statSync(path).isDirectory())
    throw unusable(path, 'is a directory', { hint: 'name a file in it, which need not be there yet' });
  try {
    accessSync(path, constants.R_OK | constants.W_OK);
  } catch (error) {
    throw unusable(path, 'cannot be read and written', { hint: 'check its owner and mode', cause: error });
  }
}

const SQLITE_MAGIC = 'SQLite format 3\0';

function checkHeader(path: string): void {
  let header: string;
  try {
    const file = openSync(path, 'r');
    try {
      const bytes = Buffer.alloc(SQLITE_MAGIC.length);
      header = bytes.toString('latin1', 0, readSync(file, bytes, 0, bytes.length, 0));
    } finally {
      closeSync(file);
    }
  } catch (error) {
    const { code, message } = error as { code?: string; message: string };
    const says = code === 'ENOENT' ? 'does not exist' : `cannot be read: ${message}`;
    throw unusable(path, says, { cause: error });
  }
  if (header !== SQLITE_MAGIC) {
    throw unusable(path, 'is not a SQLite database', {
      hint: 'name another file; this one was left as it is',
    });
  }
}

function checkReplica(db: Database.Database, path: string, options: OpenReplicaFileOptions): void {
  const tables = db
    .prepare<[], string>(
      "SELECT name FROM sqlite_schema WHERE type = 'table' AND name IN ('_rivulet_meta', '_rivulet_position')",
    )
    .pluck()
    .all();
  if (tables.length < 2) {
    throw unusable(path, 'is a SQLite database, but not one that Rivulet made', {
      hint: 'name another file; this one was left as it is',
    });
  }
  const meta = new Map(
    db
      .prepare<[], { key: string; value: string | number }>('SELECT key, value FROM _rivulet_meta')
      .all()
      .map(({ key, value }) => [key, value]),
  );
  const version = Number(meta.get('format_version'));
  if (version !== REPLICA_FORMAT_VERSION) {
    throw new RivuletError(
      'VERSION_MISMATCH',
      `${path} has format version ${version}; this program knows ${REPLICA_FORMAT_VERSION}`,
      {
        hint: 'use the version of Rivulet that made it, or delete it and let it be made anew',
        facts: { file: path, version },
      },
    );
  }
  const restoredAt = meta.get(RESTORED_KEY);
  if (restoredAt !== undefined) {
    throw unusable(path, `is a copy of the past that was restored at ${restoredAt}`, {
      hint: `name another file for the replica; to follow with this one all the same, delete the row '${RESTORED_KEY}' of its table _rivulet_meta`,
    });
  }
  const isOther = (key: string, wanted: string | undefined): boolean =>
    wanted !== undefined && String(meta.get(key)) !== wanted;
  if (
    isOther('system_identifier', options.systemIdentifier) ||
    isOther('database_name', options.databaseName)
  ) {
    throw unusable(path, `was made from another database (${String(meta.get('database_name'))})`, {
      hint: 'name another file, or delete this one if it is not needed any more',
    });
  }
}

function unusable(
  path: string,
  says: string,
  details: { readonly hint?: string; readonly cause?: unknown } = {},
): RivuletError {
  return new RivuletError('FILE_UNUSABLE', `${path} ${says}`, { ...details, facts: { file: path } });
}

/**
 * A file is locked, repaired and replaced under one name. Under another one, a link of somebody's or the
 * generation that our own link leads to, a second process would write it, unseen by the first.
 */
function checkName(path: string): void {
  const directory = realpathSync(dirname(resolve(path)));
  const name = basename(resolve(path));
  const target = linkTarget(join(directory, name));
  if (target !== null && !generationPattern(name).test(target)) {
    throw unusable(path, `is a symbolic link to ${target}`, {
      hint: `name the file itself: ${resolve(directory, target)}`,
    });
  }
  const keptAs = /^(.+)\.[A-Za-z0-9_]+-\d+$/.exec(name)?.[1];
  if (keptAs !== undefined && linkTarget(join(directory, keptAs)) === name) {
    throw unusable(path, `is the file that ${keptAs} leads to`, {
      hint: `name that: ${join(directory, keptAs)}`,
    });
  }
}

// ---- lock

export interface FileLock {
  /** May be called twice. */
  release(): void;
}

/**
 * Takes `path` for this process (`subject`, as messages call it): a SQLite lock on `<path>-lock`, held until release() or the end of the process,
 * however it ends. The lock file itself stays: removing it would let two processes lock two files of one name.
 */
export function lockFile(path: string, subject: string = path): FileLock {
  checkWritable(path);
  checkName(path);
  // Not the resolved path: after a re-bootstrap the same replica lives in another file behind the link.
  const lockPath = join(realpathSync(dirname(resolve(path))), `${basename(path)}-lock`);
  let db: Database.Database | undefined;
  try {
    db = new Database(lockPath, { timeout: 0 });
    db.exec('BEGIN EXCLUSIVE');
  } catch (error) {
    db?.close();
    if (String((error as { code?: unknown }).code).startsWith('SQLITE_BUSY')) {
      throw new RivuletError('FILE_LOCKED', `another process already keeps ${subject}`, {
        hint: `one process at a time, as ${lockPath} says; stop the other one first`,
        cause: error,
        facts: { file: path, lock: lockPath },
      });
    }
    throw unusable(subject, `cannot be locked: ${(error as Error).message}`, {
      hint: `check owner and mode of ${lockPath}`,
      cause: error,
    });
  }
  const held = db;
  return {
    release: () => {
      if (held.open) held.close();
    },
  };
}

// ---- generations

/**
 * Puts a completely built file (checkpointed, no -wal, not open in this process) where `path` is, while other
 * processes may hold the old one open together with its -wal. SQLite names the -wal after the file that a link
 * leads to, so old readers keep the old pair and new ones open the new pair; a rename over the old file would
 * have its -wal replayed into the new one. Whatever moment it is killed at, `path` leads to one whole file.
 *
 *   nothing there yet:  path                       (the file itself)
 *   afterwards:         path -> path.<epoch>-<n>   (a link, replaced by rename)
 *
 * Returns the file that `path` leads to now.
 */
export function swapInto(path: string, newFile: string, epoch: string): string {
  const directory = dirname(resolve(path));
  const name = basename(path);
  syncPath(newFile);
  const target = currentTarget(path);
  if (target === null) {
    // A -wal that was left behind by a file that is gone would be replayed into the new one.
    for (const suffix of SIDE_FILES) rmSync(`${path}${suffix}`, { force: true });
    renameSync(newFile, path);
    syncPath(directory);
    return path;
  }
  const generation = nextGeneration(directory, name, epoch);
  renameSync(newFile, join(directory, generation));
  const link = join(directory, `${name}.link`);
  rmSync(link, { force: true });
  symlinkSync(generation, link);
  renameSync(link, path);
  syncPath(directory);
  // The generation before stays until the next start or swap: a reader may have opened it and not yet read.
  removeOldGenerations(path, [basename(target)]);
  return join(directory, generation);
}

/** Removes files of earlier generations, except those of the given names. Whoever has one open keeps it. */
export function removeOldGenerations(path: string, keep: readonly string[] = []): void {
  const directory = dirname(resolve(path));
  const name = basename(path);
  const target = currentTarget(path);
  if (target === null) return;
  const kept = new Set([...keep, basename(target)]);
  const isGeneration = generationPattern(name);
  for (const entry of readdirSync(directory)) {
    const file = entry.replace(/-(wal|shm|journal)$/, '');
    if (isGeneration.test(file) && !kept.has(file)) rmSync(join(directory, entry), { force: true });
  }
  // Once `path` is a link, a -wal of the same name belongs to the file that stood there first.
  if (basename(target) !== name && !kept.has(name)) {
    for (const suffix of SIDE_FILES) rmSync(`${path}${suffix}`, { force: true });
  }
}

/** The file that `path` leads to: changes with every swap. Null if there is none. */
export function currentTarget(path: string): string | null {
  if (lstatSync(path, { throwIfNoEntry: false }) === undefined) return null;
  return resolve(dirname(resolve(path)), linkTarget(path) ?? basename(path));
}

/** By which it is known whether another file stands there by now; null where there is none. */
export function inodeOf(path: string): bigint | null {
  return statSync(path, { bigint: true, throwIfNoEntry: false })?.ino ?? null;
}

/** Whether `target` is what swapInto() has made `path` lead to. */
export function isGenerationOf(path: string, target: string): boolean {
  return (
    dirname(resolve(path)) === dirname(target) && generationPattern(basename(path)).test(basename(target))
  );
}

/** What the link says; null where there is no link. */
function linkTarget(path: string): string | null {
  return lstatSync(path, { throwIfNoEntry: false })?.isSymbolicLink() === true ? readlinkSync(path) : null;
}

const SIDE_FILES = ['-wal', '-shm', '-journal'] as const;

function generationPattern(name: string): RegExp {
  return new RegExp(`^${name.replace(/[.*+?^${}()|[\]\\]/g, '\\$&')}\\.[A-Za-z0-9_]+-\\d+$`);
}

function nextGeneration(directory: string, name: string, epoch: string): string {
  const safeEpoch = epoch.replace(/[^A-Za-z0-9_]/g, '_') || '_';
  for (let number = 1; ; number++) {
    const candidate = `${name}.${safeEpoch}-${number}`;
    if (
      ![candidate, ...SIDE_FILES.map((suffix) => candidate + suffix)].some((each) =>
        existsSync(join(directory, each)),
      )
    ) {
      return candidate;
    }
  }
}

function removeDatabase(path: string): void {
  for (const suffix of ['', ...SIDE_FILES]) rmSync(`${path}${suffix}`, { force: true });
}

function syncPath(path: string): void {
  const file = openSync(path, 'r');
  try {
    fsyncSync(file);
  } finally {
    closeSync(file);
  }
}
