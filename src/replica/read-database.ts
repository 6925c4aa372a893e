import Database from 'better-sqlite3';
import { RivuletError } from '../errors.ts';
import { currentTarget, inodeOf, isGenerationOf } from './replica-file.ts';

/** A database object that was handed out stays open for so long after another file took its place. */
const OLD_DATABASE_MS = 60_000;

/** The database object that readers are handed, for reading only; another one when another file takes its place. */
export class ReadDatabase {
  #current: Database.Database | null = null;
  #opened: { readonly path: string; readonly inode: bigint | null } | null = null;
  readonly #old = new Set<Database.Database>();

  /** Null before the first file, and after the end. */
  get current(): Database.Database | null {
    return this.#current;
  }

  /** Opens the file, in place of the one before, if there was one. Throws FILE_UNUSABLE. */
  open(path: string): Database.Database {
    const inode = inodeOf(path);
    let next: Database.Database | null = null;
    try {
      next = new Database(path, { readonly: true, fileMustExist: true });
      next.pragma('query_only = ON');
      // The first read maps the -shm, by name: from then on it reads even if the file is moved or removed.
      next.pragma('schema_version');
    } catch (cause) {
      next?.close();
      throw new RivuletError('FILE_UNUSABLE', `${path} cannot be read: ${(cause as Error).message}`, {
        hint: 'check the file and its directory',
        cause,
        facts: { file: path },
      });
    }
    if (this.#current !== null) this.#retire(this.#current);
    this.#current = next;
    this.#opened = { path, inode };
    return next;
  }

  /**
   * Why whoever opens `file` now does not get what is read here: it was moved, removed or replaced by somebody. Null
   * while all is well, and while a new generation waits to be opened.
   */
  displaced(file: string): RivuletError | null {
    if (this.#opened === null) return null;
    const { path, inode } = this.#opened;
    let says: string;
    try {
      const target = currentTarget(file);
      if (target === path && inodeOf(path) === inode) return null;
      if (target !== null && target !== path && isGenerationOf(file, target)) return null;
      says =
        target === null || inodeOf(target) === null
          ? 'was moved or removed'
          : 'was replaced by another file or link';
    } catch (error) {
      says = `cannot be found: ${(error as Error).message}`;
    }
    return new RivuletError(
      'FILE_UNUSABLE',
      `${file} ${says} while it is kept: only those that have it open see it`,
      {
        hint: 'put it back while no process keeps it, or start the replica again: it then makes the file anew',
        facts: { file },
      },
    );
  }

  /** May be called twice. */
  close(): void {
    for (const db of [this.#current, ...this.#old]) db?.close();
    this.#current = null;
    this.#opened = null;
    this.#old.clear();
  }

  /** Whoever took it a moment ago may be in the middle of reading with it. */
  #retire(db: Database.Database): void {
    this.#old.add(db);
    setTimeout(() => {
      if (!this.#old.delete(db)) return;
      try {
        db.close();
      } catch {
        // An iterator is still open on it.
        this.#retire(db);
      }
    }, OLD_DATABASE_MS).unref();
  }
}
