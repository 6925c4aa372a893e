import Database from 'better-sqlite3';

/** A database object that was handed out stays open for so long after another file took its place. */
const OLD_DATABASE_MS = 60_000;

/** The database object that readers are handed, for reading only; another one when another file takes its place. */
export class ReadDatabase {
  #current: Database.Database | null = null;
  readonly #old = new Set<Database.Database>();

  /** Null before the first file, and after the end. */
  get current(): Database.Database | null {
    return this.#current;
  }

  /** Opens the file, in place of the one before, if there was one. */
  open(path: string): Database.Database {
    const next = new Database(path, { readonly: true, fileMustExist: true });
    next.pragma('query_only = ON');
    if (this.#current !== null) this.#retire(this.#current);
    this.#current = next;
    return next;
  }

  /** May be called twice. */
  close(): void {
    for (const db of [this.#current, ...this.#old]) db?.close();
    this.#current = null;
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
