import type { Database } from 'better-sqlite3';
import type { Relation } from '../change/relation.ts';
import { RivuletError } from '../errors.ts';
import { formatLsn, type Lsn } from '../lsn.ts';
import { assignColumnNames, assignTableNames } from './naming.ts';
import { canEnforceKey, createTableSql, plainIndexes, type TableLayout } from './table-layout.ts';

/** Raised whenever an older program could misread the file. */
export const REPLICA_FORMAT_VERSION = 1;

/** What a replica file knows about where it came from. */
export interface ReplicaMeta {
  readonly epoch: string;
  readonly position: Lsn;
  /** Commit time of the newest transaction in it, µs since 1970; null if there was none yet. */
  readonly commitTimeUs: bigint | null;
  readonly systemIdentifier: string;
  readonly databaseName: string;
}

const BOOKKEEPING_SQL = `
  CREATE TABLE _rivulet_position (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    epoch TEXT NOT NULL,
    lsn TEXT NOT NULL,
    lsn_int INTEGER NOT NULL,
    commit_time TEXT,
    applied_lsn TEXT NOT NULL
  );
  CREATE TABLE _rivulet_table (
    relation_oid INTEGER PRIMARY KEY,
    schema_name TEXT NOT NULL,
    table_name TEXT NOT NULL,
    sqlite_name TEXT NOT NULL,
    replica_identity TEXT NOT NULL
  );
  CREATE TABLE _rivulet_column (
    relation_oid INTEGER NOT NULL,
    attnum INTEGER NOT NULL,
    column_name TEXT NOT NULL,
    sqlite_name TEXT NOT NULL,
    type_name TEXT NOT NULL,
    not_null INTEGER NOT NULL,
    key_ordinal INTEGER,
    PRIMARY KEY (relation_oid, attnum)
  ) WITHOUT ROWID;
  CREATE TABLE _rivulet_relation (
    relation_oid INTEGER PRIMARY KEY,
    definition TEXT NOT NULL,
    generation INTEGER NOT NULL
  );
  CREATE TABLE _rivulet_reload (
    relation_oid INTEGER PRIMARY KEY,
    definition TEXT NOT NULL,
    generation INTEGER NOT NULL
  );
  CREATE TABLE _rivulet_reload_change (
    seq INTEGER PRIMARY KEY,
    relation_oid INTEGER NOT NULL,
    xid INTEGER NOT NULL,
    change BLOB NOT NULL
  );
  CREATE TABLE _rivulet_meta (
    key TEXT PRIMARY KEY,
    value
  ) WITHOUT ROWID;
`;

/**
 * Makes everything in an empty database but rows and secondary indexes (createIndexes, once the rows are in).
 * Runs inside the caller's transaction if there is one.
 */
export function createReplicaSchema(
  db: Database,
  relations: readonly Relation[],
  meta: ReplicaMeta,
  now: Date = new Date(),
): readonly TableLayout[] {
  const layouts = layoutRelations(relations);
  inTransaction(db, () => {
    db.exec(BOOKKEEPING_SQL);
    const put = db.prepare('INSERT INTO _rivulet_meta (key, value) VALUES (?, ?)');
    put.run('format_version', BigInt(REPLICA_FORMAT_VERSION));
    put.run('system_identifier', meta.systemIdentifier);
    put.run('database_name', meta.databaseName);
    put.run('created_at', now.toISOString());
    db.prepare(
      'INSERT INTO _rivulet_position (id, epoch, lsn, lsn_int, commit_time, applied_lsn) VALUES (1, ?, ?, ?, ?, ?)',
    ).run(
      meta.epoch,
      formatLsn(meta.position),
      BigInt.asIntN(64, meta.position),
      meta.commitTimeUs === null ? null : formatCommitTime(meta.commitTimeUs),
      formatLsn(meta.position),
    );
    for (const layout of layouts) {
      db.exec(createTableSql(layout));
      recordLayout(db, layout);
    }
  });
  return layouts;
}

/** Gives tables that are new in an empty file their names and shape. */
export function layoutRelations(relations: readonly Relation[]): readonly TableLayout[] {
  const names = assignTableNames(relations);
  return relations.map((relation) => {
    const columns = assignColumnNames(relation.columns);
    return {
      relation,
      sqliteName: names.get(relation.oid)!,
      columnNames: relation.columns.map((column) => columns.get(column.attnum)!),
      keyIsEnforced: canEnforceKey(relation),
      generation: 0,
    };
  });
}

