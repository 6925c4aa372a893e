import { availableParallelism } from 'node:os';
import type pg from 'pg';
import { CHANGE, PART_HEADER_BYTES } from '../change/frame.ts';
import { keyColumns, type Relation } from '../change/relation.ts';
import { ProtocolError, RivuletError } from '../errors.ts';
import { CATALOG_TIMEOUT_MS, clientStream, connect, isTooLong, postgresError } from './connection.ts';
import { tapCopyData } from './copy-data-tap.ts';
import { CopyEncoder, type RowKind, reloadingFrame } from './copy-encoder.ts';
import { type CopyTask, planCopy, readRowFilters } from './copy-plan.ts';
import { copyStatement } from './copy-query.ts';
import { KeyRange, type KeyText, readPublishedPart } from './key-range.ts';
import { isChangedSince, lockUnchanged } from './lock-unchanged.ts';
import { LockWaiters } from './lock-waiters.ts';

/**
 * One core for the thread that writes, the others for the server's copies. On two cores a second connection made
 * the copy of a million rows slower (1.80 instead of 1.61 CPU-s): rows then arrive at two places of the tree.
 */
export const DEFAULT_COPY_CONNECTIONS = Math.min(4, Math.max(1, availableParallelism() - 1));

/** Rows are handed on in frames of about this size. */
const FRAME_BYTES = 256 * 1024;

/** A table that somebody has locked for longer is likely to be another one afterwards. */
const LOCK_TIMEOUT_MS = 200;

export interface CopyProgress {
  readonly tablesDone: number;
  readonly tablesTotal: number;
  readonly rows: number;
  /** Bytes of COPY text received. */
  readonly bytes: number;
  /** Size of the tables in Postgres: what is known before the copy, for an estimate of the time left. */
  readonly totalBytes: number;
  readonly doneBytes: number;
  /** Time left at the rate so far, ms; null before there is a rate. */
  readonly etaMs: number | null;
}

export interface InitialCopyOptions {
  readonly url: string;
  /** Exported by the slot's creation; all connections read this one moment. */
  readonly snapshot: string;
  readonly publication: string;
  /** Gives the published schema as a connection inside the snapshot sees it. */
  readonly readSchema: (client: pg.Client) => Promise<readonly Relation[]>;
  /** Called once, before any row. */
  readonly onSchema: (relations: readonly Relation[]) => Promise<void>;
  /**
   * Takes a part frame: of insert changes (see CopyEncoder), and at the end one of the tables whose rows have to come
   * again. Its memory is written again once this has returned; the copy waits for the promise, if it gives one.
   */
  readonly onFrame: (frame: Buffer) => Promise<void> | undefined;
  readonly onProgress: (progress: CopyProgress) => void;
  readonly connections?: number;
  readonly rangePages?: number;
  /** How long the server may leave a small query without an answer before the copy fails. */
  readonly answerTimeoutMs?: number;
  readonly signal: AbortSignal;
}

export interface CopyResult {
  readonly progress: CopyProgress;
  /**
   * Tables that have to be read again: they changed since the snapshot, before they were whole, and it does not see their
   * rows any more; or one of their rows is longer than the server can send. What has come of them is worth nothing.
   */
  readonly unread: readonly Relation[];
}

/**
 * Reads every published row as of the slot's snapshot, over several connections, largest tables first. Rows
 * arrive in no particular order, but each exactly once. A failure of any connection fails the whole copy: its
 * snapshot cannot be had again.
 *
 * A table (or a range of it) is locked, as by any SELECT, only while it is read, and no connection holds two: whoever
 * wants to change one waits for it for a moment only, and it is then among `unread`.
 */
export async function copyTables(options: InitialCopyOptions): Promise<CopyResult> {
  const { url, snapshot, signal, connections = DEFAULT_COPY_CONNECTIONS } = options;
  const clients: pg.Client[] = [];
  const abort = (): void => {
    for (const client of clients) clientStream(client).destroy();
  };
  signal.addEventListener('abort', abort, { once: true });
  try {
    // All at once: each takes some 20 ms, of which the server works the most.
    const opened = await Promise.allSettled(
      Array.from({ length: 1 + connections }, async (_, index) => {
        const client = await connect(url, {
          applicationName: 'rivulet copy',
          ...(index === 0 ? { queryTimeoutMs: options.answerTimeoutMs ?? CATALOG_TIMEOUT_MS } : {}),
        });
        client.on('error', () => undefined); // reaches us through the running query
        clients.push(client);
        return client;
      }),
    );
    const [control, ...readers] = opened.map((outcome) => {
      if (outcome.status === 'rejected') throw outcome.reason;
      return outcome.value;
    }) as [pg.Client, ...pg.Client[]];
    const pids: number[] = [];
    await using _waiters = new LockWaiters({ control, readers: pids, onLost: abort });
    for (const client of readers) {
      await client.query('begin isolation level repeatable read read only');
      await client.query(`set transaction snapshot '${snapshot}'`);
      pids.push((await client.query('select pg_backend_pid() as pid')).rows[0].pid);
      signal.throwIfAborted();
    }
    const relations = await options.readSchema(readers[0]!);
    const tasks = await planCopy(readers[0]!, options, relations);
    await options.onSchema(relations);
    const progress = new ProgressCounter(relations, tasks);
    const unread = new Map<number, Relation>();
    const queue = [...tasks];
    const report = (): void => options.onProgress(progress.current());
    const timer = setInterval(report, 500);
    try {
      await Promise.all(
        readers.map(async (client) => {
          const copier = await TableCopier.begin(client, options, progress);
          for (let task = queue.shift(); task !== undefined; task = queue.shift()) {
            const { relation } = task;
            if (!unread.has(relation.oid) && !(await copier.copy(task))) unread.set(relation.oid, relation);
            progress.finish(task);
          }
        }),
      );
    } finally {
      clearInterval(timer);
    }
    if (unread.size > 0) await options.onFrame(reloadingFrame([...unread.values()]));
    report();
    return { progress: progress.current(), unread: [...unread.values()] };
  } catch (error) {
    if (signal.aborted) throw new RivuletError('CLOSED', 'the initial copy was cancelled');
    throw error instanceof RivuletError ? error : postgresError(error, 'copying the tables');
  } finally {
    signal.removeEventListener('abort', abort);
    await Promise.allSettled(clients.map((client) => client.end()));
  }
}

