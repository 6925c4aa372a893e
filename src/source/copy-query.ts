import type pg from 'pg';
import type { Relation } from '../change/relation.ts';
import { LARGE_VALUE_BYTES, rowLimit, VALUE_HEADER_BYTES } from './row-budget.ts';

/** What one COPY reads. */
export interface CopyQuery {
  /** Quoted names of columns: what comes, in this order. */
  readonly columns: readonly string[];
  /** `from …`, and all that stands behind it. */
  readonly source: string;
  /** Where COPY can take it as it stands, which is faster than a query: the table. */
  readonly table?: string | undefined;
}

/** A COPY, and how its rows are to be taken: see CopyEncoder. */
export interface CopyStatement {
  readonly sql: string;
  readonly namesCuts: boolean;
}

/** A row that is longer than a file can hold: where it is, and of what is left out of it the column and the size as text. */
interface LongRow {
  readonly place: string;
  readonly cuts: readonly { readonly column: number; readonly bytes: number }[];
}

/** Smaller ones, as they are stored, do not print as more than some KB. */
const PRINTED_BYTES = 64;

/** Tells the rows of a table apart, those of its partitions too. */
const PLACE = `concat_ws(' ', tableoid::int8, ctid)`;

export function copyStatement({ columns, source, table }: CopyQuery): CopyStatement {
  const list = columns.join(', ');
  const sql =
    table === undefined ? `copy (select ${list} ${source}) to stdout` : `copy ${table} (${list}) to stdout`;
  return { sql, namesCuts: false };
}

/**
 * The same, without those values that no file can hold, for a table of which the server cannot send a row: a message of
 * more than 1 GB, as which it prints, it does not make. To be asked in the snapshot that is read. `limit`: what a row may
 * take, bytes.
 */
export async function cutCopyStatement(
  client: pg.ClientBase,
  relation: Relation,
  query: CopyQuery,
  limit: number = rowLimit(relation),
): Promise<CopyStatement> {
  const rows = await readLongRows(client, relation, query, limit);
  if (rows.length === 0) return copyStatement(query);
  const columns = query.columns.map((name, column) => {
    const places = rows.filter(({ cuts }) => cuts.some((cut) => cut.column === column));
    if (places.length === 0) return name;
    const list = places.map(({ place }) => `'${place}'`).join(', ');
    return `case when ${PLACE} not in (${list}) then ${name} end as ${name}`;
  });
  const cuts = rows.map(({ place, cuts }) => {
    const list = cuts.map(({ column, bytes }) => `${column}:${bytes}`).join(' ');
    return `when '${place}' then '${list}'`;
  });
  const list = [...columns, `case ${PLACE} ${cuts.join(' ')} end as _rivulet_cuts`].join(', ');
  return { sql: `copy (select ${list} ${query.source}) to stdout`, namesCuts: true };
}

/** What it leaves out is what RowBudget would. */
async function readLongRows(
  client: pg.ClientBase,
  relation: Relation,
  { columns, source }: CopyQuery,
  limit: number,
): Promise<LongRow[]> {
  const isBytea = relation.columns.map(({ mapping }) => mapping === 'bytea');
  // Of text and bytea that is known without reading the value; others are printed for it, if they may be large.
  const lengths = columns.map((name, column) =>
    isBytea[column]
      ? `octet_length(${name})`
      : `case when pg_column_size(${name}) >= ${PRINTED_BYTES} then octet_length(${name}::text) end`,
  );
  const { rows } = await client.query<{ place: string; lengths: (string | null)[] }>(
    `select place, lengths
       from (select ${PLACE} as place, array[${lengths.join(', ')}]::int8[] as lengths ${source}) as rows
      where (select sum(length) from unnest(lengths) as length) > $1`,
    [limit],
  );
  return rows.map(({ place, lengths }) => {
    let left = limit;
    const cuts = lengths.flatMap((length, column) => {
      const bytes = Number(length ?? 0);
      if (bytes < LARGE_VALUE_BYTES) return [];
      if (bytes + VALUE_HEADER_BYTES > left)
        return [{ column, bytes: isBytea[column] ? 2 + 2 * bytes : bytes }];
      left -= bytes + VALUE_HEADER_BYTES;
      return [];
    });
    return { place, cuts };
  });
}