/** The secondary indexes, one at a time so that the caller can show progress. */
export function createIndexes(db: Database, layout: TableLayout): void {
  for (const index of plainIndexes(layout)) db.exec(index.sql);
}

/** Writes the contract tables' rows of one relation, in place of those it had. */
export function recordLayout(db: Database, layout: TableLayout): void {
  const { relation } = layout;
  forgetLayout(db, relation.oid);
  db.prepare(
    `INSERT INTO _rivulet_table (relation_oid, schema_name, table_name, sqlite_name, replica_identity)
     VALUES (?, ?, ?, ?, ?)`,
  ).run(relation.oid, relation.schema, relation.name, layout.sqliteName, relation.replicaIdentity);
  const column = db.prepare(
    `INSERT INTO _rivulet_column (relation_oid, attnum, column_name, sqlite_name, type_name, not_null, key_ordinal)
     VALUES (?, ?, ?, ?, ?, ?, ?)`,
  );
  relation.columns.forEach((each, index) => {
    column.run(
      relation.oid,
      each.attnum,
      each.name,
      layout.columnNames[index],
      each.typeName,
      each.notNull ? 1 : 0,
      each.keyOrdinal,
    );
  });
  db.prepare('INSERT INTO _rivulet_relation (relation_oid, definition, generation) VALUES (?, ?, ?)').run(
    relation.oid,
    JSON.stringify(relation),
    BigInt(layout.generation),
  );
}

export function forgetLayout(db: Database, oid: number): void {
  db.prepare('DELETE FROM _rivulet_table WHERE relation_oid = ?').run(oid);
  db.prepare('DELETE FROM _rivulet_column WHERE relation_oid = ?').run(oid);
  db.prepare('DELETE FROM _rivulet_relation WHERE relation_oid = ?').run(oid);
}

/** Reads back what recordLayout wrote, by OID. */
export function readLayouts(db: Database): Map<number, TableLayout> {
  const columnName = db
    .prepare<[number, number], string>(
      'SELECT sqlite_name FROM _rivulet_column WHERE relation_oid = ? AND attnum = ?',
    )
    .pluck();
  const hasKey = db.prepare<[string], number>('SELECT 1 FROM pragma_table_info(?) WHERE pk > 0').pluck();
  const rows = db
    .prepare<[], { oid: number; sqliteName: string; definition: string; generation: number }>(
      `SELECT relation_oid AS oid, sqlite_name AS sqliteName, definition, generation
       FROM _rivulet_table JOIN _rivulet_relation USING (relation_oid)`,
    )
    .all();
  return new Map(
    rows.map(({ oid, sqliteName, definition, generation }) => {
      const relation = JSON.parse(definition) as Relation;
      const columnNames = relation.columns.map((column) => {
        const name = columnName.get(oid, column.attnum);
        if (name === undefined) {
          throw new RivuletError(
            'SNAPSHOT_CORRUPT',
            `the file does not know column ${column.attnum} of ${sqliteName}`,
          );
        }
        return name;
      });
      return [
        oid,
        {
          relation,
          sqliteName,
          columnNames,
          keyIsEnforced: hasKey.get(sqliteName) !== undefined,
          generation,
        },
      ];
    }),
  );
}

/** The second that was formatted last: the next commit is mostly of the same. */
const formatted = { atMs: Number.NaN, text: '' };

/** `2026-11-21 03:00:00.123456Z`, as timestamptz values look in the file. */
export function formatCommitTime(timeUs: bigint): string {
  const micros = ((timeUs % 1_000_000n) + 1_000_000n) % 1_000_000n;
  const atMs = Number((timeUs - micros) / 1000n);
  if (atMs !== formatted.atMs) {
    formatted.atMs = atMs;
    formatted.text = new Date(atMs).toISOString().slice(0, 19).replace('T', ' ');
  }
  return `${formatted.text}.${micros.toString().padStart(6, '0')}Z`;
}

function inTransaction(db: Database, work: () => void): void {
  if (db.inTransaction) work();
  else db.transaction(work)();
}
