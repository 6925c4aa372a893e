import type pg from 'pg';
import { keyColumns, type Relation } from '../change/relation.ts';
import { quoteIdentifier } from './copy-plan.ts';
import type { CopyQuery } from './copy-query.ts';

/** The values of a primary key, as Postgres prints them, in the order of the key. */
export type KeyText = readonly string[];

/**
 * Whether a table can be read piece by piece, each in a snapshot of its own: rows stay in their piece unless their
 * key changes, and changes of other columns find them by it.
 */
export function isReadByKey(relation: Relation): boolean {
  return (
    relation.replicaIdentity === 'default' &&
    !relation.keyIsDeferrable &&
    relation.columns.some((column) => column.keyOrdinal !== null)
  );
}

/** undefined_function: there is no ordering operator. */
const NO_ORDER = '42883';

/**
 * Whether the server can put the key in order. It cannot, if that is an array of what has no order, of which a primary key
 * holds one row at most.
 */
export async function isInOrder(client: pg.Client, relation: Relation): Promise<boolean> {
  const keys = keyColumns(relation).map((index) => relation.columns[index]!.typeName);
  try {
    await client.query(
      `select ${keys.map((type) => `null::${type}`).join(', ')} order by ${keys.map((_, index) => index + 1).join(', ')}`,
    );
  } catch (error) {
    if ((error as { code?: string }).code === NO_ORDER) return false;
    // The types may have changed once more: then there is another reading to come.
  }
  return true;
}

/** What of a table's rows is published, beside the publication's row filter. */
export interface PublishedPart {
  readonly isPartitioned: boolean;
  /** OIDs of partitions that are unlogged: nobody is told of their rows. */
  readonly unlogged: readonly number[];
}

export async function readPublishedPart(client: pg.Client, oid: number): Promise<PublishedPart> {
  const { rows } = await client.query<PublishedPart>(
    `select exists (select from pg_partitioned_table where partrelid = $1) as "isPartitioned",
            array(select t.relid::oid::int8::float8 from pg_partition_tree($1::oid) t join pg_class c on c.oid = t.relid
                   where c.relpersistence = 'u') as unlogged`,
    [oid],
  );
  return rows[0]!;
}

/** The rows behind one key, so many of them, in the server's own order. */
export class KeyRange {
  readonly #table: string;
  readonly #columns: readonly string[];
  readonly #keys: readonly string[];
  readonly #conditions: readonly string[];

  /** `filter`: which rows are published, as SQL. */
  constructor(relation: Relation, part: PublishedPart, filter: string | undefined) {
    // Tables that inherit from a plain one are published by themselves.
    const only = part.isPartitioned ? '' : 'only ';
    this.#table = `${only}${quoteIdentifier(relation.schema)}.${quoteIdentifier(relation.name)}`;
    this.#columns = relation.columns.map((column) => quoteIdentifier(column.name));
    this.#keys = keyColumns(relation).map((index) => quoteIdentifier(relation.columns[index]!.name));
    this.#conditions = [
      ...(filter === undefined ? [] : [`(${filter})`]),
      ...(part.unlogged.length === 0 ? [] : [`tableoid not in (${part.unlogged.join(', ')})`]),
    ];
  }

  /**
   * At most `count` rows behind `after` (null: from the beginning), in order. One walk along the key's index: the server
   * sorts nothing, and reads no row of another piece.
   */
  query(after: KeyText | null, count: number): CopyQuery {
    return {
      columns: this.#columns,
      source: `from ${this.#table}${this.#where(after)} order by ${this.#keys.join(', ')} limit ${count}`,
    };
  }

  #where(after: KeyText | null): string {
    const conditions = [...this.#conditions];
    if (after !== null) conditions.push(this.#isBehind(after));
    return conditions.length === 0 ? '' : ` where ${conditions.join(' and ')}`;
  }

  /** Row by row as the index has it: https://www.postgresql.org/docs/current/functions-comparisons.html#ROW-WISE-COMPARISON */
  #isBehind(key: KeyText): string {
    const values = key.map((text) => `'${text.replaceAll("'", "''")}'`);
    return `(${this.#keys.join(', ')}) > (${values.join(', ')})`;
  }
}
