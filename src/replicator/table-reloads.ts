import { randomBytes } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import type pg from 'pg';
import { heapsOf, type Relation } from '../change/relation.ts';
import { isInSnapshot, parseSnapshot, type ReloadBegin, type Snapshot } from '../change/snapshot.ts';
import type { Log } from '../log.ts';
import { relationsAsJson, relationsFromJson } from '../source/catalog.ts';
import {
  CATALOG_TIMEOUT_MS,
  type ConnectOptions,
  clientStream,
  connect,
  disconnect,
  isTooLong,
  postgresError,
} from '../source/connection.ts';
import { quoteIdentifier } from '../source/copy-plan.ts';
import { type TableReading, TableRereader } from '../source/initial-copy.ts';
import { isInOrder, isReadByKey, type KeyText } from '../source/key-range.ts';
import type { DueReload, SchemaTracker } from '../source/schema-tracker.ts';
import { type ReloadStep, WATERMARK_PREFIX } from '../source/transaction-encoder.ts';
import { backoffMs } from './backoff.ts';
import type { TablesStatus } from './status.ts';

/** Rows go into the stream in steps of about this size: a replica applies one within some milliseconds. */
const STEP_BYTES = 64 * 1024;
/** A piece of a table that is read by key, in one snapshot: some MB, a fraction of a second. */
const PIECE_ROWS = 20_000;
/**
 * And no faster than this while others commit: server, replicator and replica work on each row, and on two cores
 * everybody else's changes wait for one of them. At twice the rate their p99 is a quarter longer, at half of it no shorter.
 */
const BYTES_PER_MS = 4 * 1024;
/** While nobody does. */
const QUIET_BYTES_PER_MS = 16 * 1024;
const QUIET_AFTER_MS = 1000;
/** The commit that makes a reload due is streamed a moment before other sessions see it; newer ones may follow. */
const FIRST_VISIBILITY_POLL_MS = 1;
const LONGEST_VISIBILITY_POLL_MS = 1000;
/** Somebody who has been writing for so long when his table is to be read is likely to have been forgotten. */
const TOLD_WAIT_MS = 30_000;
/** How often it is looked whether those who were writing have ended. */
const WRITERS_POLL_MS = 50;
/** How often it is looked whether somebody waits for the lock that reading takes. */
const LOCK_POLL_MS = 250;
/** The reading itself waits for no lock longer: it gives up well before the server looks for deadlocks (1 s). */
const LOCK_TIMEOUT_MS = 200;

/** A failure or two are everyday: somebody who waited for the lock went first. */
const TOLD_FAILURES = 3;
/** How often it is looked whether one that failed is due again, or another one has become due. */
const RETRY_POLL_MS = 100;

const NO_ROWS = Buffer.alloc(0);

interface Failure {
  readonly count: number;
  readonly message: string;
  /** By performance.now(). */
  readonly retryAtMs: number;
}

/** A step that waits for its place in the stream. */
interface Watermark {
  readonly id: string;
  readonly step: ReloadStep;
  readonly onArrival: (isWanted: boolean) => void;
}

export interface TableReloadsOptions {
  readonly url: string;
  readonly publication: string;
  readonly schema: SchemaTracker;
  /** How many transactions have come through the stream so far, those of watermarks included. */
  readonly transactions: () => number;
  readonly log: Log;
}

/**
 * Reads tables again whose rows a schema change touched without sending them, beside the stream that goes on.
 *
 * A table with a key is read piece by piece, in the order of the key, each piece in a snapshot of its own; one
 * without in a single snapshot. The rows go into the stream step by step, each inside the transaction of a
 * watermark that is written for it. Which of the table's changes a snapshot contains is decided by transaction id,
 * not by position: a transaction is in the WAL a moment before it is visible. Followers hold the table's changes
 * back from the schema change on, and bring what they have of it to each snapshot before its rows come (see
 * TableReload of the replica).
 *
 * Everything that counts is in the log and in the tracker's state beside it: after a break the reading goes on
 * behind the last whole piece. Reading takes the same lock as a SELECT; if somebody waits behind it, it is given
 * up and tried again.
 */
