import type pg from 'pg';
import type {
  Column,
  ColumnDefault,
  IndexDefinition,
  Relation,
  ReplicaIdentity,
  ScalarMapping,
  SchemaChange,
  ValueMapping,
} from '../change/relation.ts';
import { parseSnapshot, type Snapshot } from '../change/snapshot.ts';
import { valueAsBase64 } from '../change/value-mapping.ts';
import { ProtocolError } from '../errors.ts';
import { type Partition, partitionBounds } from './partition-bounds.ts';
import type { PublicationIdentity } from './publication.ts';
import { readFunctionBody } from './sql-files.ts';

/** Which server, history and database this is: positions compare only where all but the version agree. */
export interface SourceIdentity {
  /** A 64-bit number in decimal. https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-INFO-CONTROLDATA */
  readonly systemIdentifier: string;
  readonly timeline: number;
  readonly database: string;
  /** server_version_num: 150018. */
  readonly serverVersion: number;
}

/** By OID, which are fixed for built-in types (src/include/catalog/pg_type.dat); every other type is text. */
const MAPPINGS: ReadonlyMap<number, ScalarMapping> = new Map<number, ScalarMapping>([
  [16, 'bool'],
  [17, 'bytea'],
  [20, 'int'],
  [21, 'int'],
  [23, 'int'],
  [26, 'int'], // oid
  [114, 'json'],
  [700, 'float'],
  [701, 'float'],
  [1082, 'date'],
  [1114, 'timestamp'],
  [1184, 'timestamptz'],
  [1700, 'numeric'],
  [3802, 'json'], // jsonb
]);

/** By pg_class.relreplident. */
export const IDENTITIES: Readonly<Record<string, ReplicaIdentity>> = {
  d: 'default',
  n: 'nothing',
  f: 'full',
  i: 'index',
};

/** Every published table, as the connection's transaction sees the catalog. No publication, no tables. */
export async function readPublishedSchema(client: pg.ClientBase, publication: string): Promise<Relation[]> {
  return relationsFromJson(await relationsAsJson(client, publication, null));
}

/** Of the published tables only this one, those that it is a partition of, at any depth, and `others`. */
export async function readPublishedTable(
  client: pg.ClientBase,
  publication: string,
  oid: number,
  others: readonly number[],
): Promise<Relation[]> {
  const { rows } = await client.query<{ oid: number }>(
    'select $1::oid as oid union select relid::oid from pg_partition_ancestors($1::oid) union select unnest($2::oid[])',
    [oid, others],
  );
  const oids = rows.map((row) => row.oid);
  return relationsFromJson(await relationsAsJson(client, publication, oids));
}

/** What the publication would hold if set-up made it now: for all tables, or for these (OIDs). */
export async function readPublishableSchema(
  client: pg.ClientBase,
  tables: readonly number[] | null,
): Promise<Relation[]> {
  return relationsFromJson(await relationsAsJson(client, null, tables));
}

/** Of these tables (null: of all that are published) what the hooks' messages carry. `publication` null: as set-up would make it. */
export async function relationsAsJson(
  client: pg.ClientBase,
  publication: string | null,
  oids: readonly number[] | null,
): Promise<unknown> {
  const { rows } = await queryCatalog(client, '002_published_schema.sql', [publication, oids]);
  return Object.values(rows[0] ?? {})[0];
}

/** As the hooks have it, see published_schema_of_few(). */
const FEW_TABLES = 100;

/**
 * Runs the query that is a function of this file of `sql/`, with the planner settings that it has there; the OIDs of
 * the tables that it is for (null: all) come last.
 */
export async function queryCatalog(
  client: pg.ClientBase,
  fileName: string,
  values: readonly [...unknown[], readonly number[] | null],
): Promise<pg.QueryResult> {
  const text = readFunctionBody(fileName);
  const tables = values.at(-1) as readonly number[] | null;
  if (tables !== null && tables.length <= FEW_TABLES) {
    // Whoever asks again and again on one connection has it planned once: two thirds of its time.
    return client.query({ name: `rivulet ${fileName} of few`, text, values: [...values] });
  }
  await client.query('set enable_nestloop = off');
  try {
    return await client.query(text, [...values]);
  } finally {
    // In a transaction that has failed this fails too, and the rollback undoes the setting.
    await client.query('reset enable_nestloop').catch(() => undefined);
  }
}

/** What published_schema() gives and the hooks' messages carry, checked: it came in from outside. */
export function relationsFromJson(json: unknown): Relation[] {
  return list(json, 'relations').map((entry) => relation(record(entry, 'relation')));
}

