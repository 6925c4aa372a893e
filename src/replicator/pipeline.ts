import { join } from 'node:path';
import { setImmediate as nextTurn } from 'node:timers/promises';
import type pg from 'pg';
import type { Batch } from '../change/batch.ts';
import { abortFrame } from '../change/frame.ts';
import type { ChangeLog } from '../changelog/change-log.ts';
import type { Publisher } from '../fanout/publisher.ts';
import type { Log } from '../log.ts';
import type { Lsn } from '../lsn.ts';
import { isMadeBy, isVisible, readPublishedSchema, readPublishedTable } from '../source/catalog.ts';
import { CATALOG_TIMEOUT_MS, connect, disconnect } from '../source/connection.ts';
import { OpenTransactions } from '../source/open-transactions.ts';
import type { MisplacedTable } from '../source/published-tables.ts';
import { type Delivery, ReplicationStream } from '../source/replication-stream.ts';
import type { SchemaTracker } from '../source/schema-tracker.ts';
import { TransactionEncoder } from '../source/transaction-encoder.ts';
import { checkBegun } from './continuity.ts';
import { SchemaWatch } from './schema-watch.ts';
import { SourceFreshness } from './source-freshness.ts';
import type { OpenTransactionsStatus, TablesStatus } from './status.ts';
import { TableReloads } from './table-reloads.ts';

/** What was committed longer ago than this, and comes only now, belongs to a backlog: nobody waits for it in particular. */
const BACKLOG_AGE_MS = 1000;
/**
 * How long a backlog is left to gather in the socket. A reader that waits is woken by every message, which costs the
 * server more than the message; and all that is behind this, log and followers, would be given it bit by bit.
 */
const GATHER_MS = 2;

export interface PipelineOptions {
  readonly url: string;
  readonly slot: string;
  readonly publication: string;
  readonly changeLog: ChangeLog;
  /** Where transactions that are still open are kept: the directory `open` in it. */
  readonly dataDir: string;
  /** Up to where Postgres may forget; never behind what the log has on the disk. */
  readonly durablePosition: () => Lsn;
  readonly publisher: Publisher;
  readonly schema: SchemaTracker;
  readonly log: Log;
  /** In binary it ends by itself, when what can come in no other way has come. */
  readonly delivery: Delivery;
  readonly partBytes?: number;
  /** Whether the server has the hooks that announce schema changes. */
  readonly isAnnounced: () => boolean;
  /** See readMessageKey(). */
  readonly messageKey: () => string;
  readonly readKey: (client: pg.Client) => Promise<void>;
  /** See SchemaWatchOptions. */
  readonly seeTo: (client: pg.Client) => Promise<void>;
  /** See SchemaWatchOptions. */
  readonly onAnnounced: (isAnnounced: boolean) => void;
  /** See SchemaWatchOptions. */
  readonly onMisplaced: (tables: readonly MisplacedTable[]) => void;
  /** Once per connection, when the server has said that it begins. */
  readonly onBegun: () => void;
  /** Once per connection, when the server's first message has come. */
  readonly onStreaming: () => void;
}

/**
 * The way of the data through the replicator, for the life of one connection: stream → encoder → log →
 * followers, all in one thread and without a timer; then, once the log is synced, the acknowledgement. What is
 * streamed of large transactions before their commit waits on the disk in front of the encoder.
 *
 * What it relies on: a batch is published only after it was appended, and Postgres is told to forget only what
 * log.sync() has confirmed. So whatever a crash takes away, of the log's unsynced end or of this process,
 * Postgres sends again, byte for byte the same transactions at the same positions; a follower that was ahead
 * of the log's end skips them. After any failure the whole pipeline is thrown away and a new one starts from
 * the log's position.
 */
export class Pipeline {
  readonly #options: PipelineOptions;
  readonly #encoder: TransactionEncoder;
  readonly #open: OpenTransactions;
  readonly #stream: ReplicationStream;
  /** Where the server's WAL ended when the stream began. */
  #walEnd: Lsn = 0n;
  #keepalive: Lsn = 0n;
  readonly #freshness = new SourceFreshness(() => this.serverPosition);
  #isFlushScheduled = false;
  #isStreaming = false;
  #failure: unknown = null;
  #abort: AbortController = new AbortController();
  #isSyncing = false;
  /** The stream stands still until #settle() is done. */
  #isSettling = false;
  #gathering: NodeJS.Timeout | null = null;
  readonly #reloads: TableReloads;
  /** Where the catalog is looked at; open from the first time on. */
  #catalog: pg.Client | null = null;
  #watch: SchemaWatch | null = null;

