import type pg from 'pg';
import type { Relation } from '../change/relation.ts';
import { isTooLong } from './connection.ts';
import { type CutValue, LARGE_VALUE_BYTES, rowLimit, VALUE_HEADER_BYTES } from './row-budget.ts';

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
  readonly cuts: readonly CutValue[];
}

/** Smaller ones, as they are stored, do not print as more than some KB. */
const PRINTED_BYTES = 64;

/** Nor do these as more than 1 GB, unless somebody means them to. */
const PROBED_BYTES = 64 * 1024;

/** Nothing on the server can be longer: https://www.postgresql.org/docs/current/limits.html (field size) */
const MAX_TEXT_BYTES = 1024 ** 3;

/** Tells the rows of a table apart, those of its partitions too. */
const PLACE = `concat_ws(' ', tableoid::int8, ctid)`;

/** `hasLongRows`: see cutCopyStatement(). */
export async function copyStatement(
  client: pg.ClientBase,
  { relation, query }: { readonly relation: Relation; readonly query: CopyQuery },
  hasLongRows: boolean,
): Promise<CopyStatement> {
  return hasLongRows ? await cutCopyStatement(client, relation, query) : wholeCopyStatement(query);
}

function wholeCopyStatement({ columns, source, table }: CopyQuery): CopyStatement {
  const list = columns.join(', ');
  const sql =
    table === undefined ? `copy (select ${list} ${source}) to stdout` : `copy ${table} (${list}) to stdout`;
  return { sql, namesCuts: false };
}

/**
 * A COPY without those values that no file can hold, for a table of which the server cannot send a row: a message of
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
  if (rows.length === 0) return wholeCopyStatement(query);
  const columns = query.columns.map((name, column) => {
    const places = rows.filter(({ cuts }) => cuts.some((cut) => cut.column === column));
    if (places.length === 0) return name;
    const list = places.map(({ place }) => `'${place}'`).join(', ');
    return `case when ${PLACE} not in (${list}) then ${name} end as ${name}`;
  });
  const cuts = rows.map(({ place, cuts }) => `when '${place}' then '${JSON.stringify(cuts)}'`);
  const list = [...columns, `case ${PLACE} ${cuts.join(' ')} end as _rivulet_cuts`].join(', ');
  return { sql: `copy (select ${list} ${query.source}) to stdout`, namesCuts: true };
}

/** What it leaves out is what RowBudget would. */
async function readLongRows(
  client: pg.ClientBase,
  relation: Relation,
  query: CopyQuery,
  limit: number,
): Promise<LongRow[]> {
  // Of text and bytea that is known without reading the value; others are printed for it, if they may be large.
  const columns = query.columns.map((name, column): MeasuredColumn => {
    const isBytea = relation.columns[column]!.mapping === 'bytea';
    return isBytea
      ? { name, isBytea, size: `octet_length(${name})`, length: `octet_length(${name})` }
      : { name, isBytea, size: `pg_column_size(${name})`, length: `octet_length(${name}::text)` };
  });
  const lengths = columns.map(
    ({ size, length }) => `case when ${size} >= ${PRINTED_BYTES} then ${length} end`,
  );
  const rows =
    (await inSavepoint(client, async () => {
      const { rows } = await client.query<RowLengths>(
        `select place, lengths
           from (select ${PLACE} as place, array[${lengths.join(', ')}]::int8[] as lengths ${query.source}) as rows
          where (select sum(length) from unnest(lengths) as length) > $1`,
        [limit],
      );
      return rows;
    })) ?? (await probeRows(client, columns, query.source));
  return rows.flatMap(({ place, lengths }): LongRow[] => {
    let left = limit;
    const cuts = lengths.flatMap((length, column) => {
      const bytes = Number(length ?? 0);
      if (bytes < LARGE_VALUE_BYTES) return [];
      if (bytes + VALUE_HEADER_BYTES > left)
        return [{ column, bytes: columns[column]!.isBytea ? 2 + 2 * bytes : bytes }];
      left -= bytes + VALUE_HEADER_BYTES;
      return [];
    });
    return cuts.length === 0 ? [] : [{ place, cuts }];
  });
}

/** What is asked of a column, as SQL. */
interface MeasuredColumn {
  readonly name: string;
  readonly isBytea: boolean;
  /** As the value is stored. */
  readonly size: string;
  /** As it counts in a row. */
  readonly length: string;
}

interface RowLengths {
  readonly place: string;
  readonly lengths: readonly (string | number | null)[];
}

/**
 * Where a value cannot even be printed on the server: the rows with values that may be so, and each of these by itself.
 * What fails counts as MAX_TEXT_BYTES.
 */
async function probeRows(
  client: pg.ClientBase,
  columns: readonly MeasuredColumn[],
  source: string,
): Promise<RowLengths[]> {
  const isLarge = columns.map(({ size }) => `coalesce(${size} >= ${PROBED_BYTES}, false)`);
  const { rows: found } = await client.query<{
    place: string;
    tableoid: string;
    ctid: string;
    is_large: boolean[];
  }>(
    `select place, tableoid::text, ctid::text, is_large
       from (select ${PLACE} as place, tableoid, ctid, array[${isLarge.join(', ')}]::bool[] as is_large ${source}) as rows
      where true = any (is_large)`,
  );
  const rows: RowLengths[] = [];
  for (const { place, tableoid, ctid, is_large: isLargeHere } of found) {
    const lengths: (number | null)[] = [];
    for (const [column, { name, length }] of columns.entries()) {
      const measure = async (): Promise<number> => {
        const { rows } = await client.query<{ length: number }>(
          `select ${length} as length from (select tableoid, ctid, ${name} ${source}) as rows
            where tableoid = $1 and ctid = $2`,
          [tableoid, ctid],
        );
        return rows[0]!.length;
      };
      lengths.push(isLargeHere[column] ? ((await inSavepoint(client, measure)) ?? MAX_TEXT_BYTES) : null);
    }
    rows.push({ place, lengths });
  }
  return rows;
}

/** Null: it failed, because something would be longer than the server can make it. */
async function inSavepoint<Result>(
  client: pg.ClientBase,
  work: () => Promise<Result>,
): Promise<Result | null> {
  await client.query('savepoint lengths');
  try {
    const result = await work();
    await client.query('release savepoint lengths');
    return result;
  } catch (error) {
    if (!isTooLong(error)) throw error;
    await client.query('rollback to savepoint lengths; release savepoint lengths');
    return null;
  }
}
