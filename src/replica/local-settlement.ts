import type { Database } from 'better-sqlite3';
import { checkReadable, checkTrigger } from './local-check.ts';
import { dropObject, type LocalRecord, readRecords, writeRecords } from './local-records.ts';
import type { LocalScript } from './local-sql.ts';
import { type LocalFill, type LocalObject, type LocalType, parseStatement } from './local-statement.ts';
import { foldName, quoteName } from './naming.ts';
import { splitScript } from './sql-script.ts';
import { isFailure } from './sqlite-failure.ts';

export interface SettleOptions {
  readonly script: LocalScript;
  /** Whether what could not be made before is tried again. */
  readonly retry: boolean;
  /** What must not be tried now, and why; by folded name. */
  readonly refused: ReadonlyMap<string, string>;
  /** Before what may take long: an index, or filling a table. */
  readonly onStep: (object: LocalObject) => void;
}

/** Raised where the SQLite transaction as a whole has failed while an object was made. */
export class SettlementError extends Error {
  readonly object: LocalObject;

  constructor(object: LocalObject, cause: Error) {
    super(cause.message, { cause });
    this.object = object;
  }
}

/**
 * Brings the local objects in the file to what the script declares, as far as the tables allow, inside the
 * SQLite transaction that is open. What is there and whole is not touched.
 *
 * A table that the script fills, and the triggers that write into it, stand and fall together: rows that were
 * changed while a trigger was not there would be missing from it without anybody noticing. So such a table is
 * filled anew whenever one of its triggers was lost, and dropped when one of them cannot be made.
 *
 * Returns for how long each object that was made took, ms, by folded name.
 */
export function settle(db: Database, options: SettleOptions): ReadonlyMap<string, number> {
  return new Settlement(db, options).run();
}

class Settlement {
  readonly #db: Database;
  readonly #options: SettleOptions;
  readonly #records: ReadonlyMap<string, LocalRecord>;
  readonly #objects: readonly LocalObject[];
  readonly #there = new Set<string>();
  /** Triggers that were taken away to be looked at one by one: nothing happens in between. */
  readonly #aside = new Set<string>();
  /** Triggers that stood on another table until now. */
  readonly #moved = new Set<string>();
  readonly #reasons = new Map<string, string>();
  readonly #made = new Map<string, number>();

  constructor(db: Database, options: SettleOptions) {
    this.#db = db;
    this.#options = options;
    this.#objects = options.script.objects;
    this.#records = readRecords(db);
  }

