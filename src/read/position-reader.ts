import { statSync } from 'node:fs';
import Database from 'better-sqlite3';
import { RivuletError } from '../errors.ts';
import { POSITION_COLUMNS, type PositionRow, toPosition } from '../replica/file-position.ts';
import { inodeOf } from '../replica/replica-file.ts';
import type { Position } from '../token.ts';

export interface FilePosition extends Position {
  /** Of the newest transaction in the file, as the file has it; null before the first. */
  readonly commitTime: string | null;
}

/** How often the path is looked at: a new bootstrap puts another file in its place. */
const PATH_CHECK_INTERVAL_MS = 200;

/**
 * Reads the position of a replica file that any process keeps, without a word to that process. Opened for
 * reading only, and opened again when another file has taken its place.
 */
export class ReplicaPositionReader implements Disposable {
  readonly #path: string;
  #open: OpenFile;
  #checkedAt = 0;

  /** Throws FILE_UNUSABLE if there is no file, or none of ours. */
  constructor(path: string) {
    this.#path = path;
    this.#open = openReadOnly(path);
  }

  /** Of the file that was read last; another one after a new bootstrap. */
  get inode(): bigint | null {
    return this.#open.inode;
  }

  /** For other questions to the same file. */
  get database(): Database.Database {
    return this.#open.database;
  }

  read(): FilePosition {
    if (performance.now() - this.#checkedAt > PATH_CHECK_INTERVAL_MS) {
      this.#checkedAt = performance.now();
      this.#followPath();
    }
    let row: (PositionRow & Pick<FilePosition, 'commitTime'>) | undefined;
    try {
      row = this.#open.position.get() as typeof row;
    } catch (cause) {
      throw unreadable(this.#path, cause);
    }
    if (row === undefined) throw notOurs(this.#path);
    return { ...toPosition(row), commitTime: row.commitTime };
  }

  close(): void {
    this.#open.database.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #followPath(): void {
    const inode = inodeOf(this.#path);
    // While the path is empty for a moment, the file that we hold is still the best there is.
    if (inode === null || inode === this.#open.inode) return;
    const next = openReadOnly(this.#path);
    this.#open.database.close();
    this.#open = next;
  }
}

interface OpenFile {
  readonly database: Database.Database;
  readonly position: Database.Statement;
  readonly inode: bigint | null;
}

function openReadOnly(path: string): OpenFile {
  const inode = inodeOf(path);
  if (statSync(path, { throwIfNoEntry: false })?.isDirectory() === true) {
    throw new RivuletError('FILE_UNUSABLE', `${path} is a directory`, {
      hint: 'name the file that a replica keeps',
      facts: { file: path },
    });
  }
  if (inode === null) {
    throw new RivuletError('FILE_UNUSABLE', `there is no file ${path}`, {
      hint: "'rivulet replica --file PATH' makes one and keeps it current",
      facts: { file: path },
    });
  }
  let database: Database.Database | null = null;
  try {
    database = new Database(path, { readonly: true, fileMustExist: true });
    const known = database
      .prepare("select 1 from sqlite_schema where name = '_rivulet_position' and type = 'table'")
      .get();
    if (known === undefined) throw notOurs(path);
    const position = database
      .prepare(`select ${POSITION_COLUMNS}, commit_time as commitTime from _rivulet_position`)
      .safeIntegers();
    return { database, position, inode };
  } catch (cause) {
    database?.close();
    if (cause instanceof RivuletError) throw cause;
    throw unreadable(path, cause);
  }
}

/** Codes of a file system that says no, as opposed to those of a damaged file. */
const DENIED = /^SQLITE_(CANTOPEN|READONLY|PERM|AUTH)/;

function unreadable(path: string, cause: unknown): RivuletError {
  const { code = '', message } = cause as { code?: string; message: string };
  const [says, hint] =
    code === 'SQLITE_NOTADB'
      ? ['it is not a SQLite file', 'name the file that a replica keeps']
      : DENIED.test(code)
        ? [
            `this user may not (${message})`,
            'it needs to read the file, and to write into its directory where the files that SQLite has beside it (-wal, -shm) are missing',
          ]
        : [
            message,
            'check the file and its directory; a damaged replica can be deleted, its replica process then makes it anew',
          ];
  return new RivuletError('FILE_UNUSABLE', `${path} cannot be read: ${says}`, {
    cause,
    hint,
    facts: { file: path },
  });
}

function notOurs(path: string): RivuletError {
  return new RivuletError('FILE_UNUSABLE', `${path} is a SQLite file, but not one that Rivulet keeps`, {
    hint: 'it has no position of Rivulet in it',
    facts: { file: path },
  });
}
