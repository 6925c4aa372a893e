import type { Database } from 'better-sqlite3';
import { keyColumns, type Relation, type SchemaChange } from '../change/relation.ts';
import { RivuletError } from '../errors.ts';
import {
  dropForeignObject,
  type ForeignObject,
  foreignObjects,
  type ObjectNotice,
  withoutObstacles,
} from './foreign-objects.ts';
import { forgetLeftOut } from './left-out.ts';
import type { LocalObjects } from './local-objects.ts';
import {
  assignColumnNames,
  assignTableNames,
  foldName,
  type NameAssignment,
  quoteName,
  RESERVED_PREFIX,
  tableSource,
} from './naming.ts';
import { freeGeneration, replacedTableName } from './replaced-tables.ts';
import { forgetLayout, recordLayout } from './schema.ts';
import {
  canEnforceKey,
  createTableSql,
  declaredType,
  indexName,
  lookupIndex,
  PLACEHOLDER_COLUMN,
  type PlainIndex,
  plainIndexes,
  type TableLayout,
} from './table-layout.ts';
import { reloadLayout, reloadTableName } from './table-reload.ts';
import { type SqliteValue, valueOfBase64 } from './tuple.ts';

/**
 * Brings tables from one published schema to the next, by OID and attnum, inside the SQLite transaction that
 * is open: readers see the change together with the rows of the Postgres transaction that made it.
 *
 * What readers made in the file themselves (views, triggers, indexes) never stops it: what stands in the way
 * is dropped and reported. Local objects come back at the end of the transaction (LocalObjects).
 */
export class SchemaChanger {
  readonly #db: Database;
  readonly #onNotice: ObjectNotice;
  readonly #local: LocalObjects | null;

  constructor(db: Database, onNotice: ObjectNotice, local: LocalObjects | null) {
    this.#db = db;
    this.#onNotice = onNotice;
    this.#local = local;
  }

