import type { Relation } from '../../../change/relation.ts';
import type { TypeRef, UserType } from './types.ts';

export interface ModelColumn {
  readonly attnum: number;
  name: string;
  type: TypeRef;
  generated: '' | 's' | 'v';
  /** Added with a constant default: older rows take it from the catalog. `untold`: in a form that cannot be read there. */
  missing: 'no' | 'told' | 'untold';
}

export interface ModelIndex {
  readonly id: number;
  name: string;
  readonly columns: readonly string[];
  readonly isUnique: boolean;
  /** Whether SQLite gets it: a B-tree of plain columns, whole. */
  readonly isExpressible: boolean;
}

export interface ModelTable {
  readonly id: number;
  schema: string;
  name: string;
  readonly kind: 'table' | 'partitioned' | 'view' | 'materialized view' | 'foreign table' | 'sequence';
  /** As pg_class.relpersistence. */
  persistence: 'p' | 'u' | 't';
  columns: ModelColumn[];
  /** False where nobody can tell its columns: CREATE TABLE AS, or a table that the file only mentions. */
  hasKnownColumns: boolean;
  /** The partitioned table that it is a partition of. */
  partitionOf: number | null;
  /** What stands behind PARTITION OF, as Postgres prints it; null: it is none, or nobody knows. */
  partitionValues: string | null;
  /** The one column that its own partitions go by; null: there is no such column. */
  readonly partitionKey: string | null;
  readonly inherits: number[];
  /** The file that holds its rows; its own id as long as it was never rewritten. */
  file: number;
  /** As which mirrored table's all its rows of this migration were sent, 0: nobody's; null: it got none. */
  sentAs: number | null;
  /** The transaction of this migration that made it. */
  readonly madeIn: number | null;
  /** As Postgres estimates; null if nobody knows. */
  rows: number | null;
  key: { readonly name: string; columns: readonly string[]; readonly isDeferrable: boolean } | null;
  /** As pg_class.relreplident. */
  identity: string;
  identityIndex: string | null;
  indexes: ModelIndex[];
}

export interface ModelPublication {
  readonly name: string;
  allTables: boolean;
  /** Set-up made it, or would: the hooks may change it. */
  isOurs: boolean;
  /** From 18 on, one of ours is for all tables by naming each: see sql/007_published_tables.sql. */
  isKept: boolean;
  /** Its tables have row filters, by which they can leave it. */
  isTied: boolean;
  /** Tables that it leaves out all the same, with their partitions. */
  leftOut: Set<number>;
  viaRoot: boolean;
  /** Stored generated columns too, from 18 on. */
  sendsGenerated: boolean;
  tables: Set<number>;
  schemas: Set<string>;
  /** By table, where the publication names columns. */
  columnLists: Map<number, readonly string[]>;
  /** By table, something that changes with its row filter or column list. */
  parts: Map<number, number>;
}

/** All that statements change, and that ROLLBACK takes back: plain data, so that it can be copied. */
export interface CatalogState {
  tables: Map<number, ModelTable>;
  types: Map<string, UserType>;
  schemas: Set<string>;
  /** Null while there is none: dropped by the migration. */
  publication: ModelPublication | null;
  /** Functions of the user's: whether they are volatile. */
  functions: Map<string, boolean>;
  searchPath: string[];
  timeZone: string;
  /** The published schema as the replicator has it after the statements so far. */
  known: Map<number, Relation>;
  /** Tables that the transaction at hand has rewritten, as event triggers tell. */
  rewritten: Set<number>;
  /** Whether schema changes are announced by event triggers. */
  isAnnounced: boolean;
}

export interface Catalog {
  readonly state: CatalogState;
  /** server_version_num; of the newest server without a connection. */
  readonly version: number;
  readonly binaryCasts: ReadonlySet<string>;
  /** Volatile functions of the server's own, by name. */
  readonly isVolatile: (name: string) => boolean;
  /** False without a connection: tables that the file does not make are guessed. */
  readonly isComplete: boolean;
  readonly slot: string;
}

/** Without a server: nothing is known but what the file itself makes. */
export function emptyState(publication: string): CatalogState {
  return {
    tables: new Map(),
    types: new Map(),
    schemas: new Set(['public']),
    publication: newPublication(publication, true),
    functions: new Map(),
    searchPath: ['public'],
    timeZone: 'UTC',
    known: new Map(),
    rewritten: new Set(),
    isAnnounced: true,
  };
}

export function newPublication(name: string, allTables: boolean): ModelPublication {
  return {
    name,
    allTables,
    isOurs: true,
    isKept: allTables,
    isTied: true,
    leftOut: new Set(),
    viaRoot: true,
    sendsGenerated: true,
    tables: new Set(),
    schemas: new Set(),
    columnLists: new Map(),
    parts: new Map(),
  };
}
