import type { Database } from 'better-sqlite3';
import { dropObject, LOCAL_OBJECT_TABLE, type LocalRecord, readRecords } from './local-records.ts';
import { SettlementError, settle } from './local-settlement.ts';
import type { LocalScript } from './local-sql.ts';
import type { LocalObject, LocalType } from './local-statement.ts';
import { foldName } from './naming.ts';

export interface NamedLocalObject {
  readonly type: LocalType;
  readonly name: string;
}

/** A local object that is declared and not there. */
export interface MissingLocalObject extends NamedLocalObject {
  readonly reason: string;
}

/** What has become of the local objects with one commit; names as the script has them. */
export interface LocalReport {
  readonly made: readonly (NamedLocalObject & { readonly tookMs: number })[];
  /** No longer declared, or declared otherwise. */
  readonly removed: readonly NamedLocalObject[];
  /** Not there since this commit, or for another reason than before. */
  readonly lost: readonly MissingLocalObject[];
  /** SQLite has changed their text with the name of a table or column. */
  readonly rewritten: readonly (NamedLocalObject & { readonly sql: string })[];
  /** All that are declared and not there. */
  readonly missing: readonly MissingLocalObject[];
}

export interface LocalObjectsOptions {
  readonly script: LocalScript;
  readonly onReport: (report: LocalReport) => void;
  /** Before an index is built or a table filled, which may take long. */
  readonly onStep: (object: LocalObject) => void;
}

/**
 * The user's own objects in one replica file, as a script declares them. All that is known about them stands in
 * the file, in the same transaction as themselves: whatever is rolled back, or killed, takes both along.
 *
 * They are brought to what the script says when the file is opened and at the end of every SQLite transaction
 * with a schema change; in between they may be missing. What cannot be made stops nothing.
 */
export class LocalObjects {
  readonly #db: Database;
  readonly #options: LocalObjectsOptions;
  /** As of the last commit. */
  #records: ReadonlyMap<string, LocalRecord>;
  #took: ReadonlyMap<string, number> = new Map();
  readonly #refused = new Map<string, string>();

  constructor(db: Database, options: LocalObjectsOptions) {
    this.#db = db;
    this.#options = options;
    this.#records = readRecords(db);
  }

  /** When the file is opened, in a transaction of its own: readers see all of it at once. */
  open(): void {
    const { hashes } = this.#options.script;
    const isInFile = this.#db.prepare('SELECT 1 FROM sqlite_schema WHERE type = ? AND lower(name) = ?');
    const isWhole = [...hashes].every(([name, hash]) => {
      const record = this.#records.get(name);
      return record?.hash === hash && record.reason === null && isInFile.get(record.type, name) !== undefined;
    });
    if (!isWhole || this.#records.size !== hashes.size)
      this.#inOwnTransaction(() => this.settle({ retry: true }));
    this.#report();
  }

  /** Whether this is the name of one of them. */
  has(name: string): boolean {
    const folded = foldName(name);
    return this.#options.script.hashes.has(folded) || this.#records.has(folded);
  }

  /** Triggers that fill one table stand and fall together: a name that they share, and nothing else has. */
  groupOf(name: string): string {
    const { objects, statements } = this.#options.script;
    const trigger = objects.find((object) => foldName(object.name) === foldName(name))?.trigger;
    const table = trigger?.writes.find((written) =>
      statements.some((each) => each.kind === 'fill' && foldName(each.table) === foldName(written)),
    );
    return foldName(table ?? name);
  }

  /** Inside the open transaction: to what the script declares. */
  settle({ retry }: { readonly retry: boolean }): void {
    const { script, onStep } = this.#options;
    const db = this.#db;
    if (script.objects.length === 0 && this.#records.size === 0) return;
    db.exec(
      `CREATE TABLE IF NOT EXISTS ${LOCAL_OBJECT_TABLE}
         (name TEXT PRIMARY KEY, type TEXT NOT NULL, sql TEXT NOT NULL, hash TEXT NOT NULL, reason TEXT) WITHOUT ROWID`,
    );
    try {
      this.#took = settle(db, { script, retry, refused: this.#refused, onStep });
    } catch (error) {
      if (!(error instanceof SettlementError)) throw error;
      const name = foldName(error.object.name);
      if (this.#refused.has(name)) throw error.cause;
      // What takes the whole transaction down with it is left out the next time.
      this.#refused.set(name, error.message);
      throw error;
    }
  }

  /** A table is about to be made anew: what stands on it can be made again as it is, not only as it was declared. */
  rememberTexts(): void {
    if (this.#records.size === 0) return;
    this.#db.exec(
      `UPDATE ${LOCAL_OBJECT_TABLE} AS local SET sql = standing.sql FROM sqlite_schema AS standing
       WHERE local.reason IS NULL AND standing.type = local.type AND lower(standing.name) = lower(local.name)`,
    );
  }

  /** Drops one that was found to be at fault; it is tried again with the next schema change. */
  ban(name: string, reason: string): void {
    this.#drop(name, reason);
  }

  /** A table of Postgres takes precedence, so that every replica of a database has the same names. */
  makeWay(name: string): void {
    this.#drop(name, 'a table of Postgres has this name now');
  }

  /** The SQLite transaction has been committed. */
  committed(): void {
    this.#report();
  }

  #drop(name: string, reason: string): void {
    // As the open transaction has it: once it is gone the name may be another's.
    const record = readRecords(this.#db).get(foldName(name));
    if (record === undefined || record.reason !== null) return;
    dropObject(this.#db, record);
    this.#db.prepare(`UPDATE ${LOCAL_OBJECT_TABLE} SET reason = ? WHERE name = ?`).run(reason, record.name);
  }

  #inOwnTransaction(work: () => void): void {
    for (;;) {
      try {
        this.#db.transaction(work).immediate();
        return;
      } catch (error) {
        if (!(error instanceof SettlementError)) throw error;
      }
    }
  }

  #report(): void {
    const before = this.#records;
    const after = readRecords(this.#db);
    const { hashes } = this.#options.script;
    const all = [...hashes.keys()].flatMap((name) => after.get(name) ?? []);
    const missing = all.flatMap(({ type, name, reason }) =>
      reason === null ? [] : [{ type, name, reason }],
    );
    const was = (name: string): LocalRecord | undefined => before.get(foldName(name));
    this.#options.onReport({
      made: all
        .filter(({ name }) => this.#took.has(foldName(name)))
        .map(({ type, name }) => ({ type, name, tookMs: this.#took.get(foldName(name))! })),
      removed: [...before.values()].filter(
        ({ name, reason }) => reason === null && !hashes.has(foldName(name)),
      ),
      lost: missing.filter(({ name, reason }) => was(name)?.reason !== reason),
      rewritten: all.filter(
        ({ name, hash, reason, sql }) =>
          reason === null && was(name)?.reason === null && was(name)!.hash === hash && was(name)!.sql !== sql,
      ),
      missing,
    });
    this.#records = after;
    this.#took = new Map();
    this.#refused.clear();
  }
}