/** Copies tables on one connection that is in the slot's snapshot. */
class TableCopier {
  readonly #client: pg.Client;
  readonly #reader: TableReader;

  static async begin(
    client: pg.Client,
    options: InitialCopyOptions,
    progress: ProgressCounter,
  ): Promise<TableCopier> {
    await client.query(`set lock_timeout = ${LOCK_TIMEOUT_MS}`);
    await client.query('savepoint copying');
    return new TableCopier(client, options, progress);
  }

  private constructor(client: pg.Client, options: InitialCopyOptions, progress: ProgressCounter) {
    this.#client = client;
    const { onFrame } = options;
    this.#reader = new TableReader(
      client,
      { onFrame, kind: CHANGE.insert, frameBytes: FRAME_BYTES },
      progress,
    );
  }

  /**
   * False: the snapshot does not see the table's rows any more, somebody who wants to change it goes first, or a row is
   * longer than the server can send.
   */
  async copy(task: CopyTask): Promise<boolean> {
    let isWhole = false;
    try {
      if (await lockUnchanged(this.#client, task)) {
        await this.#reader.read(task);
        isWhole = true;
      }
    } catch (error) {
      const { schema, name } = task.relation;
      if (!isChangedSince(error) && !isTooLong(error))
        throw postgresError(error, `copying ${schema}.${name}`);
    }
    await this.#unlock();
    return isWhole;
  }

  /** The end of a COPY keeps the lock; a cancellation that came too late for it may come now. */
  async #unlock(): Promise<void> {
    for (;;) {
      try {
        await this.#client.query('rollback to savepoint copying');
        return;
      } catch (error) {
        if (!isChangedSince(error)) throw error;
      }
    }
  }
}

/** What is read again, and who takes it. */
export interface TableReading {
  readonly relation: Relation;
  /** Whether a row may be longer than the server can send (see cutCopyStatement): looking for it reads the table once more. */
  readonly hasLongRows: boolean;
  /**
   * Changes of kind CHANGE.reloadRow, about as many bytes at a time as the rereader was told, in memory that is theirs
   * until the promise resolves; the reading waits for it.
   */
  readonly onRows: (rows: Buffer, count: number) => Promise<void>;
}

/** Reads tables again, one at a time, in transactions that the caller begins and ends on the connection. */
export class TableRereader {
  readonly #client: pg.Client;
  readonly #publication: string;
  readonly #reader: TableReader;
  #onRows: TableReading['onRows'] = () => Promise.resolve();

  constructor(client: pg.Client, options: { readonly publication: string; readonly frameBytes: number }) {
    this.#client = client;
    this.#publication = options.publication;
    const onFrame = (frame: Buffer): Promise<void> =>
      this.#onRows(frame.subarray(PART_HEADER_BYTES), frame.readUInt32LE(12));
    this.#reader = new TableReader(client, {
      onFrame,
      kind: CHANGE.reloadRow,
      frameBytes: options.frameBytes,
    });
  }

  /** All rows. */
  async readAll({ relation, hasLongRows, onRows }: TableReading): Promise<void> {
    this.#onRows = onRows;
    const tasks = await planCopy(this.#client, { publication: this.#publication }, [relation]);
    for (const task of tasks) await this.#reader.read({ ...task, hasLongRows });
  }

  /** About `count` rows behind a key (null: from the beginning). Resolves with the last key; null: there are no more. */
  async readBehind(
    { relation, hasLongRows, onRows }: TableReading,
    after: KeyText | null,
    count: number,
  ): Promise<KeyText | null> {
    this.#onRows = onRows;
    const filters = await readRowFilters(this.#client, this.#publication);
    const part = await readPublishedPart(this.#client, relation.oid);
    const range = new KeyRange(relation, part, filters.get(relation.oid));
    const { rows, lastKey } = await this.#reader.read({
      relation,
      query: range.query(after, count),
      key: keyColumns(relation),
      hasLongRows,
    });
    return rows < count ? null : lastKey;
  }
}

