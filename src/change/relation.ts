/**
 * How the values of a column travel from Postgres's text to SQLite: one word per row of README's type table.
 * An array names the mapping of its elements and the character that Postgres puts between them.
 */
export type ScalarMapping =
  | 'bool'
  | 'int'
  | 'float'
  | 'numeric'
  | 'text'
  | 'json'
  | 'bytea'
  | 'date'
  | 'timestamp'
  | 'timestamptz';

export type ValueMapping =
  | ScalarMapping
  | {
      readonly array: ScalarMapping;
      readonly delimiter: string;
      /** Rows are found by it: what Postgres tells apart must not become the same. */
      readonly isKey?: true;
    };

export interface Column {
  /** pg_attribute.attnum: the identity of a column; a rename keeps it. */
  readonly attnum: number;
  readonly name: string;
  /** As `format_type` prints it, with the type modifier: `numeric(10,2)`. */
  readonly typeName: string;
  /** pg_attribute.atttypid and atttypmod: by these a description in the stream is known to mean this column. */
  readonly typeOid: number;
  readonly typeModifier: number;
  /** Of a domain: what it is made of in the end. By that its values print. */
  readonly baseTypeOid?: number;
  readonly mapping: ValueMapping;
  /**
   * What the user's own types in it are made of, one line for each enum label and each attribute of a composite
   * type: by these, values that nobody touched may come to print differently. Absent for built-in types.
   */
  readonly typeParts?: readonly string[];
  readonly notNull: boolean;
  /** 1-based place in the primary key, or null. */
  readonly keyOrdinal: number | null;
  /** Part of the replica identity that Postgres sends as old key (identity default and index). */
  readonly identity: boolean;
}

/** A secondary index, as far as SQLite can express it; made non-unique there. */
export interface IndexDefinition {
  readonly oid: number;
  readonly name: string;
  readonly unique: boolean;
  readonly columns: readonly { readonly attnum: number; readonly descending: boolean }[];
}

export type ReplicaIdentity = 'default' | 'nothing' | 'full' | 'index';

/** A published table as of one moment of the stream. */
export interface Relation {
  /** pg_class.oid: the identity of a table; a rename keeps it, DROP and CREATE does not. */
  readonly oid: number;
  readonly schema: string;
  readonly name: string;
  readonly replicaIdentity: ReplicaIdentity;
  /** A deferrable primary key is unique only at commit: SQLite must not enforce it row by row. */
  readonly keyIsDeferrable: boolean;
  /**
   * The heaps that hold the rows in Postgres, `oid:relfilenode` with spaces between: a rewrite gives it another file.
   * In front `0:digest` where a row filter or column list publishes a part of them.
   */
  readonly storage: string;
  /** By heap, which of its rows a partition has. Only where the values that SQLite stores tell. */
  readonly bounds?: Readonly<Record<number, readonly RowBound[]>>;
  /** Published columns only, ascending by attnum: the order of values in every tuple. */
  readonly columns: readonly Column[];
  /** Numbers of columns that are not published, with values that nobody sends once they are. Absent if there are none. */
  readonly hidden?: readonly number[];
  readonly indexes: readonly IndexDefinition[];
}

/**
 * A schema change at its place in the stream: the new definition of every relation that came or changed and
 * the OIDs of those that went. The replica compares with what it has, by OID and attnum.
 */
export interface SchemaChange {
  readonly changed: readonly Relation[];
  readonly dropped: readonly number[];
  /**
   * Relations of which the change touched rows that Postgres does not send. They keep what they have until all
   * their rows have been read again (CHANGE.reloadBegin to reloadEnd) in this new shape.
   */
  readonly reloading?: readonly Relation[];
  /** Of columns that came with a constant default: what the rows have that were there before. */
  readonly defaults?: readonly ColumnDefault[];
}

/**
 * Rows that have these values in a column: from one (included) to another (excluded; null: there is no end), or one of a
 * list (null: NULL). Values as tuples have them, with their tags, in base64.
 */
export type RowBound =
  | { readonly attnum: number; readonly from: string | null; readonly to: string | null }
  | { readonly attnum: number; readonly in: readonly (string | null)[] };

/**
 * Rows that a schema change made another table's, or nobody's, without touching them: a partition came, went or was dropped.
 * They are in the file already.
 */
export interface RowMove {
  readonly from: number;
  /** Null: they are gone. */
  readonly to: number | null;
  /** Rows that are within all of these; null: all, of a table that is dropped behind it. */
  readonly within: readonly RowBound[] | null;
  /** attnum there and here of each column that `to` has. */
  readonly columns: readonly (readonly [number, number])[];
}

export interface ColumnDefault {
  readonly oid: number;
  readonly attnum: number;
  /** A value as tuples have it, with its tag, in base64. */
  readonly value: string;
}

/** A value that is NULL in the file because its row would be longer than a file can hold. */
export interface LeftOutValue {
  /** Its key: `id = 7`. */
  readonly row: string;
  readonly column: string;
  /** As Postgres prints it. */
  readonly bytes: number;
}

/** Places of the primary key's columns in relation.columns, in the order of the key. */
export function keyColumns(relation: Relation): readonly number[] {
  return relation.columns
    .flatMap((column, index) => (column.keyOrdinal === null ? [] : [{ index, ordinal: column.keyOrdinal }]))
    .sort((a, b) => a.ordinal - b.ordinal)
    .map(({ index }) => index);
}

/** Columns that find a row: the primary key, or the identity index's columns. Empty: only whole rows do. */
export function locatorColumns(relation: Relation): readonly number[] {
  const keys = (test: (column: Column) => boolean): number[] =>
    relation.columns.flatMap((column, index) => (test(column) ? [index] : []));
  if (relation.replicaIdentity === 'index') return keys((column) => column.identity);
  if (relation.keyIsDeferrable) return [];
  return keys((column) => column.keyOrdinal !== null);
}

/** What stands in Relation.storage for a heap where a row filter or column list is. */
export const PUBLISHED_PART = 0;

/** Relation.storage: file by heap. */
export function heapsOf(relation: Relation | undefined): Map<number, string> {
  const pairs = relation === undefined || relation.storage === '' ? [] : relation.storage.split(' ');
  return new Map(pairs.map((pair) => [Number.parseInt(pair, 10), pair.slice(pair.indexOf(':') + 1)]));
}

/** The partitions in which its rows lie, and their files. */
export function partitionHeaps(relation: Relation): readonly (readonly [number, string])[] {
  return [...heapsOf(relation)].filter(([heap]) => heap !== relation.oid && heap !== PUBLISHED_PART);
}