export class TableReloads implements AsyncDisposable {
  readonly #options: TableReloadsOptions;
  readonly #abort = new AbortController();
  #running: Promise<void> | null = null;
  #current: DueReload | null = null;
  #rows = 0;
  /** Of what is due: how often in a row it has failed, why, and when it is tried again. */
  readonly #failures = new WeakMap<DueReload, Failure>();
  /** With rows that are longer than the server can send. */
  readonly #longTables = new Set<number>();
  /** What is due and waits for others, since when, by performance.now(). */
  #waiting: {
    readonly due: DueReload;
    readonly sinceMs: number;
    readonly writers: readonly string[];
  } | null = null;
  #awaited: Watermark | null = null;
  /** Transactions at the last watermark, and when there was another one between two of them. */
  #transactions = 0;
  #othersAtMs = Number.NEGATIVE_INFINITY;

  constructor(options: TableReloadsOptions) {
    this.#options = options;
  }

  /** The tables that wait for their rows, with those that have come so far. */
  status(): TablesStatus['reloading'] {
    return [...this.#options.schema.reloads.values()].map((due) => ({
      table: this.#name(due),
      rows: due === this.#current ? this.#rows : 0,
      problem: this.#problem(due),
    }));
  }

  /** To be called whenever the schema may have changed: begins with what is due. */
  start(): void {
    if (this.#running !== null || this.#options.schema.reloads.size === 0 || this.#abort.signal.aborted)
      return;
    this.#running = this.#run().finally(() => {
      this.#running = null;
      this.start();
    });
  }

  /** What goes into the transaction of the watermark that just came by. */
  atWatermark(id: string): ReloadStep | null {
    const awaited = this.#awaited;
    if (awaited?.id !== id) return null;
    this.#awaited = null;
    const transactions = this.#options.transactions();
    if (transactions - this.#transactions > 1) this.#othersAtMs = performance.now();
    this.#transactions = transactions;
    // The table may have changed once more, or be gone: then nobody wants the rows.
    const isWanted = this.#isDue(this.#current);
    awaited.onArrival(isWanted);
    return isWanted ? awaited.step : null;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#abort.abort();
    await this.#running;
  }

  async #run(): Promise<void> {
    const { schema, log } = this.#options;
    const { signal } = this.#abort;
    // Kept from one table to the next: a new one costs as much as reading a small table.
    await using sessions = new Sessions(this.#options, signal);
    while (!signal.aborted && schema.reloads.size > 0) {
      const due = this.#next();
      if (due === null) {
        await delay(RETRY_POLL_MS, undefined, { signal }).catch(() => undefined);
        continue;
      }
      try {
        await this.#reload(due, sessions);
        this.#failures.delete(due);
      } catch (error) {
        await sessions.disconnect();
        if (signal.aborted) return;
        if (!this.#isDue(due)) continue;
        if (isTooLong(error) && !this.#longTables.has(due.oid)) {
          this.#longTables.add(due.oid);
          log.warn(
            { table: this.#name(due) },
            'a row is longer than Postgres can send: it is read without what no file can hold',
          );
          continue;
        }
        const count = (this.#failures.get(due)?.count ?? 0) + 1;
        const retryInMs = backoffMs(count - 1);
        const { message } = postgresError(error, 'reading it again');
        this.#failures.set(due, { count, message, retryAtMs: performance.now() + retryInMs });
        log.warn(
          { table: this.#name(due), retryInMs, err: error },
          'reading a table again failed; it is tried again',
        );
      }
    }
  }

  /** One that fails holds up no other. Null: none before a while has passed. */
  #next(): DueReload | null {
    const nowMs = performance.now();
    for (const due of this.#options.schema.reloads.values())
      if ((this.#failures.get(due)?.retryAtMs ?? 0) <= nowMs) return due;
    return null;
  }

  #problem(due: DueReload): string | null {
    const waiting = this.#waiting;
    if (waiting !== null && waiting.due === due && performance.now() - waiting.sinceMs > TOLD_WAIT_MS)
      return `${this.#name(due)}: it is read again once they have ended who are writing to it (${waiting.writers.join(', ')}); until then replicas keep what it had, and their position`;
    const { count, message } = this.#failures.get(due) ?? { count: 0, message: '' };
    if (count < TOLD_FAILURES) return null;
    return `${this.#name(due)}: ${message}; until that succeeds replicas keep what it had, and their position`;
  }

  async #reload(due: DueReload, sessions: Sessions): Promise<void> {
    const { schema, log } = this.#options;
    const startedMs = performance.now();
    this.#current = due;
    this.#rows = 0;
    const { reader, readerPid, rereader, watermarks } = await sessions.connect();
    let isReading = true;
    const watch = setInterval(() => {
      void isWaitedFor(watermarks, readerPid).then((isWaited) => {
        // Where nobody answers any more it would wait for rows until TCP gives up, minutes later.
        if (isWaited !== false && isReading) reader.cut();
      });
    }, LOCK_POLL_MS);
    try {
      const relation = schema.relation(due.oid)!;
      let begin: ReloadBegin | null = null;
      const emit = async (rows: Buffer, rowCount: number, readUpTo?: KeyText | null): Promise<void> => {
        const atMs = performance.now();
        const step = { oid: due.oid, begin, rows, rowCount };
        begin = null;
        await this.#emit(watermarks, readUpTo === undefined ? step : { ...step, readUpTo });
        this.#rows += rowCount;
        const isQuiet = performance.now() - this.#othersAtMs > QUIET_AFTER_MS;
        const pauseMs =
          rows.length / (isQuiet ? QUIET_BYTES_PER_MS : BYTES_PER_MS) - (performance.now() - atMs);
        if (pauseMs >= 1) await delay(pauseMs, undefined, { signal: this.#abort.signal });
      };
      const table: TableReading = {
        relation,
        hasLongRows: this.#longTables.has(due.oid),
        onRows: (rows, count) => emit(rows, count),
      };
      await this.#awaitWriters(reader.client, due);
      const isByKey = !due.isWhole && isReadByKey(relation) && (await isInOrder(reader.client, relation));
      for (let upTo = isByKey ? due.readUpTo : null, isFirst = upTo === null; ; isFirst = false) {
        const snapshot = await this.#beginRead(reader.client, due.oid);
        if (snapshot === null) return;
        begin = { snapshot, isFirst };
        if (isByKey) upTo = await rereader.readBehind(table, upTo, PIECE_ROWS);
        else await rereader.readAll(table);
        await reader.client.query('commit');
        await emit(NO_ROWS, 0, upTo);
        if (upTo === null) break;
      }
    } finally {
      isReading = false;
      clearInterval(watch);
    }
    log.info(
      { table: this.#name(due), rows: this.#rows, ms: Math.round(performance.now() - startedMs) },
      'rows that a schema change touched were read again',
    );
  }

  /**
   * Begins the transaction that reads, once it sees the change and knows the table in the shape that the stream
   * is at: what is newer is on its way, and makes another reload due. Null if that has happened.
   */
  async #beginRead(client: pg.Client, oid: number): Promise<Snapshot | null> {
    const { schema, publication } = this.#options;
    for (let pollMs = FIRST_VISIBILITY_POLL_MS; this.#isDue(this.#current); pollMs *= 2) {
      await client.query('begin isolation level repeatable read read only');
      // The lock comes before the snapshot, so that no rewrite or TRUNCATE lies between them: both show in older
      // snapshots, too. https://www.postgresql.org/docs/current/mvcc-caveats.html
      if (await lock(client, schema.relation(oid)!)) {
        const { rows } = await client.query('select pg_current_snapshot()::text as snapshot');
        const snapshot = parseSnapshot(rows[0].snapshot);
        if (isInSnapshot(snapshot, this.#current!.xid)) {
          const [current] = relationsFromJson(await relationsAsJson(client, publication, [oid]));
          if (current !== undefined && hasSameShape(current, schema.relation(oid)!)) return snapshot;
        }
      }
      await client.query('rollback');
      await delay(Math.min(pollMs, LONGEST_VISIBILITY_POLL_MS), undefined, { signal: this.#abort.signal });
    }
    return null;
  }

  /**
   * What a transaction that was open at the change wrote before it came in the old form, or not at all; and a snapshot
   * has it only when it has ended. Most changes keep writers out; those of a publication or of a type do not.
   */
  async #awaitWriters(client: pg.Client, due: DueReload): Promise<void> {
    const { schema, log } = this.#options;
    // Only now is it certain that who begins to write does so behind the change.
    if ((await this.#beginRead(client, due.oid)) === null) return;
    await client.query('rollback');
    let writers = await writersOf(client, [due.oid, ...heapsOf(schema.relation(due.oid)).keys()]);
    if (writers.length === 0) return;
    log.info(
      { table: this.#name(due), writers: writers.map(({ who }) => who) },
      'a table is read again once those who are writing to it have ended',
    );
    const sinceMs = performance.now();
    try {
      while (writers.length > 0 && this.#isDue(due)) {
        this.#waiting = { due, sinceMs, writers: writers.map(({ who }) => who) };
        await delay(WRITERS_POLL_MS, undefined, { signal: this.#abort.signal });
        const { rows } = await client.query<{ id: string }>(
          'select distinct virtualtransaction as id from pg_locks where virtualtransaction = any ($1)',
          [writers.map(({ id }) => id)],
        );
        const open = new Set(rows.map(({ id }) => id));
        writers = writers.filter(({ id }) => open.has(id));
      }
    } finally {
      this.#waiting = null;
    }
  }

  /** Writes a watermark and waits until it has come by in the stream. */
  async #emit(session: Session, step: ReloadStep): Promise<void> {
    const { signal } = this.#abort;
    signal.throwIfAborted();
    const id = randomBytes(8).toString('hex');
    const arrival = Promise.withResolvers<boolean>();
    const cancel = (): void => arrival.resolve(false);
    signal.addEventListener('abort', cancel, { once: true });
    this.#awaited = { id, step, onArrival: arrival.resolve };
    try {
      await session.query('select pg_logical_emit_message(true, $1, $2)', [WATERMARK_PREFIX, id]);
      if (!(await arrival.promise)) throw new Error('the table changed once more while it was read');
    } finally {
      signal.removeEventListener('abort', cancel);
    }
  }

  #isDue(due: DueReload | null): boolean {
    return due !== null && this.#options.schema.reloads.get(due.oid) === due;
  }

  #name(due: DueReload): string {
    const relation = this.#options.schema.relation(due.oid);
    return relation === undefined ? String(due.oid) : `${relation.schema}.${relation.name}`;
  }
}

/** A connection that ends with the abort signal, whatever it is in the middle of. */
class Session implements AsyncDisposable {
  readonly client: pg.Client;
  #last: Promise<unknown> = Promise.resolve();

  static async open(url: string, options: ConnectOptions): Promise<Session> {
    return new Session(await connect(url, options));
  }

  private constructor(client: pg.Client) {
    this.client = client;
  }

  /** One at a time, in order. */
  query(text: string, values: unknown[] = []): Promise<pg.QueryResult> {
    const result = this.#last.then(() => this.client.query(text, values));
    this.#last = result.catch(() => undefined);
    return result;
  }

  cut(): void {
    clientStream(this.client).destroy();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await disconnect(this.client);
  }
}

interface ReloadSessions {
  readonly reader: Session;
  readonly readerPid: number;
  readonly rereader: TableRereader;
  readonly watermarks: Session;
}

/** The connection that reads and the one that writes watermarks, made when they are needed. */
class Sessions implements AsyncDisposable {
  readonly #url: string;
  readonly #publication: string;
  readonly #signal: AbortSignal;
  #open: Session[] = [];
  #connected: ReloadSessions | null = null;

  constructor({ url, publication }: TableReloadsOptions, signal: AbortSignal) {
    this.#url = url;
    this.#publication = publication;
    this.#signal = signal;
  }

  async connect(): Promise<ReloadSessions> {
    this.#connected ??= await this.#connect();
    return this.#connected;
  }

  async disconnect(): Promise<void> {
    this.#connected = null;
    for (const session of this.#open.splice(0)) await session[Symbol.asyncDispose]();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.disconnect();
  }

  async #connect(): Promise<ReloadSessions> {
    const open = async (options: ConnectOptions): Promise<Session> => {
      const session = await Session.open(this.#url, { ...options, signal: this.#signal });
      this.#open.push(session);
      return session;
    };
    const reader = await open({ applicationName: 'rivulet reload' });
    const watermarks = await open({
      applicationName: 'rivulet watermark',
      queryTimeoutMs: CATALOG_TIMEOUT_MS,
    });
    // With asynchronous commits the watermark would be sent only when the WAL writer comes by.
    await watermarks.query('set synchronous_commit = local');
    await reader.query(`set lock_timeout = ${LOCK_TIMEOUT_MS}`);
    const { rows: self } = await reader.query('select pg_backend_pid() as pid');
    const rereader = new TableRereader(reader.client, {
      publication: this.#publication,
      frameBytes: STEP_BYTES,
    });
    return { reader, readerPid: self[0].pid, rereader, watermarks };
  }
}

/** Whether a statement waits for the reader's lock: it, and all behind it, goes first. Null: there is no answer. */
async function isWaitedFor(session: Session, readerPid: number): Promise<boolean | null> {
  const waiting = await session
    .query('select from pg_locks where not granted and $1 = any (pg_blocking_pids(pid)) limit 1', [readerPid])
    .catch(() => null);
  return waiting === null ? null : waiting.rowCount! > 0;
}

/** Transactions that hold a lock with which these tables can be written to, those that are prepared included. */
async function writersOf(client: pg.Client, heaps: readonly number[]): Promise<Writer[]> {
  const { rows } = await client.query<Writer>(
    `select distinct l.virtualtransaction as id,
            coalesce('process ' || l.pid,
              (select 'prepared transaction ' || quote_literal(p.gid)
                 from pg_locks x join pg_prepared_xacts p on p.transaction = x.transactionid
                where x.pid is null and x.virtualtransaction = l.virtualtransaction), l.virtualtransaction) as who
       from pg_locks l
      where l.locktype = 'relation' and l.granted and l.relation = any ($1::oid[])
        and l.database = (select d.oid from pg_database d where d.datname = current_database())
        and l.mode in ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock')`,
    [heaps],
  );
  return rows;
}

/** A transaction, by its id in pg_locks. */
interface Writer {
  readonly id: string;
  readonly who: string;
}

/** As for a SELECT. False: there is no such table any more, or not yet. */
async function lock(client: pg.Client, { schema, name }: Relation): Promise<boolean> {
  try {
    await client.query(`lock table ${quoteIdentifier(schema)}.${quoteIdentifier(name)} in access share mode`);
    return true;
  } catch (error) {
    if (['42P01', '3F000', '42809'].includes((error as { code?: string }).code ?? '')) return false;
    throw error;
  }
}

/** Whether rows of the one are rows of the other: what indexes and files there are does not matter. */
function hasSameShape(left: Relation, right: Relation): boolean {
  const shape = ({ schema, name, columns }: Relation): string => JSON.stringify([schema, name, columns]);
  return shape(left) === shape(right);
}
