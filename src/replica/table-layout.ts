import type { ValueMapping } from '../change/relation.ts';
import { keyColumns, locatorColumns, type Relation } from '../change/relation.ts';
import { quoteName, RESERVED_PREFIX } from './naming.ts';

/** SQLite has no table without columns; a Postgres table without any gets this one, always NULL. */
export const PLACEHOLDER_COLUMN = `${RESERVED_PREFIX}placeholder`;

/** How one relation stands in the file. */
export interface TableLayout {
  readonly relation: Relation;
  readonly sqliteName: string;
  /** SQLite names, in the order of relation.columns (which is not the order in the file once columns were added). */
  readonly columnNames: readonly string[];
  /**
   * Whether the Postgres primary key is SQLite's too. False without a key, with a deferrable one, and where the
   * rows did not satisfy a new key when it came (they are about to be read again; see SchemaChanger).
   */
  readonly keyIsEnforced: boolean;
  /** How often the table was made anew beside its predecessor, whose indexes then still had their names. */
  readonly generation: number;
}

/** Indexes are named by OID, so a rename in Postgres costs nothing. */
export function indexName(layout: Pick<TableLayout, 'generation'>, what: string, oid: number): string {
  return `${RESERVED_PREFIX}${what}_${oid}${layout.generation === 0 ? '' : `_${layout.generation}`}`;
}

/** Affinity by the type table. Nothing may be converted behind our back: https://www.sqlite.org/datatype3.html */
export function declaredType(mapping: ValueMapping): string {
  switch (mapping) {
    case 'bool':
    case 'int':
      return 'INTEGER';
    case 'float':
      // REAL affinity stores whole numbers as integers and so loses the sign of -0. Without affinity a double
      // stays the eight bytes that it is.
      return '';
    case 'numeric':
      return '';
    case 'bytea':
      return 'BLOB';
    default:
      return 'TEXT';
  }
}

/** Whether SQLite can enforce the primary key: a deferrable one may be violated until the commit. */
export function canEnforceKey(relation: Relation): boolean {
  return !relation.keyIsDeferrable && relation.columns.some((column) => column.keyOrdinal !== null);
}

/** Whether rows are found by exactly what SQLite keeps unique: only then may changes be folded by key. */
export function locatesByKey(layout: TableLayout): boolean {
  if (!layout.keyIsEnforced) return false;
  const locators = locatorColumns(layout.relation);
  const key = keyColumns(layout.relation);
  return locators.length === key.length && key.every((index) => locators.includes(index));
}

/** The column that is SQLite's rowid: a key of one integer. -1 if there is none. */
export function rowidColumn({ relation, keyIsEnforced }: TableLayout): number {
  const key = keyIsEnforced ? keyColumns(relation) : [];
  return key.length === 1 && relation.columns[key[0]!]!.mapping === 'int' ? key[0]! : -1;
}

/** Whether the table has no rowids: its rows stand in the order of another key. */
export function isClustered(layout: TableLayout): boolean {
  return layout.keyIsEnforced && keyColumns(layout.relation).length > 0 && rowidColumn(layout) < 0;
}

export function createTableSql(layout: TableLayout, name: string = layout.sqliteName): string {
  const { relation, columnNames } = layout;
  const key = layout.keyIsEnforced ? keyColumns(relation) : [];
  const rowidKey = rowidColumn(layout);
  const columns = relation.columns.map((column, index) => {
    const type = declaredType(column.mapping);
    const words = [quoteName(columnNames[index]!)];
    if (type !== '') words.push(type);
    if (index === rowidKey) words.push('PRIMARY KEY');
    return words.join(' ');
  });
  if (columns.length === 0) columns.push(quoteName(PLACEHOLDER_COLUMN));
  const hasNoRowid = isClustered(layout);
  if (hasNoRowid)
    columns.push(`PRIMARY KEY (${key.map((index) => quoteName(columnNames[index]!)).join(', ')})`);
  return `CREATE TABLE ${quoteName(name)} (${columns.join(', ')})${hasNoRowid ? ' WITHOUT ROWID' : ''}`;
}

/** A secondary index of the file: never unique, because SQLite would check row by row what Postgres checked. */
export interface PlainIndex {
  readonly name: string;
  readonly sql: string;
  readonly columns: readonly number[];
}

/**
 * All indexes that belong on a table: the published ones, and one over the key or the identity columns where
 * rows are found by them and no primary key serves.
 */
export function plainIndexes(layout: TableLayout): readonly PlainIndex[] {
  const { relation, columnNames } = layout;
  const indexes: PlainIndex[] = [];
  const add = (
    name: string,
    columns: readonly { readonly index: number; readonly descending: boolean }[],
  ): void => {
    const terms = columns.map(
      ({ index, descending }) => `${quoteName(columnNames[index]!)}${descending ? ' DESC' : ''}`,
    );
    indexes.push({
      name,
      sql: `CREATE INDEX ${quoteName(name)} ON ${quoteName(layout.sqliteName)} (${terms.join(', ')})`,
      columns: columns.map(({ index }) => index),
    });
  };
  for (const definition of relation.indexes) {
    const columns = definition.columns.map(({ attnum, descending }) => ({
      index: relation.columns.findIndex((column) => column.attnum === attnum),
      descending,
    }));
    if (columns.length > 0 && columns.every(({ index }) => index >= 0)) {
      add(indexName(layout, 'index', definition.oid), columns);
    }
  }
  const ascending = (columns: readonly number[]) => columns.map((index) => ({ index, descending: false }));
  const isServed = (columns: readonly number[]): boolean =>
    columns.length === 0 ||
    indexes.some((index) =>
      columns.every((column) => index.columns.slice(0, columns.length).includes(column)),
    );
  const key = keyColumns(relation);
  if (!layout.keyIsEnforced && !isServed(key)) add(indexName(layout, 'key', relation.oid), ascending(key));
  const locators = locatorColumns(relation);
  if (!locatesByKey(layout) && !isServed(locators)) {
    add(indexName(layout, 'identity', relation.oid), ascending(locators));
  }
  return indexes;
}

/** Columns of the lookup index: three keep the entries small and still tell most rows apart. */
const MAX_LOOKUP_COLUMNS = 3;

/**
 * An index that finds whole rows of a table without a key, or null if another index serves. Made when the first
 * UPDATE or DELETE comes: most tables without a key are only ever appended to and need not pay for it.
 */
export function lookupIndex(layout: TableLayout): PlainIndex | null {
  const { relation } = layout;
  if (relation.columns.length === 0 || plainIndexes(layout).length > 0) return null;
  const isShort = (index: number): boolean => {
    const { mapping } = relation.columns[index]!;
    return typeof mapping === 'string' && !['text', 'json', 'bytea', 'bool'].includes(mapping);
  };
  const short = relation.columns.map((_, index) => index).filter(isShort);
  const columns = short.length > 0 ? short.slice(0, MAX_LOOKUP_COLUMNS) : [0];
  const name = indexName(layout, 'lookup', relation.oid);
  const terms = columns.map((index) => quoteName(layout.columnNames[index]!)).join(', ');
  return {
    name,
    columns,
    sql: `CREATE INDEX IF NOT EXISTS ${quoteName(name)} ON ${quoteName(layout.sqliteName)} (${terms})`,
  };
}
