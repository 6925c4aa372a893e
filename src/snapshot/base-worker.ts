import { closeSync, fsyncSync, openSync, statSync } from 'node:fs';
import { setPriority } from 'node:os';
import { parentPort } from 'node:worker_threads';
import Database from 'better-sqlite3';
import { FRAME, TRANSACTION_HEADER_BYTES } from '../change/frame.ts';
import type { Relation } from '../change/relation.ts';
import type { Lsn } from '../lsn.ts';
import { Applier } from '../replica/applier.ts';
import { BulkWriter } from '../replica/bulk-writer.ts';
import { dropForeignObject, foreignObjects } from '../replica/foreign-objects.ts';
import { LocalObjects } from '../replica/local-objects.ts';
import { dropObject, LOCAL_OBJECT_TABLE, readRecords } from '../replica/local-records.ts';
import { type LocalSql, parseLocalSql } from '../replica/local-sql.ts';
import { formatChecksum } from '../replica/page-checksum.ts';
import { dropReplaced } from '../replica/replaced-tables.ts';
import { configureForApplying } from '../replica/replica-file.ts';
import { createIndexes, createReplicaSchema, readLayouts } from '../replica/schema.ts';
import { loadSqlite } from '../replica/sqlite-thread.ts';
import { checksumChange, checksumOf, removeChecksum, writeChecksum } from './file-checksum.ts';

/** What the thread is for: a new file from the rows of the initial copy or from a live one, or an old one brought forward. */
export type BaseTask =
  | {
      readonly kind: 'build';
      readonly file: string;
      readonly relations: readonly Relation[];
      readonly epoch: string;
      readonly systemIdentifier: string;
      readonly databaseName: string;
      readonly localSql?: LocalSql | null;
      /** Whether the server sees to it that text is UTF-8. */
      readonly isUtf8: boolean;
      /** The file to which the checksum of this one is to belong, once it has taken its place; null: no checksum. */
      readonly checksumFor: string | null;
    }
  | { readonly kind: 'copy'; readonly file: string; readonly from: string; readonly checksumFor: string }
  | { readonly kind: 'advance'; readonly file: string; readonly checksum: string };

export type BaseRequest =
  | { readonly kind: 'begin'; readonly task: BaseTask }
  | { readonly kind: 'frames'; readonly bytes: Uint8Array<ArrayBuffer> }
  /** Build: the rows are over; they are the content at this position. What follows is frames of the log behind it. */
  | { readonly kind: 'endCopy'; readonly position: Lsn; readonly commitTimeUs: bigint }
  | { readonly kind: 'finish' };

export type BaseReply =
  /** The frames' memory comes back. */
  | { readonly kind: 'consumed'; readonly bytes: Uint8Array<ArrayBuffer> }
  | { readonly kind: 'finished'; readonly position: Lsn; readonly checksum: string | null }
  | { readonly kind: 'failed'; readonly message: string; readonly code: string | undefined };

/** While a file is brought forward its WAL is folded into it, and into its checksum, at this size. */
const FOLD_WAL_BYTES = 64 * 1024 * 1024;

/** Page cache of the writing connection: the inner pages of large trees stay in it. Bringing forward has time. */
const CACHE_KIB = { build: 16 * 1024, copy: 16 * 1024, advance: 8 * 1024 } as const;

/** Who waits for a file to be brought forward can wait a little longer: what is live goes first. */
const ADVANCE_NICENESS = 10;

const port = parentPort!;
const reply = (message: BaseReply, transfer: ArrayBuffer[] = []): void => port.postMessage(message, transfer);

/**
 * Lets all other threads go first, for good. Only Linux counts niceness by thread; elsewhere it would be the whole
 * process's. https://man7.org/linux/man-pages/man2/setpriority.2.html
 */
function giveWay(): void {
  if (process.platform === 'linux') setPriority(ADVANCE_NICENESS);
}

function openForBuild(file: string): Database.Database {
  const db = new Database(file);
  // A crash throws the half-built file away, so neither journal nor syncs are worth anything before the end.
  db.pragma('journal_mode = OFF');
  db.pragma('synchronous = OFF');
  return db;
}

function openForAdvance(file: string): Database.Database {
  const db = new Database(file, { fileMustExist: true });
  db.pragma('journal_mode = WAL');
  db.pragma('synchronous = NORMAL');
  // Pages go back into the file only where the checksum is brought forward with them.
  db.pragma('wal_autocheckpoint = 0');
  return db;
}

/** In one read transaction: whoever applies to the live file goes on meanwhile. */
function copyLive(from: string, to: string): void {
  const live = new Database(from, { readonly: true, fileMustExist: true });
  try {
    live.prepare('VACUUM INTO ?').run(to);
  } finally {
    live.close();
  }
}

/** Indexes, views, tables and triggers of its readers' own: what others start from has nobody's. */
function removeLocalObjects(db: Database.Database): void {
  const tables = [...readRecords(db).values()].filter(({ type }) => type === 'table');
  db.transaction(() => {
    for (const object of foreignObjects(db)) dropForeignObject(db, object);
    for (const table of tables) dropObject(db, table);
    db.exec(`DROP TABLE IF EXISTS ${LOCAL_OBJECT_TABLE}`);
  })();
}

/** Only now, because what fails is rolled back. The replica's own thread says what is missing when it opens the file. */
function makeLocalObjects(db: Database.Database, localSql: LocalSql): void {
  configureForApplying(db);
  const ignore = (): void => undefined;
  new LocalObjects(db, { script: parseLocalSql(localSql), onReport: ignore, onStep: ignore }).open();
}