/** A logical message of the hooks. */
export type SchemaMessage =
  | {
      readonly kind: 'schema';
      readonly publication: string;
      /** As it is at this place; null: it is gone; undefined: who wrote the message cannot tell. */
      readonly publisher: PublicationIdentity | null | undefined;
      readonly command: string;
      /** The tables whose state is certain, and of which `relations` tells; null: all. See sql/004_announce.sql. */
      readonly touched: ReadonlySet<number> | null;
      /** What `relations` contains: changes of others may have come before this one without being in it; null: none has. */
      readonly snapshot: Snapshot | null;
      readonly relations: readonly Relation[];
      /** Tables and partitions that this transaction made, and that are empty here: all their rows come in the stream. */
      readonly created: ReadonlySet<number>;
      /** Tables and partitions that nobody but this transaction has written to since it changed them. */
      readonly exclusive: ReadonlySet<number>;
      /** Partitions without a row, whatever was said of their rows before. */
      readonly emptied: ReadonlySet<number>;
      /** No hook would have told of a rewrite: another file is all that there is to go by. */
      readonly isUnannounced: boolean;
      /**
       * By table and column, what Postgres prints for rows from before the column: it is kept in the catalog only,
       * and never sent. Null where that cannot be told.
       */
      readonly missing: ReadonlyMap<number, ReadonlyMap<number, string | null>>;
    }
  /** All rows of this table or partition get new values, in this transaction. */
  | { readonly kind: 'rewritten'; readonly oid: number }
  /** The hook could not read the catalog: a change of schema happened here, to some of these tables (null: of all). */
  | {
      readonly kind: 'failed';
      readonly sqlstate: string;
      readonly touched: ReadonlySet<number> | null;
      /** By name, all publications as they are at this place; undefined: who wrote the message cannot tell. */
      readonly publishers: ReadonlyMap<string, PublicationIdentity> | undefined;
    }
  /** Was perhaps rolled back (see TransactionSpool): what it would say otherwise. */
  | { readonly kind: 'doubtful'; readonly message: SchemaMessage }
  /** Without the key: of hooks of before, or of anybody. */
  | { readonly kind: 'foreign' };

/** https://www.postgresql.org/docs/current/errcodes-appendix.html */
const SQLSTATE = /^[0-9A-Z]{5}$/;

/** Whoever may connect may write messages; what is to be believed has the key in it. See readMessageKey(); null: nothing is. */
export function readSchemaMessage(text: string, key: string | null): SchemaMessage {
  const message = jsonObject(text, key);
  if (message !== null && typeof message.doubtful === 'string')
    return { kind: 'doubtful', message: readSchemaMessage(message.doubtful, key) };
  const isKeyed = message !== null && key !== null && message.key === key;
  // What only sends to the catalog needs no key: a hook that failed may not have had it.
  if (message?.v === 1 && typeof message.failed === 'string' && SQLSTATE.test(message.failed))
    return {
      kind: 'failed',
      sqlstate: message.failed,
      touched: isKeyed ? touchedTables(message) : null,
      publishers: isKeyed ? publishers(message.publishers) : undefined,
    };
  if (!isKeyed) return { kind: 'foreign' };
  if (message.v !== 1)
    throw new ProtocolError(`a schema message has the unknown version ${String(message.v)}`, {
      hint: 'update rivulet here, or run `rivulet setup` again',
    });
  if (message.rewritten !== undefined)
    return { kind: 'rewritten', oid: integer(message.rewritten, 'rewritten') };
  const relations = list(message.relations, 'relations').map((entry) => record(entry, 'relation'));
  return {
    kind: 'schema',
    publication: string(message.publication, 'publication'),
    publisher: publisher(message.publisher),
    command: string(message.command, 'command'),
    touched: touchedTables(message),
    snapshot: message.snapshot === undefined ? null : parseSnapshot(string(message.snapshot, 'snapshot')),
    relations: relationsFromJson(message.relations),
    created: new Set(relations.flatMap((each) => [...oids(each.created, 'created')])),
    // Hooks of an earlier set-up tell of neither.
    exclusive: oids(message.exclusive ?? [], 'exclusive'),
    emptied: oids(message.emptied ?? [], 'emptied'),
    isUnannounced: message.unannounced === true,
    missing: new Map(
      relations.map((each) => [
        integer(each.oid, 'oid'),
        new Map(
          list(each.missing, 'missing').map((entry): [number, string | null] => {
            const { attnum, value } = record(entry, 'missing');
            return [integer(attnum, 'attnum'), value === null ? null : string(value, 'value')];
          }),
        ),
      ]),
    ),
  };
}

