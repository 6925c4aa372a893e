import type { Database } from 'better-sqlite3';
import { RivuletError } from '../errors.ts';
import {
  dropForeignObject,
  type ForeignObject,
  foreignObjects,
  type ObjectNotice,
} from './foreign-objects.ts';
import type { LocalObjects } from './local-objects.ts';
import { foldName } from './naming.ts';
import { isFailure } from './sqlite-failure.ts';

/** Triggers and indexes that are of use together only. */
type Suspect = readonly ForeignObject[];

/** Triggers and indexes that are not Rivulet's, and may be why a write failed. */
export class Obstacles {
  readonly #db: Database;
  readonly #local: LocalObjects | null;
  readonly #onNotice: ObjectNotice;

  constructor(db: Database, local: LocalObjects | null, onNotice: ObjectNotice) {
    this.#db = db;
    this.#local = local;
    this.#onNotice = onNotice;
  }

  /**
   * Finds those that raised `error`, which has been rolled back, by doing without: each alone, then more and more
   * of them. `attempt` begins a transaction, calls its argument there, and does again what failed. Throws the
   * error if no attempt helped; then all of them are still there.
   */
  find(error: unknown, attempt: (remove: () => void) => void): void {
    const reason = (error as Error).message;
    for (const suspects of combinations(this.#suspects(error))) {
      try {
        attempt(() => this.#remove(suspects, reason));
      } catch (second) {
        if (second instanceof RivuletError && second.code === 'DISK_FULL') throw second;
        continue;
      }
      this.#report(suspects, reason);
      return;
    }
    throw error;
  }

  /** Drops those that can have raised the error: on that table, if there are any there. Throws it if there are none. */
  removeAll(error: unknown, table: string): void {
    const reason = (error as Error).message;
    const suspects = this.#suspects(error, table);
    if (suspects.length === 0) throw error;
    const remove = this.#db.transaction(() => {
      this.#remove(suspects, reason);
      this.#local?.settle({ retry: false });
    });
    remove.immediate();
    this.#local?.committed();
    this.#report(suspects, reason);
  }

  #suspects(error: unknown, table?: string): readonly Suspect[] {
    const code = String((error as { code?: unknown }).code);
    const isSqlite = !(error instanceof RivuletError) && code.startsWith('SQLITE_') && !isFailure(error);
    // A trigger may swallow a write, or write into a table of its own what is there already; an index cannot.
    if (!isSqlite && code !== 'ROW_MISSING') return [];
    const all = foreignObjects(this.#db).filter(
      ({ type }) => type === 'trigger' || (type === 'index' && isSqlite),
    );
    const onTable = all.filter((object) => table !== undefined && foldName(object.table) === foldName(table));
    const groups = Map.groupBy(
      onTable.length > 0 ? onTable : all,
      ({ name }) => this.#local?.groupOf(name) ?? foldName(name),
    );
    return [...groups.values()];
  }

  #remove(suspects: readonly Suspect[], reason: string): void {
    for (const object of suspects.flat()) {
      if (this.#local?.has(object.name)) this.#local.ban(object.name, reason);
      else dropForeignObject(this.#db, object);
    }
  }

  #report(suspects: readonly Suspect[], reason: string): void {
    for (const object of suspects.flat()) {
      if (!this.#local?.has(object.name)) this.#onNotice({ ...object, reason });
    }
  }
}

function* combinations(suspects: readonly Suspect[]): Generator<readonly Suspect[]> {
  for (const suspect of suspects) yield [suspect];
  for (let count = 2; count <= suspects.length; count++) yield suspects.slice(0, count);
}