/** The frame that ends the one transaction which the whole copy is. */
function endOfCopy(
  position: Lsn,
  commitTimeUs: bigint,
  { hasParts }: { readonly hasParts: boolean },
): Buffer {
  const frame = Buffer.alloc(TRANSACTION_HEADER_BYTES);
  frame.writeUInt32LE(frame.length, 0);
  frame[4] = FRAME.transaction;
  frame.writeBigUInt64LE(position, 8);
  frame.writeBigUInt64LE(position, 16);
  frame.writeBigInt64LE(commitTimeUs, 24);
  frame[40] = hasParts ? 1 : 0;
  return frame;
}

/** What the thread does, from its task to the end of the file. */
class BaseWork {
  readonly #task: BaseTask;
  readonly #db: Database.Database;
  /** Null while the rows of a new file come. */
  #applier: Applier | null;
  readonly #rows: BulkWriter | null;
  #checksum: bigint | null;

  constructor(task: BaseTask) {
    this.#task = task;
    if (task.kind === 'advance') giveWay();
    this.#checksum = task.kind === 'advance' ? BigInt(`0x${task.checksum}`) : null;
    if (task.kind === 'advance') removeChecksum(task.file);
    if (task.kind === 'copy') copyLive(task.from, task.file);
    const db = task.kind === 'build' ? openForBuild(task.file) : openForAdvance(task.file);
    this.#db = db;
    db.pragma(`cache_size = -${CACHE_KIB[task.kind]}`);
    if (task.kind === 'copy') removeLocalObjects(db);
    this.#rows = task.kind === 'build' ? this.#beginBuild(task) : null;
    this.#applier = task.kind === 'build' ? null : new Applier(db);
  }

  write(frames: Buffer): void {
    if (this.#applier === null) {
      this.#rows!.write(frames);
      return;
    }
    this.#applier.apply(frames);
    this.#foldIfLong();
  }

  /** The whole copy is one transaction, which ends here. */
  endCopy(position: Lsn, commitTimeUs: bigint): void {
    const db = this.#db;
    const others = this.#rows!.finish();
    this.#applier = new Applier(db);
    this.#applier.apply(
      Buffer.concat([...others, endOfCopy(position, commitTimeUs, { hasParts: others.length > 0 })]),
    );
    // Sorting for an index takes temporary space; beside the file there is room by definition.
    db.pragma('temp_store = FILE');
    for (const layout of readLayouts(db).values()) createIndexes(db, layout);
  }

  finish(): void {
    const { position } = this.#applier!;
    if (this.#task.kind === 'build') this.#finishBuild(this.#task.localSql ?? null);
    reply({ kind: 'finished', position, checksum: this.#close() });
  }

  #beginBuild(build: BaseTask & { readonly kind: 'build' }): BulkWriter {
    const layouts = createReplicaSchema(this.#db, build.relations, {
      epoch: build.epoch,
      position: 0n,
      commitTimeUs: null,
      systemIdentifier: build.systemIdentifier,
      databaseName: build.databaseName,
    });
    return new BulkWriter(this.#db, layouts, { isUtf8: build.isUtf8 });
  }

  #finishBuild(localSql: LocalSql | null): void {
    this.#db.pragma('journal_mode = WAL');
    if (localSql !== null) makeLocalObjects(this.#db, localSql);
  }

  /** Everything into the one file; a checksum that is known stays the file's own. */
  #fold(): void {
    if (this.#checksum !== null) {
      const change = checksumChange(this.#task.file);
      this.#checksum = change === null ? null : this.#checksum + change;
    }
    const [{ busy }] = this.#db.pragma('wal_checkpoint(TRUNCATE)') as [{ busy: number }];
    if (busy !== 0) {
      const message = 'another program has the file open and keeps it from being brought forward';
      throw Object.assign(new Error(message), { code: 'SQLITE_BUSY' });
    }
  }

  #foldIfLong(): void {
    if (this.#task.kind !== 'advance' || this.#db.inTransaction) return;
    const wal = statSync(`${this.#task.file}-wal`, { throwIfNoEntry: false });
    if ((wal?.size ?? 0) > FOLD_WAL_BYTES) this.#fold();
  }

  /** One file without a WAL, so that it can be handed out; gives its checksum. */
  #close(): string | null {
    const { file } = this.#task;
    dropReplaced(this.#db);
    this.#fold();
    this.#db.close();
    const descriptor = openSync(file, 'r+');
    fsyncSync(descriptor);
    closeSync(descriptor);
    const checksumFor = this.#task.kind === 'advance' ? file : this.#task.checksumFor;
    if (checksumFor === null) return null;
    const text = formatChecksum(this.#checksum ?? checksumOf(file));
    writeChecksum(checksumFor, text);
    return text;
  }
}

loadSqlite(port);

let work: BaseWork | null = null;

port.on('message', (request: BaseRequest) => {
  try {
    if (request.kind === 'begin') {
      work = new BaseWork(request.task);
    } else if (request.kind === 'frames') {
      const { bytes } = request;
      work!.write(Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength));
      reply({ kind: 'consumed', bytes }, [bytes.buffer]);
    } else if (request.kind === 'endCopy') {
      work!.endCopy(request.position, request.commitTimeUs);
    } else {
      work!.finish();
      port.close();
    }
  } catch (error) {
    reply({ kind: 'failed', message: (error as Error).message, code: (error as { code?: string }).code });
  }
});
