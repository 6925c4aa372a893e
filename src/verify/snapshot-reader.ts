import pg from 'pg';
import { CHANGE, CHANGE_HEADER_BYTES, PART_HEADER_BYTES } from '../change/frame.ts';
import type { LeftOutValue, Relation } from '../change/relation.ts';
import { ProtocolError } from '../errors.ts';
import { readUInt32 } from '../replica/tuple.ts';
import {
  isSameRelation,
  readPublishedSchema,
  relationsAsJson,
  relationsFromJson,
} from '../source/catalog.ts';
import { clientStream, connect, disconnect, isTooLong, postgresError } from '../source/connection.ts';
import { tapCopyData } from '../source/copy-data-tap.ts';
import { CopyEncoder } from '../source/copy-encoder.ts';
import { planCopy } from '../source/copy-plan.ts';
import { copyStatement } from '../source/copy-query.ts';
import { readMessageKey } from '../source/message-key.ts';

/** Rows are looked at in batches of about this size. */
const BATCH_BYTES = 256 * 1024;

/** How often somebody is looked for who waits for the table that is being read. */
const WAITER_INTERVAL_MS = 250;

/** Undefined table, column, schema; cancelled: what a schema change since the snapshot, or stepping aside for one, does. */
const CHANGED_SINCE = new Set(['42P01', '42703', '3F000', '57014']);

/** Takes one row as a tuple of the change format. */
export type TupleHandler = (bytes: Buffer, view: DataView, tuple: number, end: number) => void;

/** Takes what the last row lacks because no row of SQLite can hold it. */
export type LeftOutHandler = (value: LeftOutValue) => void;

export interface ReadRequest {
  readonly relation: Relation;
  /** Restricts the rows, as SQL; undefined: all. */
  readonly condition: string | undefined;
}

/**
 * Reads tables as of one snapshot of Postgres, over one connection, with a second one that sees the present.
 *
 * A table is locked (as by any SELECT) only while it is read, and not longer than until somebody waits for it.
 * TRUNCATE and what rewrites a table empty it for older snapshots too, and names may have come to mean something
 * else, so what was read counts only if the table is still the same behind it.
 * https://www.postgresql.org/docs/current/mvcc-caveats.html
 */
export class SnapshotReader implements AsyncDisposable {
  readonly #client: pg.Client;
  readonly #control: pg.Client;
  readonly #publication: string;
  readonly #pid: number;
  readonly #onRow: (bytes: number) => void;
  readonly #longTables: Set<number>;
  #encoder: CopyEncoder | null = null;
  #onTuple: TupleHandler = () => undefined;
  #onLeftOut: LeftOutHandler = () => undefined;
  #rows = 0;
  #failure: unknown = null;