  /** Applies the change and updates `layouts`; returns the SQLite names of all tables that it touched. */
  apply(change: SchemaChange, layouts: Map<number, TableLayout>): readonly string[] {
    const touched: string[] = [];
    for (const oid of change.dropped) {
      const layout = layouts.get(oid);
      this.#forgetReload(oid);
      if (layout === undefined) continue;
      this.#setAside(layout, foreignObjects(this.#db, layout.sqliteName));
      forgetLayout(this.#db, oid);
      forgetLeftOut(this.#db, oid);
      layouts.delete(oid);
      touched.push(layout.sqliteName);
    }
    const names = this.#assignNames(change.changed, layouts);
    this.#renameTables(change.changed, layouts, names);
    for (const relation of change.changed) {
      const before = layouts.get(relation.oid);
      const after =
        before === undefined
          ? this.#createTable(relation, names.get(relation.oid)!)
          : this.#alterTable(before, relation, literals(change.defaults, relation.oid));
      recordLayout(this.#db, after);
      layouts.set(relation.oid, after);
      touched.push(after.sqliteName);
    }
    return touched;
  }

  /**
   * The table that rows are read into again, beside the present one, which only takes over its new name: by that
   * alone it could get in another's way.
   */
  beginReload(relation: Relation, layouts: Map<number, TableLayout>): TableLayout {
    const before = layouts.get(relation.oid);
    if (before !== undefined && tableSource(before.relation) !== tableSource(relation)) {
      const { schema, name } = relation;
      this.apply({ changed: [{ ...before.relation, schema, name }], dropped: [] }, layouts);
    }
    this.#forgetReload(relation.oid);
    const generation = before === undefined ? freeGeneration(this.#db, relation.oid) : before.generation + 1;
    const layout = reloadLayout(relation, generation, layouts);
    this.#exec(createTableSql(layout), layout.sqliteName);
    for (const index of plainIndexes(layout)) this.#exec(index.sql, layout.sqliteName);
    this.#db
      .prepare('INSERT INTO _rivulet_reload (relation_oid, definition, generation) VALUES (?, ?, ?)')
      .run(relation.oid, JSON.stringify(relation), BigInt(generation));
    return layout;
  }

  /** All rows are in: it takes the place of the present table. Returns the SQLite name. */
  endReload(layout: TableLayout, layouts: Map<number, TableLayout>): string {
    const { oid } = layout.relation;
    const sqliteName = this.#assignNames([layout.relation], layouts).get(oid)!;
    const before = layouts.get(oid);
    const own = before === undefined ? [] : foreignObjects(this.#db, before.sqliteName);
    const after = { ...layout, sqliteName };
    if (before !== undefined) this.#setAside(before, own);
    this.#rename(layout.sqliteName, sqliteName);
    this.#restore(own);
    recordLayout(this.#db, after);
    layouts.set(oid, after);
    this.#forgetReload(oid);
    return sqliteName;
  }

  #forgetReload(oid: number): void {
    this.#db.exec(`DROP TABLE IF EXISTS ${quoteName(reloadTableName(oid))}`);
    this.#db.prepare('DELETE FROM _rivulet_reload WHERE relation_oid = ?').run(oid);
    this.#db.prepare('DELETE FROM _rivulet_reload_change WHERE relation_oid = ?').run(oid);
  }

  /** Makes a table anew with the key that its rows could not satisfy before; it is empty now. */
  enforceKey(layout: TableLayout, layouts: Map<number, TableLayout>): TableLayout {
    const after = this.#rebuild(layout, { ...layout, keyIsEnforced: true });
    recordLayout(this.#db, after);
    layouts.set(after.relation.oid, after);
    return after;
  }

  #assignNames(changed: readonly Relation[], layouts: ReadonlyMap<number, TableLayout>): Map<number, string> {
    const relations = new Map([...layouts].map(([oid, layout]) => [oid, layout.relation]));
    for (const relation of changed) relations.set(relation.oid, relation);
    const existing = new Map<number, NameAssignment>();
    for (const [oid, { relation, sqliteName }] of layouts)
      existing.set(oid, { source: tableSource(relation), sqliteName });
    const ours = new Set([...layouts.values()].map((layout) => foldName(layout.sqliteName)));
    const others = this.#db
      .prepare<[], string>("SELECT name FROM sqlite_schema WHERE type IN ('table', 'view', 'index')")
      .pluck()
      .all()
      .filter((name) => !ours.has(foldName(name)) && !this.#local?.has(name));
    const names = assignTableNames([...relations.values()], existing, others);
    for (const name of names.values()) if (this.#local?.has(name)) this.#local.makeWay(name);
    return names;
  }

  #renameTables(
    changed: readonly Relation[],
    layouts: Map<number, TableLayout>,
    names: ReadonlyMap<number, string>,
  ): void {
    const renames = changed.flatMap((relation) => {
      const layout = layouts.get(relation.oid);
      const name = names.get(relation.oid)!;
      return layout === undefined || layout.sqliteName === name ? [] : [{ layout, name }];
    });
    // Two tables may swap their names, so each goes through a name of its own first.
    const transit = (oid: number): string => `${RESERVED_PREFIX}renamed_${oid}`;
    for (const { layout } of renames) this.#renameTable(layout.sqliteName, transit(layout.relation.oid));
    for (const { layout, name } of renames) {
      this.#renameTable(transit(layout.relation.oid), name);
      layouts.set(layout.relation.oid, { ...layout, sqliteName: name });
    }
  }

  #renameTable(from: string, to: string): void {
    this.#exec(`ALTER TABLE ${quoteName(from)} RENAME TO ${quoteName(to)}`, from);
  }

  #createTable(relation: Relation, sqliteName: string): TableLayout {
    const columns = assignColumnNames(relation.columns);
    const layout: TableLayout = {
      relation,
      sqliteName,
      columnNames: relation.columns.map((column) => columns.get(column.attnum)!),
      keyIsEnforced: canEnforceKey(relation),
      generation: freeGeneration(this.#db, relation.oid),
    };
    this.#exec(createTableSql(layout), sqliteName);
    for (const index of plainIndexes(layout)) this.#exec(index.sql, sqliteName);
    return layout;
  }

  /** `defaults`: for new columns, what the rows have that are there already; SQL literals by attnum. */
  #alterTable(before: TableLayout, relation: Relation, defaults: ReadonlyMap<number, string>): TableLayout {
    const existing = new Map(
      before.relation.columns.map((column, index): [number, NameAssignment] => [
        column.attnum,
        { source: column.name, sqliteName: before.columnNames[index]! },
      ]),
    );
    const names = assignColumnNames(relation.columns, existing);
    const after: TableLayout = {
      relation,
      sqliteName: before.sqliteName,
      columnNames: relation.columns.map((column) => names.get(column.attnum)!),
      keyIsEnforced: canEnforceKey(relation),
      generation: before.generation,
    };
    if (needsRebuild(before, after)) return this.#rebuild(before, after, defaults);
    const kept = { ...after, keyIsEnforced: before.keyIsEnforced };
    const wanted = new Map(plainIndexes(kept).map((index) => [index.name, index]));
    for (const index of plainIndexes(before)) {
      // Compared by column identity: a rename of the table or of a column has already changed the text.
      if (wanted.has(index.name) && signature(before, index) === signature(kept, wanted.get(index.name))) {
        wanted.delete(index.name);
      } else {
        this.#exec(`DROP INDEX IF EXISTS ${quoteName(index.name)}`, before.sqliteName);
      }
    }
    const lookup = lookupIndex(before);
    if (lookup !== null && attnumsOf(before, lookup) !== attnumsOf(kept, lookupIndex(kept) ?? undefined)) {
      this.#exec(`DROP INDEX IF EXISTS ${quoteName(lookup.name)}`, before.sqliteName);
    }
    try {
      inSavepoint(this.#db, () => this.#alterColumns(before, kept, defaults));
    } catch (error) {
      // Whatever SQLite's ALTER TABLE refuses, a new table takes.
      if (!isSqliteError(error)) throw error;
      return this.#rebuild(before, kept, defaults);
    }
    for (const index of wanted.values()) this.#exec(index.sql, after.sqliteName);
    return kept;
  }

  #alterColumns(before: TableLayout, after: TableLayout, defaults: ReadonlyMap<number, string>): void {
    const table = quoteName(after.sqliteName);
    const attnums = new Set(after.relation.columns.map((column) => column.attnum));
    const old = new Map(
      before.relation.columns.map((column, index) => [column.attnum, before.columnNames[index]!]),
    );
    for (const [attnum, name] of old) {
      if (!attnums.has(attnum))
        this.#exec(`ALTER TABLE ${table} DROP COLUMN ${quoteName(name)}`, after.sqliteName);
    }
    const renames = after.relation.columns.flatMap(({ attnum }, index) => {
      const name = old.get(attnum);
      const to = after.columnNames[index]!;
      return name === undefined || name === to ? [] : [{ attnum, name, to }];
    });
    const rename = (from: string, to: string): void =>
      this.#exec(
        `ALTER TABLE ${table} RENAME COLUMN ${quoteName(from)} TO ${quoteName(to)}`,
        after.sqliteName,
      );
    for (const { attnum, name } of renames) rename(name, transitColumn(attnum));
    for (const { attnum, to } of renames) rename(transitColumn(attnum), to);
    after.relation.columns.forEach((column, index) => {
      if (old.has(column.attnum)) return;
      const literal = defaults.get(column.attnum);
      const definition = `${quoteName(after.columnNames[index]!)} ${declaredType(column.mapping)}`;
      // As in Postgres, rows that are there are not touched. https://www.sqlite.org/lang_altertable.html#altertabaddcol
      const value = literal === undefined ? '' : ` DEFAULT ${literal}`;
      this.#exec(`ALTER TABLE ${table} ADD COLUMN ${definition}${value}`, after.sqliteName);
    });
  }

  /** Makes the table anew and takes the rows over. */
  #rebuild(
    before: TableLayout,
    after: TableLayout,
    defaults: ReadonlyMap<number, string> = new Map(),
  ): TableLayout {
    const db = this.#db;
    const own = foreignObjects(db, before.sqliteName);
    this.#local?.rememberTexts();
    const transit = `${RESERVED_PREFIX}rebuilt_${after.relation.oid}`;
    const old = new Map(
      before.relation.columns.map((column, index) => [column.attnum, before.columnNames[index]!]),
    );
    const shared = after.relation.columns.flatMap(({ attnum }, index) => {
      const name = old.get(attnum);
      const from = name === undefined ? defaults.get(attnum) : quoteName(name);
      return from === undefined ? [] : [{ from, to: quoteName(after.columnNames[index]!) }];
    });
    // With no column in common the rows still count: they are kept, empty.
    const into = shared.length > 0 ? shared.map(({ to }) => to).join(', ') : firstColumn(after);
    const from = shared.length > 0 ? shared.map((column) => column.from).join(', ') : 'NULL';
    let result =
      after.keyIsEnforced && this.#lacksKeys(before, after) ? { ...after, keyIsEnforced: false } : after;
    const copy = (): void => {
      db.exec(createTableSql(result, transit));
      db.exec(
        `INSERT INTO ${quoteName(transit)} (${into}) SELECT ${from} FROM ${quoteName(before.sqliteName)}`,
      );
    };
    try {
      inSavepoint(db, copy);
    } catch (error) {
      if (!isConstraintError(error) || !result.keyIsEnforced) throw error;
      result = { ...after, keyIsEnforced: false };
      inSavepoint(db, copy);
    }
    this.#exec(`DROP TABLE ${quoteName(before.sqliteName)}`, before.sqliteName);
    this.#rename(transit, after.sqliteName);
    for (const index of plainIndexes(result)) this.#exec(index.sql, after.sqliteName);
    this.#restore(own);
    return result;
  }

  /**
   * Under the old behaviour of ALTER TABLE, which leaves alone views that name the table; with the new one RENAME
   * fails where for a moment they name a table that is not there.
   * https://www.sqlite.org/lang_altertable.html#otheralter
   */
  #rename(from: string, to: string): void {
    this.#db.pragma('legacy_alter_table = ON');
    try {
      this.#exec(`ALTER TABLE ${quoteName(from)} RENAME TO ${quoteName(to)}`, to);
    } finally {
      this.#db.pragma('legacy_alter_table = OFF');
    }
  }

  /** Takes a table away from its readers; it is deleted bit by bit (see sweepReplaced). */
  #setAside({ relation, sqliteName, generation }: TableLayout, own: readonly ForeignObject[]): void {
    this.#local?.rememberTexts();
    for (const object of own) dropForeignObject(this.#db, object);
    this.#rename(sqliteName, replacedTableName(relation.oid, generation));
  }

  /** What readers had made themselves on a table that was replaced, on the new one. Local objects come by themselves. */
  #restore(own: readonly ForeignObject[]): void {
    for (const object of own) {
      if (this.#local?.has(object.name)) continue;
      try {
        inSavepoint(this.#db, () => this.#db.exec(object.sql));
      } catch (error) {
        this.#onNotice({ ...object, reason: (error as Error).message });
      }
    }
  }

  /**
   * Whether rows have no value for the new key: its column came with values that only Postgres knows (ADD COLUMN …
   * serial PRIMARY KEY), and the rows are about to be read again. Until then they are kept as they are, and found
   * by a plain index. SQLite itself would not mind: given no value, an INTEGER PRIMARY KEY makes one up.
   */
  #lacksKeys(before: TableLayout, after: TableLayout): boolean {
    const names = keyColumns(after.relation).map((index) => {
      const { attnum } = after.relation.columns[index]!;
      return before.columnNames[before.relation.columns.findIndex((column) => column.attnum === attnum)];
    });
    const isNull = names
      .map((name) => (name === undefined ? 'TRUE' : `${quoteName(name)} IS NULL`))
      .join(' OR ');
    return (
      this.#db.prepare(`SELECT 1 FROM ${quoteName(before.sqliteName)} WHERE ${isNull} LIMIT 1`).get() !==
      undefined
    );
  }

  #exec(sql: string, table: string): void {
    withoutObstacles(this.#db, table, this.#onNotice, () => this.#db.exec(sql));
  }
}

/** What goes behind DEFAULT, by attnum. */
function literals(defaults: SchemaChange['defaults'] = [], oid: number): Map<number, string> {
  return new Map(
    defaults
      .filter((each) => each.oid === oid)
      .map(({ attnum, value }) => [attnum, literal(valueOfBase64(value))]),
  );
}

/** https://www.sqlite.org/lang_expr.html#literal_values_constants_ */
function literal(value: SqliteValue): string {
  if (value === null) return 'NULL';
  if (typeof value === 'string') return `'${value.replaceAll("'", "''")}'`;
  if (typeof value === 'bigint') return String(value);
  if (typeof value !== 'number') return `x'${value.toString('hex')}'`;
  if (Object.is(value, -0)) return '-0.0';
  if (!Number.isFinite(value)) return value > 0 ? '9e999' : '-9e999';
  const text = String(value);
  return /[.e]/.test(text) ? text : `${text}.0`;
}

function transitColumn(attnum: number): string {
  return `${RESERVED_PREFIX}renamed_${attnum}`;
}

function firstColumn(layout: TableLayout): string {
  return quoteName(layout.columnNames[0] ?? PLACEHOLDER_COLUMN);
}

/** Whether ALTER TABLE cannot get from one to the other: another key, another affinity, no column in common. */
function needsRebuild(before: TableLayout, after: TableLayout): boolean {
  const attnums = (layout: TableLayout): string =>
    JSON.stringify([
      canEnforceKey(layout.relation),
      canEnforceKey(layout.relation)
        ? keyColumns(layout.relation).map((index) => layout.relation.columns[index]!.attnum)
        : [],
    ]);
  if (attnums(before) !== attnums(after)) return true;
  const old = new Map(before.relation.columns.map((column) => [column.attnum, column]));
  let isShared = false;
  for (const column of after.relation.columns) {
    const was = old.get(column.attnum);
    if (was === undefined) continue;
    isShared = true;
    if (declaredType(was.mapping) !== declaredType(column.mapping)) return true;
    if (column.keyOrdinal !== null && (was.mapping === 'int') !== (column.mapping === 'int')) return true;
  }
  return !isShared;
}

/** An index as Postgres knows it: comparable across renames of the table and its columns. */
function signature(layout: TableLayout, index: PlainIndex | undefined): string {
  const definition = layout.relation.indexes.find(
    ({ oid }) => index?.name === indexName(layout, 'index', oid),
  );
  return definition === undefined ? attnumsOf(layout, index) : JSON.stringify(definition.columns);
}

function attnumsOf(layout: TableLayout, index: PlainIndex | undefined): string {
  return JSON.stringify(index?.columns.map((place) => layout.relation.columns[place]!.attnum) ?? []);
}

function inSavepoint(db: Database, work: () => void): void {
  db.exec('SAVEPOINT rivulet_schema');
  try {
    work();
  } catch (error) {
    db.exec('ROLLBACK TO rivulet_schema; RELEASE rivulet_schema');
    throw error;
  }
  db.exec('RELEASE rivulet_schema');
}

function isSqliteError(error: unknown): boolean {
  return !(error instanceof RivuletError) && (error as { code?: unknown }).code === 'SQLITE_ERROR';
}

function isConstraintError(error: unknown): boolean {
  const code = String((error as { code?: unknown }).code);
  return code.startsWith('SQLITE_CONSTRAINT') || code === 'SQLITE_MISMATCH';
}
