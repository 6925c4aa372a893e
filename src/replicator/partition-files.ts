import type pg from 'pg';
import { partitionHeaps, type Relation } from '../change/relation.ts';
import type { Log } from '../log.ts';
import { namesOfReadable } from '../source/catalog.ts';
import type { SchemaTracker } from '../source/schema-tracker.ts';

/** Rows that are looked at in a new file: those that were moved there lie at its beginning. */
const ROWS_LOOKED_AT = 10_000;

interface PartitionFile {
  readonly root: number;
  readonly heap: number;
  readonly file: string;
}

interface Seen {
  readonly file: string;
  /** The oldest transaction that was open then: who was still to write has this id, or a newer one. */
  readonly horizon: string;
}

/**
 * TRUNCATE of a single partition is not sent: where publish_via_partition_root is on, its rows are the root's. It gives the
 * partition another file, and so do VACUUM FULL and CLUSTER, which no event trigger tells of either.
 * https://www.postgresql.org/docs/current/sql-createpublication.html
 */
export class PartitionFiles {
  readonly #schema: SchemaTracker;
  readonly #log: Log;
  /** By partition, when it was last in the file that the stream knows. */
  readonly #seen = new Map<number, Seen>();

  constructor(schema: SchemaTracker, log: Log) {
    this.#schema = schema;
    this.#log = log;
  }

  /** Roots of partitions that may have been truncated, and the files that say so. */
  async emptied(client: pg.Client): Promise<ReadonlyMap<number, string>> {
    const partitions = partitionsOf(this.#schema.relations);
    if (partitions.length === 0) return new Map();
    const { horizon, files } = await readFiles(client, partitions);
    const found = new Map<number, string>();
    for (const { root, heap, file } of partitions) {
      const now = files?.[heap] ?? file;
      if (now === file) this.#seen.set(heap, { file, horizon });
      else if (await this.#hasKeptRows(client, heap, file)) {
        this.#schema.moved(root, heap, now);
        this.#log.info({ partition: heap }, 'a partition has another file, with the rows that it had');
      } else found.set(root, `${heap}:${now}`);
    }
    return found;
  }

  /**
   * Those partitions of these tables that have another file and no row in it, and keeps everybody from writing to them until
   * the transaction ends: at its place in the stream they are without a row. Of others that cannot be told.
   */
  async lockEmpty(client: pg.Client, roots: readonly number[]): Promise<readonly number[]> {
    const partitions = partitionsOf(roots.flatMap((oid) => this.#schema.relation(oid) ?? []));
    if (partitions.length === 0) return [];
    const { files } = await readFiles(client, partitions);
    const empty: number[] = [];
    for (const { heap, file } of partitions) {
      if (files?.[heap] === file) continue;
      const [name] = await namesOfReadable(client, [heap]);
      if (name === undefined) continue;
      await client.query('savepoint looking');
      try {
        await client.query(`lock table only ${name} in share mode`);
        const { rows } = await client.query(`select from only ${name} limit 1`);
        if (rows.length === 0) empty.push(heap);
      } catch (error) {
        this.#log.debug(
          { err: error, partition: heap },
          'a partition that has another file cannot be locked',
        );
        await client.query('rollback to savepoint looking');
      }
    }
    return empty;
  }

  /**
   * Whether the new file has a row from before the partition left the old one: then all were moved there, and no TRUNCATE
   * came between. False where that cannot be told, for whatever reason: row-level security, a lock.
   */
  async #hasKeptRows(client: pg.Client, heap: number, file: string): Promise<boolean> {
    const seen = this.#seen.get(heap);
    if (seen?.file !== file) return false;
    const [name] = await namesOfReadable(client, [heap]);
    if (name === undefined) return false;
    try {
      const { rows } = await client.query<{ has_kept: boolean | null }>(
        `select bool_or(age(f.xmin) > age($1::xid)) as has_kept
           from (select t.xmin from only ${name} t limit ${ROWS_LOOKED_AT}) f`,
        [seen.horizon],
      );
      return rows[0]!.has_kept === true;
    } catch (error) {
      this.#log.debug({ err: error, partition: heap }, 'a partition that has another file cannot be read');
      return false;
    }
  }
}

function partitionsOf(relations: readonly Relation[]): readonly PartitionFile[] {
  return relations.flatMap((relation) =>
    partitionHeaps(relation).map(([heap, file]) => ({ root: relation.oid, heap, file })),
  );
}

/** As they are now, and the oldest transaction that is open. */
async function readFiles(
  client: pg.Client,
  partitions: readonly PartitionFile[],
): Promise<{ readonly horizon: string; readonly files: Readonly<Record<string, string>> | null }> {
  const { rows } = await client.query<{ horizon: string; files: Readonly<Record<string, string>> | null }>(
    `select pg_snapshot_xmin(pg_current_snapshot())::xid::text as horizon,
            (select json_object_agg(c.oid, c.relfilenode::text) from pg_class c where c.oid = any ($1::oid[])) as files`,
    [partitions.map(({ heap }) => heap)],
  );
  return rows[0]!;
}