  private constructor(
    options: Parameters<typeof SnapshotReader.open>[0],
    clients: { readonly client: pg.Client; readonly control: pg.Client; readonly pid: number },
  ) {
    this.#client = clients.client;
    this.#control = clients.control;
    this.#pid = clients.pid;
    this.#publication = options.publication;
    this.#onRow = options.onRow;
    this.#longTables = options.longTables;
    tapCopyData(
      this.#client,
      (bytes, from, to) => {
        this.#encoder!.push(bytes, from, to);
        this.#rows++;
        this.#onRow(to - from);
        if (this.#encoder!.pendingBytes >= BATCH_BYTES) this.#handOn();
        return true;
      },
      () => undefined,
      (error) => {
        this.#failure = error;
        clientStream(this.#client).destroy(error as Error);
      },
    );
  }

  /** Two connections; the snapshot is taken later, with importSnapshot(). */
  static async open(options: {
    readonly url: string;
    readonly publication: string;
    /** Told of every row that is read, with its size as COPY text. */
    readonly onRow: (bytes: number) => void;
    /** See PairOptions. */
    readonly longTables: Set<number>;
    /** Cuts both. */
    readonly signal?: AbortSignal;
  }): Promise<SnapshotReader> {
    const { url, signal } = options;
    const session = { applicationName: 'rivulet verify', ...(signal === undefined ? {} : { signal }) };
    const client = await connect(url, session);
    try {
      const control = await connect(url, session);
      const { rows } = await client.query<{ pid: number }>('select pg_backend_pid() as pid');
      return new SnapshotReader(options, { client, control, pid: rows[0]!.pid });
    } catch (error) {
      await disconnect(client);
      throw error;
    }
  }

  async importSnapshot(snapshot: string): Promise<void> {
    await this.#client.query('begin isolation level repeatable read read only');
    await this.#client.query(`set transaction snapshot '${snapshot}'`);
  }

  /** The published schema as of the snapshot. */
  readSchema(): Promise<Relation[]> {
    return readPublishedSchema(this.#client, this.#publication);
  }

  readMessageKey(): Promise<string | null> {
    return readMessageKey(this.#client);
  }

  /** Size of the tables in Postgres, by OID, bytes: for an estimate of the work. */
  async sizes(relations: readonly Relation[]): Promise<Map<number, number>> {
    const tasks = await planCopy(
      this.#client,
      { publication: this.#publication, rangePages: Number.POSITIVE_INFINITY },
      relations,
    );
    const sizes = new Map<number, number>();
    for (const { relation, bytes } of tasks) sizes.set(relation.oid, (sizes.get(relation.oid) ?? 0) + bytes);
    return sizes;
  }

  /**
   * Does `work`, in which the table may be read any number of times. False: the table is not any more what it was
   * at the snapshot, somebody wants to change it, or a row of it is longer than the server can send, which the next
   * reading allows for; and what was read is worth nothing.
   */
  async withTable(relation: Relation, work: () => Promise<void>): Promise<boolean> {
    const client = this.#client;
    await client.query('savepoint reading');
    const waiters = this.#stepAside(relation);
    let isSame: boolean;
    try {
      await work();
      isSame = await this.#isStill(relation);
    } catch (error) {
      if (isTooLong(error) && !this.#longTables.has(relation.oid)) this.#longTables.add(relation.oid);
      else if (!(error instanceof pg.DatabaseError) || !CHANGED_SINCE.has(error.code ?? ''))
        throw postgresError(error, `reading ${relation.schema}.${relation.name}`);
      isSame = false;
    } finally {
      await waiters.stop();
    }
    // Takes the lock off the table again, which the end of the COPY does not.
    await client.query('rollback to savepoint reading');
    await client.query('release savepoint reading');
    return isSame;
  }

  /** Gives every row to `onTuple`, as a file can hold it; call it inside withTable(). */
  async read(
    { relation, condition }: ReadRequest,
    onTuple: TupleHandler,
    onLeftOut: LeftOutHandler = () => undefined,
  ): Promise<void> {
    const tasks = await planCopy(
      this.#client,
      { publication: this.#publication, rangePages: Number.POSITIVE_INFINITY, condition },
      [relation],
    );
    this.#onTuple = onTuple;
    this.#onLeftOut = onLeftOut;
    for (const task of tasks) {
      const { sql, namesCuts } = await copyStatement(this.#client, task, this.#longTables.has(relation.oid));
      this.#encoder = new CopyEncoder(relation, CHANGE.insert, { namesCuts });
      this.#rows = 0;
      let announced: number | null;
      try {
        announced = (await this.#client.query(sql)).rowCount;
        this.#handOn();
      } catch (error) {
        throw this.#failure ?? error;
      }
      if (announced !== this.#rows) {
        throw new ProtocolError(
          `reading ${relation.schema}.${relation.name} brought ${this.#rows} rows where ${announced} were announced`,
        );
      }
    }
  }

  /** What is published and not mirrored, or not published, now. */
  get control(): pg.Client {
    return this.#control;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    // Not end(): a COPY may be under way, and the server would go on sending it.
    clientStream(this.#client).destroy();
    await Promise.allSettled([this.#client.end(), this.#control.end()]);
  }

  #handOn(): void {
    const encoder = this.#encoder!;
    if (encoder.pendingRows === 0) return;
    const frame = encoder.take();
    const view = new DataView(frame.buffer, frame.byteOffset, frame.length);
    for (let at = PART_HEADER_BYTES; at < frame.length; ) {
      const tuple = at + CHANGE_HEADER_BYTES;
      const end = tuple + readUInt32(frame, at + 5);
      if (frame[at] === CHANGE.leftOut)
        this.#onLeftOut(JSON.parse(frame.utf8Slice(tuple, end)) as LeftOutValue);
      else this.#onTuple(frame, view, tuple, end);
      at = end;
    }
  }

  async #isStill(relation: Relation): Promise<boolean> {
    const [now] = relationsFromJson(await relationsAsJson(this.#control, this.#publication, [relation.oid]));
    return now !== undefined && isSameRelation(relation, now);
  }

  /** Cancels the reading as soon as anybody waits for the table: whoever wants to change it goes first. */
  #stepAside(relation: Relation): { stop(): Promise<void> } {
    const heaps = [relation.oid, ...relation.storage.split(' ').map((heap) => Number.parseInt(heap, 10))];
    let isStopped = false;
    let looking: Promise<unknown> = Promise.resolve();
    const look = (): Promise<unknown> =>
      this.#control
        .query(
          `select pg_cancel_backend($1) from pg_locks
            where not granted and locktype = 'relation' and relation = any ($2::oid[]) and pid <> $1 limit 1`,
          [this.#pid, heaps.filter((oid) => !Number.isNaN(oid))],
        )
        .catch(() => undefined);
    const timer = setInterval(() => {
      if (!isStopped) looking = looking.then(() => (isStopped ? undefined : look()));
    }, WAITER_INTERVAL_MS);
    return {
      stop: async () => {
        isStopped = true;
        clearInterval(timer);
        await looking;
      },
    };
  }
}
