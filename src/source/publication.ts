import pg from 'pg';
import type { Relation } from '../change/relation.ts';
import { ConfigError, RivuletError } from '../errors.ts';

/** What must stay as it was, or the stream lacks changes. */
export interface PublicationIdentity {
  readonly oid: number;
  /** The transaction that made or altered it last; tables that come or go do not count. */
  readonly alteredBy: number;
  /** insert, update, delete, truncate: those that it leaves out. */
  readonly unpublished: readonly string[];
}

/** The publication as the stream has it; `alteredBy` null: that is for the stream to tell yet. */
export interface FollowedPublication {
  readonly oid: number;
  readonly alteredBy: number | null;
}

export interface PublicationState extends PublicationIdentity {
  readonly allTables: boolean;
  /** It is for all tables, or as near to that as Postgres lets it be: see sql/007_published_tables.sql. */
  readonly wantsAll: boolean;
  readonly viaRoot: boolean;
  /** Set-up made it, so set-up may add tables to it and teardown drops it. */
  readonly isOurs: boolean;
  /** It publishes nothing, and set-up knows nothing of it: so it is where somebody has dropped the schema rivulet. */
  readonly isBereft: boolean;
}

export async function readPublication(
  client: pg.ClientBase,
  publication: string,
): Promise<PublicationState | null> {
  const { rows } = await client.query(
    `select oid, xmin::text::bigint::float8 as altered_by, puballtables, pubviaroot, array_remove(array[case when not pubinsert then 'insert' end,
            case when not pubupdate then 'update' end, case when not pubdelete then 'delete' end,
            case when not pubtruncate then 'truncate' end], null) as unpublished,
            not puballtables
            and not exists (select from pg_depend d
                             where d.refclassid = 'pg_publication'::regclass and d.refobjid = p.oid) as is_empty
       from pg_publication p where pubname = $1`,
    [publication],
  );
  const row = rows[0];
  if (row === undefined) return null;
  const config = await readConfig(client, publication);
  return {
    oid: row.oid,
    alteredBy: row.altered_by,
    allTables: row.puballtables,
    wantsAll: row.puballtables || (config?.wantsAll ?? false),
    viaRoot: row.pubviaroot,
    unpublished: row.unpublished,
    isOurs: config?.madePublication ?? false,
    isBereft: row.is_empty && config === null,
  };
}

/** What the schema rivulet holds keeps tables in the publication: a history that has some must not lose all of them so. */
export function judgeContent(
  publication: string,
  relations: readonly Relation[],
  now: PublicationState | null,
): RivuletError | null {
  if (now?.isBereft !== true || relations.length === 0) return null;
  return new RivuletError('PUBLICATION', `the publication ${publication} has lost all tables`, {
    hint: 'with the schema rivulet, which somebody has dropped: drop the publication, too, and run `rivulet setup`',
  });
}

/**
 * Why the stream lacks changes of a history that followed this publication (null: not known, as of histories of before);
 * null if it has them all. What is written without the publication, or while it leaves something out, is never sent: up
 * to Postgres 17 the server refuses to go on at such a change, from 18 on it passes it over. POSITION_GAP: it is as it
 * should be again, but has not been all the while.
 * https://www.postgresql.org/docs/current/sql-alterpublication.html
 */
export function judgePublication(
  publication: string,
  followed: FollowedPublication | null,
  now: PublicationIdentity | null,
): RivuletError | null {
  if (now === null) return new RivuletError('PUBLICATION', `the publication ${publication} is gone`);
  if (now.unpublished.length > 0) return leavesOut(publication, now);
  if (followed === null) return null;
  if (followed.oid !== now.oid)
    return new RivuletError('POSITION_GAP', `the publication ${publication} was made anew`);
  if (followed.alteredBy === null || followed.alteredBy === now.alteredBy) return null;
  return new RivuletError(
    'POSITION_GAP',
    `the publication ${publication} was altered, and the stream does not tell how`,
  );
}

export function leavesOut(publication: string, { unpublished }: PublicationIdentity): RivuletError {
  return new RivuletError(
    'PUBLICATION',
    `the publication ${publication} leaves out ${unpublished.join(', ')}`,
    {
      hint: `ALTER PUBLICATION … SET (publish = 'insert, update, delete, truncate'), or choose another --publication`,
    },
  );
}