function publisher(json: unknown): PublicationIdentity | null | undefined {
  return json === undefined || json === null ? json : publicationIdentity(json);
}

function publishers(json: unknown): ReadonlyMap<string, PublicationIdentity> | undefined {
  if (json === undefined || json === null) return undefined;
  const entries = Object.entries(record(json, 'publishers'));
  return new Map(entries.map(([name, each]) => [name, publicationIdentity(each)]));
}

function publicationIdentity(json: unknown): PublicationIdentity {
  const { oid, altered_by, unpublished } = record(json, 'publisher');
  return {
    oid: integer(oid, 'oid'),
    alteredBy: integer(altered_by, 'altered_by'),
    unpublished: list(unpublished, 'unpublished').map((each) => string(each, 'unpublished')),
  };
}

function touchedTables({ touched }: Readonly<Record<string, unknown>>): ReadonlySet<number> | null {
  return touched === null ? null : oids(touched, 'touched');
}

function oids(json: unknown, what: string): ReadonlySet<number> {
  return new Set(list(json, what).map((oid) => integer(oid, what)));
}

/** Of what has not got the key only the failure of a hook counts, which is short; anybody may write, and make us parse, more. */
const LONGEST_UNKEYED = 10_000;

function jsonObject(text: string, key: string | null): Readonly<Record<string, unknown>> | null {
  if (text.length > LONGEST_UNKEYED && (key === null || !text.includes(key))) return null;
  try {
    return record(JSON.parse(text), 'message');
  } catch {
    return null;
  }
}

/** Asks for tables (OIDs) to be read again, all of their rows, from its place in the stream on. */
export interface RereadRequest {
  /** Replicators of other publications have nothing to do with it. */
  readonly publication: string;
  readonly oids: readonly number[];
}

/** Null: it has not got the key. */
export function readRereadRequest(text: string, key: string): RereadRequest | null {
  const request = jsonObject(text, key);
  if (request === null || request.key !== key) return null;
  return {
    publication: string(request.publication, 'publication'),
    oids: list(request.oids, 'oids').map((oid) => integer(oid, 'oid')),
  };
}

/**
 * For tables that need no reload: the values that rows from before a column have in it, by the mapping that their
 * rows will have.
 */
export function columnDefaults(
  known: ReadonlyMap<number, Relation>,
  changed: readonly Relation[],
  missing: ReadonlyMap<number, ReadonlyMap<number, string | null>>,
): ColumnDefault[] {
  return changed.flatMap((relation) => {
    const had = new Set(known.get(relation.oid)?.columns.map((column) => column.attnum));
    return relation.columns.flatMap(({ attnum, mapping }) => {
      const text = missing.get(relation.oid)?.get(attnum);
      if (had.has(attnum) || text === undefined || text === null) return [];
      return [{ oid: relation.oid, attnum, value: valueAsBase64(mapping, text) }];
    });
  });
}

/**
 * What a schema message changes in the schema that the stream has so far. Only what its transaction held locked
 * counts: of everything else its view may be older than what other transactions have committed in between.
 */
export function schemaChange(
  known: ReadonlyMap<number, Relation>,
  message: Extract<SchemaMessage, { kind: 'schema' }>,
): SchemaChange | null {
  const counts = (oid: number): boolean => message.touched === null || message.touched.has(oid);
  const present = new Map(message.relations.map((each) => [each.oid, each]));
  const changed = message.relations.filter(
    (each) => counts(each.oid) && !isSameRelation(known.get(each.oid), each),
  );
  const dropped = [...known.keys()].filter((oid) => counts(oid) && !present.has(oid));
  return changed.length === 0 && dropped.length === 0 ? null : { changed, dropped };
}

/** Relations are made in one place, with their keys in one order: their JSON is equal when they are. */
export function isSameRelation(left: Relation | undefined, right: Relation): boolean {
  return left !== undefined && JSON.stringify(left) === JSON.stringify(right);
}

export async function identify(client: pg.ClientBase): Promise<SourceIdentity> {
  const { rows } = await client.query(
    `select s.system_identifier::text as system_identifier,
            case when pg_is_in_recovery() then c.timeline_id
                 else ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int end as timeline,
            current_database()::text as database, current_setting('server_version_num')::int as version
       from pg_control_system() s, pg_control_checkpoint() c`,
  );
  const row = rows[0];
  return {
    systemIdentifier: row.system_identifier,
    timeline: row.timeline,
    database: row.database,
    serverVersion: row.version,
  };
}

