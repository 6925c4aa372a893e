import type pg from 'pg';
import type { Relation } from '../change/relation.ts';
import { quoteIdentifier } from './copy-plan.ts';

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

/** The rows behind one key, up to and with another, in the server's own order. */
export class KeyRange {
  readonly #table: string;
  readonly #columns: string;
  readonly #keys: readonly string[];
  readonly #conditions: readonly string[];

  /** `filter`: which rows are published, as SQL. */
  constructor(relation: Relation, part: PublishedPart, filter: string | undefined) {
    // Tables that inherit from a plain one are published by themselves.
    const only = part.isPartitioned ? '' : 'only ';
    this.#table = `${only}${quoteIdentifier(relation.schema)}.${quoteIdentifier(relation.name)}`;
    this.#columns = relation.columns.map((column) => quoteIdentifier(column.name)).join(', ');
    this.#keys = relation.columns
      .filter((column) => column.keyOrdinal !== null)
      .sort((a, b) => a.keyOrdinal! - b.keyOrdinal!)
      .map((column) => quoteIdentifier(column.name));
    this.#conditions = [
      ...(filter === undefined ? [] : [`(${filter})`]),
      ...(part.unlogged.length === 0 ? [] : [`tableoid not in (${part.unlogged.join(', ')})`]),
    ];
  }

  /** The key of the row that is `count` rows behind `after` (null: the beginning); null if there are not so many. */
  async end(client: pg.Client, after: KeyText | null, count: number): Promise<KeyText | null> {
    const keys = this.#keys.join(', ');
    const { rows } = await client.query({
      text: `select ${this.#keys.map((key) => `${key}::text`).join(', ')} from ${this.#table}${this.#where(after, null)}
              order by ${keys} offset ${count - 1} limit 1`,
      rowMode: 'array',
    });
    return (rows[0] as KeyText | undefined) ?? null;
  }

  /** null: from the beginning, or to the end. */
  copySql(after: KeyText | null, upTo: KeyText | null): string {
    return `copy (select ${this.#columns} from ${this.#table}${this.#where(after, upTo)}) to stdout`;
  }

  #where(after: KeyText | null, upTo: KeyText | null): string {
    const conditions = [...this.#conditions];
    if (after !== null) conditions.push(this.#comparison('>', after));
    if (upTo !== null) conditions.push(this.#comparison('<=', upTo));
    return conditions.length === 0 ? '' : ` where ${conditions.join(' and ')}`;
  }

  /** Row by row as the index has it: https://www.postgresql.org/docs/current/functions-comparisons.html#ROW-WISE-COMPARISON */
  #comparison(operator: '>' | '<=', key: KeyText): string {
    const values = key.map((text) => `'${text.replaceAll("'", "''")}'`);
    return `(${this.#keys.join(', ')}) ${operator} (${values.join(', ')})`;
  }
}