  run(): ReadonlyMap<string, number> {
    this.#dropUndeclared();
    this.#look();
    this.#dropBroken();
    this.#takeBack();
    this.#dropStale();
    for (const statement of this.#options.script.statements) {
      if (statement.kind === 'fill') this.#fill(statement);
      else if (!this.#there.has(foldName(statement.name))) this.#make(statement);
    }
    this.#fallTogether();
    this.#record();
    return this.#made;
  }

  /** What the script does not have any more, or not in this shape. */
  #dropUndeclared(): void {
    const { hashes } = this.#options.script;
    const stale = [...this.#records].filter(([name, { hash }]) => hashes.get(name) !== hash);
    for (const type of DROP_ORDER) {
      for (const [, record] of stale) {
        if (record.type === type && record.reason === null && !this.#isMirrored(record.name))
          dropObject(this.#db, record);
      }
    }
  }

  #look(): void {
    for (const object of this.#objects) {
      const name = foldName(object.name);
      const record = this.#recordOf(object);
      if (record?.reason === null && this.#typeInFile(name) === object.type && !this.#isMirrored(name))
        this.#there.add(name);
      const refused = this.#options.refused.get(name);
      if (refused !== undefined) this.#reasons.set(name, refused);
      else if (!this.#options.retry && record !== undefined && record.reason !== null)
        this.#reasons.set(name, record.reason);
    }
  }

  /** A schema change may have left behind what cannot be read, or a trigger that would fail with the next row. */
  #dropBroken(): void {
    for (const object of this.#objects) {
      if (!this.#isThere(object.name)) continue;
      if (object.type === 'table' || object.type === 'view') {
        if (this.#attempt(object, () => checkReadable(this.#db, object)) !== null) this.#drop(object);
      } else if (object.type === 'trigger') {
        const standing = this.#standing(object);
        if (this.#attempt(object, () => this.#checkTrigger(standing)) === null) continue;
        // Any trigger on the table may be the one at fault.
        for (const other of this.#objects) {
          if (other.type !== 'trigger' || !this.#isThere(other.name)) continue;
          if (foldName(this.#standing(other).on!) !== foldName(standing.on!)) continue;
          this.#drop(other);
          this.#aside.add(foldName(other.name));
        }
      }
    }
  }

  /**
   * What SQLite has changed with a name in Postgres becomes what the script says again as soon as that can be made:
   * a table that takes the place of another is the one that is meant, not the one that was moved aside.
   */
  #takeBack(): void {
    for (const object of this.#objects) {
      const name = foldName(object.name);
      if (!this.#isThere(name) || object.type === 'table' || this.#standing(object).rest === object.rest)
        continue;
      const startedAtMs = performance.now();
      const reason = this.#attempt(object, () => {
        dropObject(this.#db, object);
        this.#create(object);
      });
      if (reason !== null) continue;
      this.#made.set(name, performance.now() - startedAtMs);
      this.#moved.add(name);
    }
  }

  /** Filled tables whose triggers were not there for a while, or on another table, and what stands on them. */
  #dropStale(): void {
    for (let isDone = false; !isDone; ) {
      isDone = true;
      for (const table of this.#filledTables()) {
        const writers = this.#writersOf(table);
        const lost = writers.find((writer) => {
          const name = foldName(writer.name);
          return (!this.#there.has(name) && !this.#aside.has(name)) || this.#moved.has(name);
        });
        if (lost === undefined || !this.#isThere(table.name)) continue;
        this.#drop(table);
        isDone = false;
      }
    }
    for (const table of this.#filledTables()) {
      const missing = this.#writersOf(table).find(({ name }) => this.#reasons.has(foldName(name)));
      // Not filled in vain.
      if (missing !== undefined && !this.#reasons.has(foldName(table.name)))
        this.#reasons.set(foldName(table.name), withoutTrigger(missing));
    }
  }

  #make(object: LocalObject): void {
    const name = foldName(object.name);
    if (this.#reasons.has(name)) return;
    const missing = object.trigger?.writes.find((table) => !this.#isThere(table));
    if (missing !== undefined) {
      this.#reasons.set(name, `the table ${missing}, which it writes into, is not there`);
      return;
    }
    const startedAtMs = performance.now();
    const reasons = this.#texts(object).map((sql) =>
      this.#isThere(object.name) ? null : this.#tryToMake({ ...object, sql }),
    );
    if (this.#isThere(object.name)) this.#made.set(name, performance.now() - startedAtMs);
    else this.#reasons.set(name, reasons[0]!);
  }

  /** The text of the script; failing that, the one that SQLite has made of it since. */
  #texts(object: LocalObject): readonly string[] {
    const last = this.#recordOf(object)?.sql ?? object.sql;
    return last === object.sql ? [object.sql] : [object.sql, last];
  }

  #tryToMake(object: LocalObject): string | null {
    const name = foldName(object.name);
    const type = this.#typeInFile(name);
    if (type === 'table' || (type !== undefined && object.type === 'table'))
      return `there is a ${type} of this name already`;
    if (object.type === 'index') this.#options.onStep(object);
    const reason = this.#attempt(object, () => {
      // Somebody made it by hand before the script had it.
      if (type !== undefined) this.#db.exec(`DROP ${type.toUpperCase()} ${quoteName(object.name)}`);
      this.#create(object);
    });
    if (reason === null) this.#there.add(name);
    return reason;
  }

  #create(object: LocalObject): void {
    this.#db.exec(object.sql);
    if (object.type === 'trigger') this.#checkTrigger(this.#standing(object));
    else checkReadable(this.#db, object);
  }

  #fill(fill: LocalFill): void {
    const name = foldName(fill.table);
    if (!this.#made.has(name)) return;
    const table = this.#objects.find((object) => foldName(object.name) === name)!;
    const startedAtMs = performance.now();
    this.#options.onStep(table);
    const reason = this.#attempt(table, () => this.#db.exec(fill.sql));
    if (reason === null) {
      this.#made.set(name, this.#made.get(name)! + performance.now() - startedAtMs);
      return;
    }
    this.#drop(table);
    this.#reasons.set(name, `filling it (line ${fill.line}) failed: ${reason}`);
  }

  #fallTogether(): void {
    for (let isDone = false; !isDone; ) {
      isDone = true;
      for (const table of this.#filledTables()) {
        const writers = this.#writersOf(table);
        const missing = writers.find(({ name }) => !this.#isThere(name));
        if (missing === undefined || !this.#isThere(table.name)) continue;
        isDone = false;
        this.#drop(table);
        this.#reasons.set(foldName(table.name), withoutTrigger(missing));
        for (const writer of writers) {
          if (!this.#isThere(writer.name)) continue;
          this.#drop(writer);
          this.#reasons.set(
            foldName(writer.name),
            `the table ${table.name}, which it writes into, is not there`,
          );
        }
      }
    }
    for (const object of this.#objects) {
      const name = foldName(object.name);
      // Of a table that has just gone.
      if (object.type === 'view' && this.#isThere(name)) {
        const reason = this.#attempt(object, () => checkReadable(this.#db, object));
        if (reason === null) continue;
        this.#drop(object);
        this.#reasons.set(name, reason);
      } else if (!this.#isThere(name) && !this.#reasons.has(name)) {
        this.#reasons.set(name, `the table ${object.on} is not there`);
      }
    }
  }

  #record(): void {
    const records = this.#objects.map((object): LocalRecord => {
      const name = foldName(object.name);
      const isThere = this.#there.has(name);
      if (!isThere) this.#made.delete(name);
      return {
        name: object.name,
        type: object.type,
        sql: isThere ? this.#standing(object).sql : (this.#recordOf(object)?.sql ?? object.sql),
        hash: this.#options.script.hashes.get(name)!,
        reason: isThere ? null : this.#reasons.get(name)!,
      };
    });
    writeRecords(this.#db, records);
  }

  // ---- pieces

  /** Null if it went well; otherwise why not, and nothing has changed. */
  #attempt(object: LocalObject, work: () => void): string | null {
    const db = this.#db;
    db.exec('SAVEPOINT rivulet_local');
    try {
      work();
      db.exec('RELEASE rivulet_local');
      return null;
    } catch (error) {
      // With no space left SQLite may have rolled everything back.
      if (!db.inTransaction || isFailure(error)) throw new SettlementError(object, error as Error);
      db.exec('ROLLBACK TO rivulet_local; RELEASE rivulet_local');
      return (error as Error).message;
    }
  }

  #drop(object: LocalObject): void {
    dropObject(this.#db, object);
    this.#there.delete(foldName(object.name));
    // What stood on it went with it.
    for (const other of this.#objects) {
      if (other.on === null || foldName(other.on) !== foldName(object.name)) continue;
      this.#there.delete(foldName(other.name));
      this.#aside.delete(foldName(other.name));
    }
  }

  #checkTrigger(trigger: LocalObject): void {
    const own = this.#objects.filter(
      ({ type, module, name }) => type === 'table' && module === null && this.#isThere(name),
    );
    const triggers = this.#objects.filter(({ type }) => type === 'trigger');
    checkTrigger(this.#db, trigger, { triggers: namesOf(triggers), tables: namesOf(own) });
  }

  /** An object as it stands in the file, where a rename may have changed its text. */
  #standing(object: LocalObject): LocalObject {
    const sql = this.#db
      .prepare<[string, string], string>(
        'SELECT sql FROM sqlite_schema WHERE type = ? AND lower(name) = lower(?)',
      )
      .pluck()
      .get(object.type, object.name)!;
    return parseStatement(splitScript(sql)[0]!, (_line, message) => {
      throw new Error(message);
    }) as LocalObject;
  }

  #recordOf(object: LocalObject): LocalRecord | undefined {
    const name = foldName(object.name);
    const record = this.#records.get(name);
    return record?.hash === this.#options.script.hashes.get(name) ? record : undefined;
  }

  #isThere(name: string): boolean {
    return this.#there.has(foldName(name));
  }

  #filledTables(): readonly LocalObject[] {
    const filled = new Set(
      this.#options.script.statements.flatMap((each) => (each.kind === 'fill' ? [foldName(each.table)] : [])),
    );
    return this.#objects.filter(({ type, name }) => type === 'table' && filled.has(foldName(name)));
  }

  #writersOf(table: LocalObject): readonly LocalObject[] {
    const name = foldName(table.name);
    return this.#objects.filter((each) => each.trigger?.writes.some((written) => foldName(written) === name));
  }

  #typeInFile(name: string): LocalType | undefined {
    return this.#db
      .prepare<[string], LocalType>('SELECT type FROM sqlite_schema WHERE lower(name) = ?')
      .pluck()
      .get(name);
  }

  #isMirrored(name: string): boolean {
    const mirrored = this.#db.prepare('SELECT 1 FROM _rivulet_table WHERE lower(sqlite_name) = ?');
    return mirrored.get(foldName(name)) !== undefined;
  }
}

const DROP_ORDER: readonly LocalType[] = ['trigger', 'view', 'index', 'table'];

function withoutTrigger(trigger: LocalObject): string {
  return `its trigger ${trigger.name} is not there, and without it the content would be wrong`;
}

function namesOf(objects: readonly LocalObject[]): ReadonlySet<string> {
  return new Set(objects.map(({ name }) => foldName(name)));
}