/** The names, quoted, of those of these tables (OIDs) that are there and that this user may read. */
export async function namesOfReadable(client: pg.ClientBase, oids: readonly number[]): Promise<string[]> {
  const { rows } = await client.query<{ name: string }>(
    `select format('%I.%I', n.nspname, c.relname) as name
       from pg_class c join pg_namespace n on n.oid = c.relnamespace
      where c.oid = any ($1::oid[]) and has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, 'select')`,
    [oids],
  );
  return rows.map(({ name }) => name);
}

/** Whether the connection's next statement sees a transaction of the stream, which gives 32 bits of its id. */
export async function isVisible(client: pg.ClientBase, xid: number): Promise<boolean> {
  // The other half comes from the newest transaction's; older ones lie at most 2^31 behind it.
  const { rows } = await client.query(
    `select pg_visible_in_snapshot((case when id > newest + 2147483648 then id - 4294967296 else id end)::text::xid8, s) as visible
       from (select pg_current_snapshot() as s) now
      cross join lateral (select pg_snapshot_xmax(s)::text::int8 as newest) n
      cross join lateral (select (newest >> 32 << 32) + $1::int8 as id) i`,
    [xid],
  );
  return rows[0].visible;
}

/**
 * Whether this transaction of the stream made the table (the row of a system column stays as it was made). In a
 * subtransaction it did so under another id, which nobody can tell from a stranger's: false.
 */
export async function isMadeBy(client: pg.ClientBase, oid: number, xid: number): Promise<boolean> {
  const { rowCount } = await client.query(
    'select from pg_attribute where attrelid = $1 and attnum = -6 and xmin::text = $2',
    [oid, String(xid)],
  );
  return rowCount! > 0;
}

/** Why a table is left out of a publication of all tables: see sql/007_published_tables.sql. */
export const HOPELESS =
  'it has a virtual generated column and no usable key: published, its UPDATE and DELETE would be refused';
const UNPUBLISHED = 'not in the publication';

export interface MirrorReport {
  readonly mirrored: number;
  readonly notMirrored: readonly { readonly table: string; readonly reason: string }[];
}

/** Which tables of the database are not mirrored, and why. Views and temporary tables go without saying. */
export async function readMirrorReport(client: pg.ClientBase, publication: string): Promise<MirrorReport> {
  const mirrored = (await readPublishedSchema(client, publication)).map((each) => each.oid);
  return { mirrored: mirrored.length, notMirrored: await readNotMirrored(client, publication, mirrored) };
}

/** All tables but the mirrored ones (OIDs) and their partitions, and why they are not. */
export async function readNotMirrored(
  client: pg.ClientBase,
  publication: string,
  mirrored: readonly number[],
): Promise<MirrorReport['notMirrored']> {
  const { rows } = await client.query(
    `with recursive covered(oid) as (
       select unnest($1::oid[])
       union
       select i.inhrelid from covered m join pg_inherits i on i.inhparent = m.oid
         join pg_class c on c.oid = i.inhrelid and c.relispartition and c.relkind in ('r', 'p') and c.relpersistence = 'p'
     )
     select c.oid, format('%I.%I', n.nspname, c.relname) as table,
            case when c.relkind = 'f' then 'foreign table'
                 when c.relkind = 'm' then 'materialized view'
                 when c.relpersistence = 'u' then 'unlogged table: its changes are not in the WAL'
                 when not exists (select from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped)
                   then 'it has no columns'
                 when p.oid is null then 'the publication does not exist'
                 when p.puballtables then 'it has no column that Postgres publishes'
                 else $3 end as reason
       from pg_class c
       join pg_namespace n on n.oid = c.relnamespace
       left join pg_publication p on p.pubname = $2::name
      where c.relkind in ('r', 'p', 'f', 'm') and c.relpersistence <> 't' and c.oid >= 16384
        and n.nspname <> 'rivulet' and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
        and c.oid not in (select oid from covered)
      order by n.nspname, c.relname`,
    [mirrored, publication, UNPUBLISHED],
  );
  const unpublished = rows.filter((row) => row.reason === UNPUBLISHED).map((row) => row.oid);
  const hopeless = await readHopeless(client, unpublished);
  return rows.map((row) => ({ table: row.table, reason: hopeless.has(row.oid) ? HOPELESS : row.reason }));
}

/** Of these tables (OIDs) those that must not be published, because no replica identity would help them. */
async function readHopeless(client: pg.ClientBase, oids: readonly number[]): Promise<Set<number>> {
  if (oids.length === 0) return new Set();
  const { rows } = await queryCatalog(client, '003_identity.sql', [oids]);
  return new Set(rows.filter((row) => row.wanted === null).map((row) => row.root));
}