/** Set-up's own row about a publication; null if there is none, or no right to see it. */
export async function readConfig(
  client: pg.ClientBase,
  publication: string,
): Promise<{ madePublication: boolean; wantsAll: boolean } | null> {
  const { rows: visible } = await client.query(
    `select exists (select from pg_class c join pg_namespace n on n.oid = c.relnamespace
                     where n.nspname = 'rivulet' and c.relname = 'config'
                       and has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, 'select')) as visible`,
  );
  if (!visible[0].visible) return null;
  // The column came later than the table.
  const { rows } = await client.query(
    `select made_publication, coalesce(to_jsonb(c)->>'wants_all', 'false')::boolean as wants_all
       from rivulet.config c where publication = $1`,
    [publication],
  );
  const row = rows[0];
  return row === undefined ? null : { madePublication: row.made_publication, wantsAll: row.wants_all };
}

export interface PublicationContent {
  /** Schema-qualified and quoted; null: all of them, later ones too. */
  readonly tables: readonly string[] | null;
  /** Whether somebody names them: from Postgres 18 on, all tables are all of their names then, and at first none. */
  readonly isKept: boolean;
}

export async function createPublication(
  client: pg.ClientBase,
  publication: string,
  { tables, isKept }: PublicationContent,
): Promise<void> {
  const { rows } = await client.query(`select current_setting('server_version_num')::int as version`);
  const { version } = rows[0];
  const options = ['publish_via_partition_root = true'];
  if (version >= 180000) options.push('publish_generated_columns = stored');
  const all = version < 180000 || !isKept ? 'for all tables' : '';
  const what =
    tables === null
      ? all
      : tables.length === 0
        ? ''
        : `for table ${tables.map((table) => `only ${table}`).join(', ')}`;
  await client.query(
    `create publication ${pg.escapeIdentifier(publication)} ${what} with (${options.join(', ')})`,
  );
}

/** A name of `--tables a,b.c`: quoted as in SQL where it has to be, otherwise taken as written or in lower case. */
export interface TableName {
  readonly schema: string;
  readonly name: string;
  readonly text: string;
}

const TABLE_NAME = /^(?:("(?:[^"]|"")+"|[^".,\s]+)\.)?("(?:[^"]|"")+"|[^".,\s]+)$/;

export function parseTableName(text: string): TableName {
  const match = TABLE_NAME.exec(text.trim());
  if (match === null) {
    throw new ConfigError(`not a table name: ${JSON.stringify(text.slice(0, 140))}`, {
      hint: 'write table, schema.table, or "Odd Schema"."odd.table"',
    });
  }
  const unquote = (part: string): string =>
    part.startsWith('"') ? part.slice(1, -1).replaceAll('""', '"') : part;
  return { schema: unquote(match[1] ?? 'public'), name: unquote(match[2]!), text: text.trim() };
}

export interface ListedTable {
  readonly oid: number;
  /** Schema-qualified and quoted. */
  readonly label: string;
}

/** Looks the tables up; a PUBLICATION error names those that are not there or cannot be published. */
export async function findTables(client: pg.ClientBase, names: readonly TableName[]): Promise<ListedTable[]> {
  const wrong: string[] = [];
  const found = new Map<number, ListedTable>();
  for (const { schema, name, text } of names) {
    const { rows } = await client.query(
      `select c.oid, format('%I.%I', n.nspname, c.relname) as label,
              case when c.relkind not in ('r', 'p') then 'is not a table'
                   when c.relpersistence = 'u' then 'is unlogged'
                   when c.relpersistence = 't' then 'is temporary'
                   when n.nspname = 'rivulet' then 'is Rivulet''s own'
                   when not pg_relation_is_publishable(c.oid) then 'is a system table' end as reason
         from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where lower(n.nspname) = lower($1) and lower(c.relname) = lower($2)
          and n.nspname in ($1, lower($1)) and c.relname in ($2, lower($2))
        order by (n.nspname = $1) desc, (c.relname = $2) desc limit 1`,
      [schema, name],
    );
    const row = rows[0];
    if (row === undefined) wrong.push(`${text} does not exist`);
    else if (row.reason !== null) wrong.push(`${text} ${row.reason}`);
    else found.set(row.oid, { oid: row.oid, label: row.label });
  }
  if (wrong.length > 0) {
    throw new RivuletError('PUBLICATION', `these tables cannot be published: ${wrong.join('; ')}`, {
      hint: 'correct --tables; names without a schema are in public',
    });
  }
  return [...found.values()];
}