/** Runs COPY statements on one connection and encodes what comes, frame by frame, in memory that is written again. */
class TableReader {
  readonly #client: pg.Client;
  readonly #onFrame: InitialCopyOptions['onFrame'];
  readonly #progress: ProgressCounter | undefined;
  readonly #kind: RowKind;
  readonly #frameBytes: number;
  readonly #tap;
  #encoder: CopyEncoder | null = null;
  #rows = 0;
  #key: readonly number[] = [];
  #lastKey: KeyText = [];
  #failure: unknown = null;
  #waiting: Promise<void> | null = null;

  constructor(
    client: pg.Client,
    options: Pick<InitialCopyOptions, 'onFrame'> & {
      readonly kind: RowKind;
      readonly frameBytes: number;
    },
    progress?: ProgressCounter,
  ) {
    this.#client = client;
    this.#onFrame = options.onFrame;
    this.#kind = options.kind;
    this.#frameBytes = options.frameBytes;
    this.#progress = progress;
    this.#tap = tapCopyData(
      client,
      (bytes, from, to) => {
        this.#encoder!.push(bytes, from, to);
        this.#rows++;
        if (this.#progress !== undefined) this.#progress.bytes += to - from;
        return true;
      },
      () => {
        if (this.#key.length > 0) this.#lastKey = this.#encoder!.lastTexts(this.#key);
        this.#handOn(this.#frameBytes);
      },
      (error) => {
        this.#failure = error;
        clientStream(client).destroy(error as Error);
      },
    );
  }

  /** With the values that the last row has in the columns of `key`. */
  async read(
    task: Pick<CopyTask, 'relation' | 'query'> &
      Partial<Pick<CopyTask, 'origin'>> & {
        readonly key?: readonly number[];
        readonly hasLongRows?: boolean;
      },
  ): Promise<{ readonly rows: number; readonly lastKey: KeyText }> {
    const { sql, namesCuts } = await copyStatement(this.#client, task, task.hasLongRows ?? false);
    this.#encoder = new CopyEncoder(task.relation, this.#kind, {
      origin: task.origin,
      reusesMemory: true,
      namesCuts,
    });
    this.#rows = 0;
    this.#key = task.key ?? [];
    let expected: number | null;
    try {
      expected = (await this.#client.query(sql)).rowCount;
    } catch (error) {
      throw this.#failure ?? error;
    }
    this.#handOn(1);
    await this.#waiting;
    if (this.#failure !== null) throw this.#failure;
    const name = `${task.relation.schema}.${task.relation.name}`;
    if (expected !== this.#rows)
      throw new ProtocolError(
        `the copy of ${name} brought ${this.#rows} rows where ${expected} were announced`,
      );
    return { rows: this.#rows, lastKey: this.#lastKey };
  }

  #handOn(atLeastBytes: number): void {
    const encoder = this.#encoder!;
    if (encoder.pendingRows === 0 || encoder.pendingBytes < atLeastBytes) return;
    if (this.#progress !== undefined) this.#progress.rows += encoder.pendingRows;
    const busy = this.#onFrame(encoder.take());
    if (busy === undefined) return;
    // Not reading is all the back-pressure that COPY needs: the server waits on its socket.
    this.#tap.pause();
    const waiting = busy.then(
      () => {
        if (this.#waiting !== waiting) return;
        this.#waiting = null;
        this.#tap.resume();
      },
      (error: unknown) => {
        this.#failure = error;
        clientStream(this.#client).destroy();
      },
    );
    this.#waiting = waiting;
  }
}

class ProgressCounter {
  rows = 0;
  bytes = 0;
  #doneBytes = 0;
  #tablesDone = 0;
  readonly #totalBytes: number;
  readonly #tablesTotal: number;
  readonly #left = new Map<number, number>();
  readonly #startedMs = performance.now();

  constructor(relations: readonly Relation[], tasks: readonly CopyTask[]) {
    this.#tablesTotal = relations.length;
    this.#totalBytes = tasks.reduce((sum, task) => sum + task.bytes, 0);
    for (const { relation } of tasks) this.#left.set(relation.oid, (this.#left.get(relation.oid) ?? 0) + 1);
  }

  finish(task: CopyTask): void {
    this.#doneBytes += task.bytes;
    const left = this.#left.get(task.relation.oid)! - 1;
    this.#left.set(task.relation.oid, left);
    if (left === 0) this.#tablesDone++;
  }

  current(): CopyProgress {
    const elapsedMs = performance.now() - this.#startedMs;
    // Between finished ranges, received text stands in for pages: close enough for an estimate.
    const doneBytes = Math.min(this.#totalBytes, Math.max(this.#doneBytes, this.bytes));
    return {
      tablesDone: this.#tablesDone,
      tablesTotal: this.#tablesTotal,
      rows: this.rows,
      bytes: this.bytes,
      totalBytes: this.#totalBytes,
      doneBytes,
      etaMs: doneBytes === 0 ? null : Math.round((elapsedMs * (this.#totalBytes - doneBytes)) / doneBytes),
    };
  }
}