function relation(json: Readonly<Record<string, unknown>>): Relation {
  const identity = IDENTITIES[string(json.identity, 'identity')];
  if (identity === undefined) throw new ProtocolError(`unknown replica identity ${String(json.identity)}`);
  const columns = list(json.columns, 'columns').map((entry) => column(record(entry, 'column')));
  return {
    oid: integer(json.oid, 'oid'),
    schema: string(json.schema, 'schema'),
    name: string(json.name, 'name'),
    replicaIdentity: identity,
    keyIsDeferrable: boolean(json.keyDeferrable, 'keyDeferrable'),
    storage: string(json.storage, 'storage'),
    ...partitionBounds(list(json.partitions ?? [], 'partitions').map(partition), columns),
    columns: columns.sort((left, right) => left.attnum - right.attnum),
    ...hiddenColumns(json.hidden),
    indexes: list(json.indexes, 'indexes').map((entry) => index(record(entry, 'index'))),
  };
}

/** Hooks of an earlier set-up tell of none. */
function partition(json: unknown): Partition {
  const [oid, parent, column, values] = list(json, 'partition');
  return {
    oid: integer(oid, 'partition'),
    parent: integer(parent, 'partition'),
    column: column === null ? null : string(column, 'partition'),
    values: string(values, 'partition'),
  };
}

/** Nor of these. */
function hiddenColumns(json: unknown): Pick<Relation, 'hidden'> {
  const hidden = list(json ?? [], 'hidden').map((attnum) => integer(attnum, 'hidden'));
  return hidden.length === 0 ? {} : { hidden };
}

function column(json: Readonly<Record<string, unknown>>): Column {
  const typeOid = integer(json.typeOid, 'typeOid');
  const baseOid = integer(json.baseOid, 'baseOid');
  const keyOrdinal = json.keyOrdinal === null ? null : integer(json.keyOrdinal, 'keyOrdinal');
  const identity = boolean(json.identity, 'identity');
  return {
    attnum: integer(json.attnum, 'attnum'),
    name: string(json.name, 'name'),
    typeName: string(json.typeName, 'typeName'),
    typeOid,
    typeModifier: integer(json.typeModifier, 'typeModifier'),
    ...(baseOid === typeOid ? {} : { baseTypeOid: baseOid }),
    mapping: mapping(baseOid, {
      elementOid: integer(json.elemOid, 'elemOid'),
      delimiter: string(json.delim, 'delim'),
      isKey: keyOrdinal !== null || identity,
    }),
    ...typeParts(json.typeParts),
    notNull: boolean(json.notNull, 'notNull'),
    keyOrdinal,
    identity,
  };
}

function typeParts(json: unknown): Pick<Column, 'typeParts'> {
  const parts = list(json, 'typeParts').map((part) => string(part, 'typeParts'));
  return parts.length === 0 ? {} : { typeParts: parts };
}

function index(json: Readonly<Record<string, unknown>>): IndexDefinition {
  return {
    oid: integer(json.oid, 'oid'),
    name: string(json.name, 'name'),
    unique: boolean(json.unique, 'unique'),
    columns: list(json.columns, 'columns').map((entry) => {
      const part = record(entry, 'index column');
      return { attnum: integer(part.attnum, 'attnum'), descending: boolean(part.descending, 'descending') };
    }),
  };
}

function mapping(
  typeOid: number,
  {
    elementOid,
    delimiter,
    isKey,
  }: { readonly elementOid: number; readonly delimiter: string; readonly isKey: boolean },
): ValueMapping {
  if (elementOid === 0) return MAPPINGS.get(typeOid) ?? 'text';
  return { array: MAPPINGS.get(elementOid) ?? 'text', delimiter, ...(isKey ? { isKey } : {}) };
}

function record(value: unknown, what: string): Readonly<Record<string, unknown>> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw malformed(what);
  return value as Readonly<Record<string, unknown>>;
}

function list(value: unknown, what: string): readonly unknown[] {
  if (!Array.isArray(value)) throw malformed(what);
  return value;
}

function string(value: unknown, what: string): string {
  if (typeof value !== 'string') throw malformed(what);
  return value;
}

function integer(value: unknown, what: string): number {
  if (!Number.isSafeInteger(value)) throw malformed(what);
  return value as number;
}

function boolean(value: unknown, what: string): boolean {
  if (typeof value !== 'boolean') throw malformed(what);
  return value;
}

function malformed(what: string): ProtocolError {
  return new ProtocolError(`the published schema is malformed: ${what}`);
}
