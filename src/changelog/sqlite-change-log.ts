import { existsSync, mkdirSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { crc32 } from 'node:zlib';
import Database from 'better-sqlite3';
import type { Batch } from '../change/batch.ts';
import { abortFrame } from '../change/frame.ts';
import { ProtocolError, RivuletError } from '../errors.ts';
import { formatLsn, type Lsn } from '../lsn.ts';
import { WalKeeper } from '../replica/checkpointer.ts';
import type { ChangeLog, LogCursor, LogSize, Retention, SourceFacts } from './change-log.ts';
import { LogMeta } from './log-meta.ts';
import { OpenParts } from './open-parts.ts';
import { type BatchFacts, lastPrunable } from './retention.ts';
import { SqliteCursor } from './sqlite-cursor.ts';
import { explainSqliteError } from './sqlite-error.ts';
import { WalSyncer } from './wal-syncer.ts';

/** Name of the log inside the data directory. */
export const LOG_FILE = 'log.db';

/** Larger than SQLite's default, since batches under load are hundreds of kB: fewer overflow pages to chain. */
const PAGE_BYTES = 8192;

/** Batches looked at in one step of pruning, and bytes deleted in one: each step takes about a millisecond or two. */
const PRUNE_WINDOW_BATCHES = 256;
const PRUNE_STEP_BYTES = 2 * 1024 * 1024;

/** The log's -wal file is brought into the log in the background once it is this large. */
const WAL_LIMIT_BYTES = 64 * 1024 * 1024;
/** What is appended is read again soon, by followers that are a little behind, or not at all. SQLite's own default is 16 MB. */
const CACHE_KIB = 4 * 1024;
const KEEP_WAL_WRITES = 128;
const KEEP_WAL_BYTES = 1024 * 1024;

export interface NewChangeLog {
  readonly dir: string;
  readonly epoch: string;
  /** Where history begins: the position of the first snapshot. */
  readonly startPosition: Lsn;
  readonly source: SourceFacts;
  readonly sourceState: string;
}

/** Makes the log of a new history in `dir`, which must not hold one. */
export function createChangeLog(options: NewChangeLog): SqliteChangeLog {
  const file = join(options.dir, LOG_FILE);
  if (existsSync(file)) throw new RivuletError('FILE_UNUSABLE', `${file} exists already`);
  mkdirSync(options.dir, { recursive: true });
  // Built aside, so that a crash leaves no log without its tables: the next start would not know what to make of it.
  const building = `${file}.new`;
  for (const suffix of ['', '-journal']) rmSync(`${building}${suffix}`, { force: true });
  openDatabase(building, (db) => {
    db.pragma(`page_size = ${PAGE_BYTES}`);
    db.exec('BEGIN IMMEDIATE');
    db.exec(`
      CREATE TABLE batch (
        seq INTEGER PRIMARY KEY,
        end_lsn INTEGER NOT NULL,
        first_seq INTEGER NOT NULL,
        appended_at INTEGER NOT NULL,
        end_offset INTEGER NOT NULL,
        crc INTEGER NOT NULL,
        bytes BLOB NOT NULL
      ) STRICT;
      CREATE TABLE meta (key TEXT PRIMARY KEY, value ANY NOT NULL) STRICT, WITHOUT ROWID;
    `);
    LogMeta.create(db, options);
    db.exec('COMMIT');
    db.close();
  });
  renameSync(building, file);
  return openChangeLog(options);
}

/** Opens the log in `dir`. Transactions that its end holds only in part are aborted in it: they will come again. */
export function openChangeLog(options: { readonly dir: string }): SqliteChangeLog {
  const file = join(options.dir, LOG_FILE);
  if (!existsSync(file)) throw new RivuletError('FILE_UNUSABLE', `${file} does not exist`);
  return openDatabase(file, (db) => {
    prepareConnection(db);
    return new SqliteChangeLog(db, file);
  });
}

/** Removes the log in `dir`, which nobody may have open. */
export function removeChangeLog(dir: string): void {
  for (const suffix of ['', '-wal', '-shm']) rmSync(join(dir, `${LOG_FILE}${suffix}`), { force: true });
}

function openDatabase<T>(file: string, use: (db: Database.Database) => T): T {
  let db: Database.Database | null = null;
  try {
    db = new Database(file);
    return use(db);
  } catch (cause) {
    db?.close();
    throw explainSqliteError(cause, `the change log ${file} cannot be opened`);
  }
}

function prepareConnection(db: Database.Database): void {
  db.pragma('journal_mode = WAL');
  db.pragma('synchronous = NORMAL');
  // The owner checkpoints when nothing waits for it; inside an append it would be in the way of every follower.
  db.pragma('wal_autocheckpoint = 0');
  db.pragma('journal_size_limit = -1');
  db.pragma(`cache_size = -${CACHE_KIB}`);
}

interface StoredFacts {
  readonly seq: bigint;
  readonly end_lsn: bigint;
  readonly first_seq: bigint;
  readonly appended_at: bigint;
  readonly end_offset: bigint;
}

/**
 * The change log in one SQLite file, in WAL mode with synchronous=NORMAL.
 *
 * Durability. An append is one INSERT, a write to the -wal file without a sync: the operating system has it,
 * so the death of this process loses nothing. `sync` is an fdatasync of the -wal file, off this thread. That
 * makes everything appended before durable, because a commit in WAL mode consists of the frames in the -wal
 * file and nothing else, each with a checksum that continues the one before, so recovery finds exactly the
 * prefix that reached the disk; and because what is no longer in the -wal file is in the database file for
 * good: with synchronous=NORMAL a checkpoint syncs the -wal file before it copies, and the database file
 * before the -wal file is begun anew.
 * https://www.sqlite.org/wal.html#performance_considerations https://www.sqlite.org/pragma.html#pragma_synchronous
 * https://www.sqlite.org/walformat.html#recovery
 *
 * Positions. `end_lsn` never falls from one batch to the next; a batch that closes no transaction repeats the
 * position it stands at. So the batch that a follower needs first is found by halving, without an index, and
 * the position is the newest batch's, or that of the last `advance` if it is higher.
 */
export class SqliteChangeLog implements ChangeLog {
  readonly #db: Database.Database;
  readonly #meta: LogMeta;
  readonly #syncer: WalSyncer;
  readonly #insert: Database.Statement<[number, bigint, number, number, number, number, Buffer]>;
  readonly #endLsnOf: Database.Statement<[number], bigint>;
  readonly #firstSeqOf: Database.Statement<[number], number>;
  readonly #endOffsetOf: Database.Statement<[number], number>;
  readonly #walKeeper: WalKeeper;
  readonly #open = new OpenParts();
  #position: Lsn;
  #headSeq: number;
  #oldestSeq: number;
  /** Bytes of all batches ever appended, up to the newest one, and up to the newest one that was pruned. */
  #endOffset: number;
  #oldestOffset: number;
  #unkeptBytes = 0;
  #unkeptWrites = 0;
  #durablePosition: Lsn;
  #pruning: Promise<void> | null = null;
  #isClosed = false;

  constructor(db: Database.Database, file: string) {
    this.#db = db;
    this.#meta = new LogMeta(db, file);
    this.#insert = db.prepare(
      'INSERT INTO batch (seq, end_lsn, first_seq, appended_at, end_offset, crc, bytes) VALUES (?, ?, ?, ?, ?, ?, ?)',
    );
    this.#endLsnOf = db
      .prepare<[number], bigint>('SELECT end_lsn FROM batch WHERE seq = ?')
      .pluck()
      .safeIntegers();
    this.#firstSeqOf = db.prepare<[number], number>('SELECT first_seq FROM batch WHERE seq = ?').pluck();
    this.#endOffsetOf = db.prepare<[number], number>('SELECT end_offset FROM batch WHERE seq = ?').pluck();
    this.#walKeeper = new WalKeeper({ file, limitBytes: WAL_LIMIT_BYTES });
    this.#oldestSeq = this.#meta.oldestSeq;
    this.#headSeq =
      (db.prepare('SELECT max(seq) FROM batch').pluck().get() as number | null) ?? this.#oldestSeq - 1;
    const newest = this.#endLsnOf.get(this.#headSeq) ?? 0n;
    this.#position = newest > this.#meta.advancedTo ? newest : this.#meta.advancedTo;
    this.#oldestOffset = this.#meta.oldestOffset;
    this.#endOffset = this.#endOffsetOf.get(this.#headSeq) ?? this.#oldestOffset;
    this.#deleteUpTo(this.#oldestSeq - 1);
    this.#abortOpenParts();
    // A write of our own makes sure that there is a -wal file to sync.
    this.#meta.advance(this.#position);
    this.#syncer = new WalSyncer(`${file}-wal`);
    this.#durablePosition = this.#position;
  }

  get epoch(): string {
    return this.#meta.epoch;
  }

  get source(): SourceFacts {
    return this.#meta.source;
  }

  get sourceState(): string {
    return this.#meta.sourceState;
  }

  get position(): Lsn {
    return this.#position;
  }

  get durablePosition(): Lsn {
    return this.#durablePosition;
  }

  get oldestPosition(): Lsn {
    return this.#meta.oldestPosition;
  }

  get headSeq(): number {
    return this.#headSeq;
  }

  get openXids(): readonly number[] {
    return this.#open.xids;
  }

  get isBroken(): boolean {
    return this.#syncer.hasFailed;
  }

  append(batch: Batch): void {
    const seq = this.#headSeq + 1;
    let { endLsn } = batch;
    if (endLsn < this.#position) endLsn = this.#position;
    const { bytes, sourceState } = batch;
    const firstSeq = this.#open.firstSeq ?? seq;
    const endOffset = this.#endOffset + bytes.length;
    const insert = (): unknown =>
      this.#insert.run(seq, endLsn, firstSeq, Date.now(), endOffset, crc32(bytes), bytes);
    try {
      if (sourceState === undefined) {
        insert();
      } else {
        this.#db.exec('BEGIN');
        insert();
        this.#meta.writeSourceState(sourceState);
        this.#db.exec('COMMIT');
      }
    } catch (cause) {
      // SQLite may have rolled back by itself.
      if (this.#db.inTransaction) this.#db.exec('ROLLBACK');
      throw explainSqliteError(cause, 'appending to the change log failed', { bytes: bytes.length });
    }
    if (sourceState !== undefined) this.#meta.sourceState = sourceState;
    this.#headSeq = seq;
    this.#position = endLsn;
    this.#endOffset = endOffset;
    if (batch.opensParts || this.#open.firstSeq !== null) this.#open.follow(bytes, seq);
    this.#keepWal(bytes.length);
  }

  advance(position: Lsn): void {
    if (position <= this.#position) return;
    try {
      this.#meta.advance(position);
    } catch (cause) {
      throw explainSqliteError(cause, 'moving the position of the change log failed');
    }
    this.#position = position;
    this.#keepWal(0);
  }

  async sync(): Promise<Lsn> {
    // What this call answers for is what was appended before it; the syncer may cover more.
    const position = this.#position;
    await this.#syncer.sync();
    if (position > this.#durablePosition) this.#durablePosition = position;
    return this.#durablePosition;
  }

  openCursor(position: Lsn): LogCursor {
    if (position < this.oldestPosition) {
      throw new RivuletError(
        'POSITION_TOO_OLD',
        `the log begins at ${formatLsn(this.oldestPosition)}, behind ${formatLsn(position)}`,
        {
          hint: 'the follower was away for longer than the log is kept (--retain-age, --retain-size); it starts from a snapshot again',
          facts: { position, oldestPosition: this.oldestPosition },
        },
      );
    }
    if (position > this.#position) {
      throw new RivuletError(
        'POSITION_AHEAD',
        `the log ends at ${formatLsn(this.#position)}, before ${formatLsn(position)}`,
        {
          facts: { position, newestPosition: this.#position },
        },
      );
    }
    const seq = this.#firstBehind(position);
    if (seq <= this.#headSeq) return this.openCursorAt(this.#firstSeqOf.get(seq) ?? seq);
    return this.openCursorAt(this.#open.firstSeq ?? seq);
  }

  openCursorAt(seq: number): LogCursor {
    return new SqliteCursor(this.#db, seq, () => ({ oldestSeq: this.#oldestSeq, headSeq: this.#headSeq }));
  }

  size(): LogSize {
    return { bytes: this.#endOffset - this.#oldestOffset, batches: this.#headSeq - this.#oldestSeq + 1 };
  }

  bytesAfter(position: Lsn): number {
    const seq = this.#firstBehind(position);
    return this.#endOffset - (this.#endOffsetOf.get(seq - 1) ?? this.#oldestOffset);
  }

  /** Gives way to other work between its steps, and whenever another call is still at it. */
  prune(retention: Retention): Promise<void> {
    this.#pruning ??= this.#prune(retention)
      .catch((error: unknown) => {
        // Deleting writes to the -wal file first. The caller tries again on its next round anyway.
        if (!(error instanceof RivuletError && error.code === 'DISK_FULL')) throw error;
      })
      .finally(() => {
        this.#pruning = null;
      });
    return this.#pruning;
  }

  async close(): Promise<void> {
    if (this.#isClosed) return;
    this.#isClosed = true;
    await this.#pruning?.catch(() => undefined);
    await this.#syncer.close();
    this.#walKeeper.close();
    this.#db.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** The smallest sequence number whose batch ends behind `position`; headSeq + 1 if none does. */
  #firstBehind(position: Lsn): number {
    let low = this.#oldestSeq;
    let high = this.#headSeq + 1;
    while (low < high) {
      const middle = Math.floor((low + high) / 2);
      const endLsn = this.#endLsnOf.get(middle);
      if (endLsn === undefined) throw new ProtocolError(`the change log lacks batch ${middle}`);
      if (endLsn > position) high = middle;
      else low = middle + 1;
    }
    return low;
  }

  #abortOpenParts(): void {
    const firstSeq = this.#firstSeqOf.get(this.#headSeq);
    if (firstSeq === undefined) return;
    const tail = this.openCursorAt(firstSeq) as SqliteCursor;
    for (
      let seq = tail.nextSeq, bytes = tail.next(0);
      bytes !== null;
      seq = tail.nextSeq, bytes = tail.next(0)
    ) {
      this.#open.follow(bytes, seq);
    }
    for (const xid of this.#open.xids) {
      this.append({ bytes: abortFrame(xid), endLsn: this.#position, closes: 0, opensParts: false });
    }
  }

  async #prune(retention: Retention): Promise<void> {
    const window = this.#db
      .prepare<[number, number], StoredFacts>(
        `SELECT seq, end_lsn, first_seq, appended_at, end_offset FROM batch
         WHERE seq >= ? ORDER BY seq LIMIT ?`,
      )
      .safeIntegers();
    for (let limit = PRUNE_WINDOW_BATCHES; !this.#isClosed; ) {
      const oldest = window.all(this.#oldestSeq, limit).map(toFacts);
      const last = lastPrunable({ oldest, endOffset: this.#endOffset, nowMs: Date.now() }, retention);
      if (last !== null) {
        // First nobody can begin there any more, then the rows go: a crash between leaves rubbish, no gap.
        this.#write('pruning the change log failed', () =>
          this.#meta.prunedTo(last.seq + 1, last.endLsn, last.endOffset),
        );
        this.#oldestSeq = last.seq + 1;
        this.#oldestOffset = last.endOffset;
        await this.#deleteInSteps(oldest.filter(({ seq }) => seq <= last.seq));
        limit = PRUNE_WINDOW_BATCHES;
      } else {
        // One transaction's parts may fill the whole window.
        const isCut = oldest.length < limit || oldest.at(-1)!.firstSeq > oldest[0]!.seq;
        if (isCut) return;
        limit *= 4;
        await nextTurn();
      }
    }
  }

  async #deleteInSteps(batches: readonly BatchFacts[]): Promise<void> {
    let fromOffset = batches[0]!.endOffset;
    for (const [index, batch] of batches.entries()) {
      if (batch.endOffset - fromOffset < PRUNE_STEP_BYTES && index + 1 < batches.length) continue;
      this.#write('pruning the change log failed', () => this.#deleteUpTo(batch.seq));
      this.#keepWal(batch.endOffset - fromOffset);
      fromOffset = batch.endOffset;
      await nextTurn();
      if (this.#isClosed) return;
    }
  }

  #deleteUpTo(seq: number): void {
    this.#db.prepare('DELETE FROM batch WHERE seq <= ?').run(seq);
  }

  /** Looked at once in a while: an append should not pay for it. */
  #keepWal(bytes: number): void {
    this.#unkeptBytes += bytes;
    if (++this.#unkeptWrites < KEEP_WAL_WRITES && this.#unkeptBytes < KEEP_WAL_BYTES) return;
    this.#unkeptBytes = 0;
    this.#unkeptWrites = 0;
    this.#walKeeper.afterCommit(this.#db);
  }

  #write(step: string, run: () => void): void {
    try {
      run();
    } catch (cause) {
      throw explainSqliteError(cause, step);
    }
  }
}

function toFacts(row: StoredFacts): BatchFacts {
  return {
    seq: Number(row.seq),
    endLsn: row.end_lsn,
    firstSeq: Number(row.first_seq),
    appendedAtMs: Number(row.appended_at),
    endOffset: Number(row.end_offset),
  };
}