  constructor(options: PipelineOptions) {
    this.#options = options;
    const { changeLog, url, publication, schema, log } = options;
    this.#reloads = new TableReloads({
      url,
      publication,
      schema,
      transactions: () => this.#encoder.transactions,
      log,
    });
    this.#encoder = new TransactionEncoder({
      schema: options.schema,
      position: changeLog.position,
      atWatermark: (id) => this.#reloads.atWatermark(id),
      isBinary: options.delivery === 'binary',
      ...(options.partBytes === undefined ? {} : { partBytes: options.partBytes }),
    });
    this.#open = new OpenTransactions({ dir: join(options.dataDir, 'open'), encoder: this.#encoder });
    this.#stream = new ReplicationStream({
      url: options.url,
      slot: options.slot,
      publication: options.publication,
      from: changeLog.position,
      delivery: options.delivery,
      onBegun: (walSender) => {
        options.onBegun();
        this.#walEnd = walSender.walEnd;
        this.#freshness.begun(walSender.walEnd);
        return checkBegun(options.url, { slot: options.slot, changeLog, walSender });
      },
      onMessage: (bytes, from, to) => {
        if (this.#isOverInBinary()) return true;
        this.#freshness.message(bytes, from);
        if (this.#open.handle(bytes, from, to)) return true;
        void this.#settle();
        return false;
      },
      onKeepalive: (position, sentUs) => {
        if (this.#isOverInBinary()) return;
        this.#keepalive = position;
        this.#freshness.keepalive(sentUs);
      },
      onChunk: () => {
        this.#open.flush();
        this.#scheduleFlush();
      },
      durablePosition: options.durablePosition,
    });
  }

  /** End LSN of the last keepalive: the server's position as we know it. */
  get serverPosition(): Lsn {
    const { position } = this.#encoder;
    return this.#keepalive > position ? this.#keepalive : position;
  }

  /** Tables that are being read again, with the rows that have come so far. */
  get reloads(): TablesStatus['reloading'] {
    return this.#reloads.status();
  }

  /** Transactions that are streamed before their commit, and what is kept of them. */
  get openTransactions(): OpenTransactionsStatus {
    const { count, bytes } = this.#open;
    return { count, bytes };
  }

  /** Asks the server for its position at once: somebody waits on an idle database. */
  hasten(): void {
    this.#stream.sendStatus(true);
  }

  /** Streams until `signal` aborts, or there is nothing more to come in binary (resolves), or anything fails (rejects). */
  async run(signal: AbortSignal): Promise<void> {
    const stop = (): void => this.#abort.abort();
    signal.addEventListener('abort', stop, { once: true });
    if (signal.aborted) stop();
    let failure: unknown = null;
    try {
      this.#abortOpenParts();
      await this.#stream.run(this.#abort.signal);
    } finally {
      signal.removeEventListener('abort', stop);
      clearTimeout(this.#gathering ?? undefined);
      await this.#watch?.[Symbol.asyncDispose]();
      await this.#reloads[Symbol.asyncDispose]();
      if (this.#catalog !== null) await disconnect(this.#catalog);
      failure = this.#open.withNeededSpace(this.#failure);
      this.#open[Symbol.dispose]();
      // What arrived whole is kept; what is open comes again. After a failure of the log nothing more goes in.
      const batches = this.#encoder.abandon();
      if (this.#failure === null) for (const batch of batches) this.#append(batch);
    }
    if (failure !== null) throw failure;
  }

  /**
   * Everything that one turn of the event loop brings from the socket (up to 2 MB under load, a single
   * transaction when idle) becomes one append: batching that adapts by itself.
   */
  #scheduleFlush(): void {
    if (this.#isFlushScheduled) return;
    this.#isFlushScheduled = true;
    setImmediate(() => {
      this.#isFlushScheduled = false;
      if (this.#abort.signal.aborted) return;
      try {
        this.#flush();
      } catch (error) {
        this.fail(error);
      }
    });
  }

  #flush(): void {
    const { changeLog, publisher } = this.#options;
    const encoder = this.#encoder;
    if (!this.#isStreaming) {
      this.#isStreaming = true;
      this.#options.onStreaming();
      this.#watch = new SchemaWatch({
        ...this.#options,
        position: () => this.serverPosition,
        onGap: (gap) => this.fail(gap),
      });
    }
    for (const batch of encoder.takeBatches()) this.#append(batch);
    // A keepalive's position may lie inside a transaction that is still coming; it counts only between them. Within
    // a streamed block the server tells nothing of the others.
    if (!encoder.isInTransaction && !this.#open.isInBlock) {
      const heard = this.#freshness.take();
      if (heard !== null) publisher.heard(heard.agoMs, heard.clockUs);
      const position = this.serverPosition;
      if (position > changeLog.position) {
        changeLog.advance(position);
        publisher.advance();
      }
    }
    if (changeLog.durablePosition < changeLog.position) void this.#sync();
    if (!encoder.isInTransaction) this.#reloads.start();
    if (encoder.takeNews()) this.#watch?.soon();
    if (this.#isOverInBinary()) this.#abort.abort();
    else if (this.#freshness.sentAgeMs > BACKLOG_AGE_MS) this.#gather();
  }

  /**
   * Whether what had to come in binary has come: the next transaction behind the log's position, as all before it came as
   * text. If it is another one all the same, the rest has its turn later; if there is none, it was nobody's who commits.
   * What comes behind it is left to the next stream.
   */
  #isOverInBinary(): boolean {
    if (this.#options.delivery !== 'binary') return false;
    const { transactions, isInTransaction } = this.#encoder;
    return !isInTransaction && (transactions > 0 || this.serverPosition >= this.#walEnd);
  }

  /** Lets the server go ahead for a moment. */
  #gather(): void {
    if (this.#isSettling || this.#gathering !== null) return;
    this.#stream.pause();
    this.#gathering = setTimeout(() => {
      this.#gathering = null;
      if (!this.#abort.signal.aborted) this.#stream.resume();
    }, GATHER_MS);
  }

  #append(batch: Batch): void {
    this.#options.changeLog.append(batch);
    this.#options.publisher.publish(batch);
  }

  /** What the pipeline before left in the log without an end comes again from its beginning. */
  #abortOpenParts(): void {
    const { changeLog } = this.#options;
    for (const xid of [...changeLog.openXids]) {
      this.#append({ bytes: abortFrame(xid), endLsn: changeLog.position, closes: 0, opensParts: false });
    }
  }

  /** One sync at a time; what is appended meanwhile is covered by the next. */
  async #sync(): Promise<void> {
    if (this.#isSyncing) return;
    this.#isSyncing = true;
    const { changeLog } = this.#options;
    try {
      while (changeLog.durablePosition < changeLog.position && !this.#abort.signal.aborted)
        await changeLog.sync();
    } catch (error) {
      this.fail(error);
    } finally {
      this.#isSyncing = false;
    }
  }

  /** The stream stands still: at something that the catalog must explain, or at the commit of what is on the disk. */
  async #settle(): Promise<void> {
    this.#isSettling = true;
    try {
      if (!this.#open.isReplayDue) await this.#resolveSchema();
      else
        await this.#open.replay({
          onBlocked: () => this.#resolveSchema(),
          onChunk: async () => {
            this.#flush();
            await nextTurn();
            this.#abort.signal.throwIfAborted();
          },
        });
      this.#isSettling = false;
      this.#stream.resume();
    } catch (error) {
      if (!this.#abort.signal.aborted) this.fail(error);
    }
  }

  /** The encoder waits at a relation, or a hook's failure, that only the catalog can explain. */
  async #resolveSchema(): Promise<void> {
    const { url, publication, schema, log } = this.#options;
    const { blockedBy, xid } = this.#encoder;
    this.#catalog ??= await connect(url, {
      applicationName: 'rivulet catalog',
      queryTimeoutMs: CATALOG_TIMEOUT_MS,
      signal: this.#abort.signal,
    });
    const client = this.#catalog;
    await this.#untilVisible(client, xid);
    if (blockedBy !== null && blockedBy !== 'failed hook') {
      const { oid } = blockedBy;
      log.debug(
        { table: `${blockedBy.schema}.${blockedBy.name}` },
        'a table that no hook announced is looked up in the catalog',
      );
      const published = await readPublishedTable(client, publication, oid, schema.rootsOf(oid));
      const isUnknown = schema.relation(oid) === undefined;
      const isNew = isUnknown && (await isMadeBy(client, oid, xid));
      this.#abort.signal.throwIfAborted();
      this.#encoder.resolve(schema.adopt(blockedBy, { published, isNew, xid }));
      if (isUnknown) this.#watch?.unannounced();
    } else {
      // Somebody may have set up anew, and who has not the key is not believed.
      await this.#options.readKey(client);
      const published = await readPublishedSchema(client, publication);
      this.#abort.signal.throwIfAborted();
      this.#encoder.resolve(schema.refresh(published, xid));
    }
  }

  /**
   * A commit is in the WAL, and so may be streamed, a moment before other sessions see it: its tables must not
   * be looked for in the catalog until then.
   */
  async #untilVisible(client: pg.Client, xid: number): Promise<void> {
    while (!(await isVisible(client, xid))) {
      this.#abort.signal.throwIfAborted();
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
  }

  /** Ends this pipeline with an error. */
  fail(error: unknown): void {
    this.#failure ??= error;
    this.#abort.abort();
  }
}
