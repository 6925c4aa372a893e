import type { Database, Statement } from 'better-sqlite3';
import {
  CHANGE,
  CHANGE_HEADER_BYTES,
  type DigestAnnouncement,
  FRAME,
  FRAME_HEADER_BYTES,
  PART_HEADER_BYTES,
  TRANSACTION_HEADER_BYTES,
} from '../change/frame.ts';
import type { LeftOutValue, RowMove, SchemaChange } from '../change/relation.ts';
import type { ReloadBegin } from '../change/snapshot.ts';
import { isDiskFull, ProtocolError, RivuletError } from '../errors.ts';
import { formatLsn, type Lsn } from '../lsn.ts';
import type { ObjectNotice } from './foreign-objects.ts';
import { forgetLeftOut, noteLeftOut } from './left-out.ts';
import type { LocalObjects } from './local-objects.ts';
import { SettlementError } from './local-settlement.ts';
import { Obstacles } from './obstacles.ts';
import { readPosition } from './replica-file.ts';
import { moveRows } from './row-move.ts';
import { formatCommitTime, readLayouts } from './schema.ts';
import { SchemaChanger } from './schema-changer.ts';
import { canEnforceKey, type TableLayout } from './table-layout.ts';
import { readReloads, TableReload } from './table-reload.ts';
import { TableWriter } from './table-writer.ts';
import { readUInt32, TupleSource } from './tuple.ts';

/** What one apply() made visible to readers. */
export interface AppliedBatch {
  /** Up to where the stream has been applied. */
  readonly position: Lsn;
  /** Position of the file: every transaction up to here is in its tables, those being read again included. */
  readonly settled: Lsn;
  /** Commit time of the newest transaction in this batch, µs since 1970; null if it completed none. */
  readonly commitTimeUs: bigint | null;
  readonly transactions: number;
  readonly changes: number;
  /** SQLite names of the tables whose rows or definition changed. */
  readonly tables: readonly string[];
  readonly schemaChanged: boolean;
}

export interface ApplierOptions {
  /** Told of views, triggers and indexes of the readers' own that had to be dropped. */
  readonly onNotice?: ObjectNotice;
  /** The user's own objects, if this file is to have any. */
  readonly local?: LocalObjects;
  /** The file holds exactly what came before the announcement, to any other connection, until this returns. */
  readonly onDigest?: (announcement: DigestAnnouncement) => void;
}

/**
 * Applies frames to a replica file. One call of apply() is one SQLite transaction for all Postgres transactions
 * that are complete in it, with the position in the same transaction: readers see all of them or none, and a
 * crash leaves the file at the position before.
 *
 * Parts of a transaction that is still to end go into an open SQLite transaction as they come; nobody sees them
 * until the transaction's own frame is applied. Parts do not say which LSN their transaction will end at, so
 * those of a transaction that the file contains already (sent again after a crash of the replicator) are
 * applied too, and rolled back once its end is known. What goes wrong in them counts only if it is not one of
 * those.
 *
 * Any error leaves the file at the position before and the applier usable: the caller asks the replicator for
 * everything behind `position` again.
 */
export class Applier {
  readonly #db: Database;
  readonly #local: LocalObjects | null;
  readonly #obstacles: Obstacles;
  readonly #onDigest: NonNullable<ApplierOptions['onDigest']>;
  readonly #source = new TupleSource();
  readonly #changer: SchemaChanger;
  readonly #begin: Statement;
  readonly #commit: Statement;
  readonly #rollback: Statement;
  readonly #writePosition: Statement;
  readonly #epoch: string;
  #layouts: Map<number, TableLayout>;
  readonly #writers = new Map<number, TableWriter>();
  #lastOid = -1;
  #lastWriter: TableWriter | null = null;
  /** Writers with changes that the SQLite transaction has not seen, and the tables that it changed. */
  readonly #dirty = new Set<TableWriter>();
  readonly #touched = new Set<string>();
  #schemaTouched = false;
  /** Tables whose rows are being read again, by OID. */
  #reloads = new Map<number, TableReload>();
  /** The writer that is putting its rows into the file. */
  #writing: TableWriter | null = null;
  /** Something was dropped in the open transaction because it stood in the way. */
  #hasDropped = false;
  /** Local objects of which one made parts fail: the others come back with the end of that transaction. */
  #isRetryDue = false;

  #position: Lsn;
  /** While tables are read again they are as of this; what is behind it is in the others already. */
  #settled: Lsn;
  /** xid of the transaction whose parts are in the open SQLite transaction. */
  #openXid: number | null = null;
  #openChanges = 0;
  /** A transaction that came in parts is complete, and not committed yet. */
  #hasParts = false;
  /** What went wrong in the open transaction's parts; rolled back already. */
  #openError: Error | null = null;

  /** What the running apply() completed and has not committed yet, and what it has. */
  #pending = emptyTally();
  #done = emptyTally();

  constructor(db: Database, options: ApplierOptions = {}) {
    this.#db = db;
    const local = options.local ?? null;
    // What becomes of local objects is known at the end of the transaction only, and reported from there.
    const onNotice: ObjectNotice = (object) => {
      if (!local?.has(object.name)) options.onNotice?.(object);
    };
    this.#local = local;
    this.#obstacles = new Obstacles(db, local, onNotice);
    this.#changer = new SchemaChanger(db, onNotice, local);
    this.#onDigest = options.onDigest ?? (() => {});
    this.#layouts = readLayouts(db);
    const { epoch, applied, lsn } = readPosition(db);
    this.#epoch = epoch;
    this.#position = applied;
    this.#settled = lsn;
    this.#readReloads();
    this.#begin = db.prepare('BEGIN IMMEDIATE');
    this.#commit = db.prepare('COMMIT');
    this.#rollback = db.prepare('ROLLBACK');
    this.#writePosition = db.prepare(
      'UPDATE _rivulet_position SET lsn = ?, lsn_int = ?, commit_time = coalesce(?, commit_time), applied_lsn = ?',
    );
  }

  get epoch(): string {
    return this.#epoch;
  }

  /** Where the stream goes on from. */
  get position(): Lsn {
    return this.#position;
  }

  /** The position of the file: behind `position` while tables are being read again. */
  get settled(): Lsn {
    return this.#settled;
  }

  /** SQLite names of the tables that are being read again: they keep what they had when it began. */
  get reloading(): readonly string[] {
    return [...this.#reloads.keys()].map((oid) => {
      const { schema, name } = this.#reloads.get(oid)!.layout.relation;
      return this.#layouts.get(oid)?.sqliteName ?? (schema === 'public' ? name : `${schema}.${name}`);
    });
  }

  /** True while parts of a transaction wait for its end: the SQLite transaction is open. */
  get hasOpenParts(): boolean {
    return this.#openXid !== null;
  }

  /** Everything that is mirrored, by OID. */
  get layouts(): ReadonlyMap<number, TableLayout> {
    return this.#layouts;
  }

  /**
   * Applies whole frames. Synchronous: how long it takes is up to the caller, by the size of the buffer. More
   * than one transaction at a time is cheaper than the same one by one, up to some tens of megabytes.
   */
  apply(frames: Buffer): AppliedBatch {
    const startedInParts = this.hasOpenParts;
    this.#done = emptyTally();
    try {
      this.#applyFrames(frames);
    } catch (error) {
      const table = (this.#writing ?? this.#lastWriter)?.layout.sqliteName;
      this.#abandon();
      this.#applyAllTheSame(frames, error, startedInParts ? (table ?? '') : null);
    } finally {
      this.#source.set(NO_FRAMES);
    }
    const { commitTimeUs, transactions, changes, tables, schemaChanged } = this.#done;
    return {
      position: this.#position,
      settled: this.#settled,
      commitTimeUs,
      transactions,
      changes,
      tables: [...tables],
      schemaChanged,
    };
  }

  /** Applies what has failed without whatever of the readers' own made it fail; throws if that was not the reason. */
  #applyAllTheSame(frames: Buffer, error: unknown, tableOfParts: string | null): void {
    if (isDiskFull(error)) throw diskFull(this.#db.name, error);
    const isLocal = error instanceof SettlementError;
    if (tableOfParts !== null) {
      // The parts before are gone, so there is one try only.
      if (!isLocal) this.#obstacles.removeAll(error, tableOfParts);
      this.#isRetryDue ||= !isLocal;
      throw new ProtocolError(
        'a trigger or index in the file stood in the way; the transaction is asked for again',
        { cause: error },
      );
    }
    if (!isLocal) {
      this.#obstacles.find(error, (remove) => this.#tryAfter(remove, frames));
      return;
    }
    // What could not be made is left alone the next time.
    try {
      this.#tryAfter(null, frames);
    } catch (second) {
      this.#applyAllTheSame(frames, second, null);
    }
  }

  #tryAfter(remove: (() => void) | null, frames: Buffer): void {
    try {
      if (remove !== null) {
        this.#begin.run();
        remove();
        this.#hasDropped = true;
      }
      this.#applyFrames(frames);
    } catch (error) {
      this.#abandon();
      if (isDiskFull(error)) throw diskFull(this.#db.name, error);
      throw error;
    }
  }

  /** Forgets parts whose end did not come: the connection broke, and the whole transaction will be sent again. */
  abandonParts(): void {
    this.#abandon();
  }

  #applyFrames(frames: Buffer): void {
    this.#source.set(frames);
    let at = 0;
    while (at < frames.length) {
      const end = at + readUInt32(frames, at);
      if (end > frames.length || end < at + FRAME_HEADER_BYTES)
        throw new ProtocolError('a frame is not whole');
      switch (frames[at + 4]) {
        case FRAME.transaction:
          this.#transaction(frames, at, end);
          break;
        case FRAME.part:
          this.#part(frames, at, end);
          break;
        case FRAME.abort:
          if (this.#openXid !== null) this.#abandon();
          break;
        case FRAME.position:
          this.#moveTo(frames.readBigUInt64LE(at + FRAME_HEADER_BYTES));
          break;
        case FRAME.digest:
          // Parts of an open transaction are in no committed state: they need not stand behind.
          if (this.#openXid === null) this.#commitPending();
          this.#onDigest(JSON.parse(frames.utf8Slice(at + FRAME_HEADER_BYTES, end)) as DigestAnnouncement);
          break;
        case FRAME.hello:
        case FRAME.end:
          break;
        default:
          throw new ProtocolError(`a frame has the unknown type ${frames[at + 4]}`);
      }
      at = end;
    }
    if (this.#openXid === null) this.#commitPending();
    else this.#flushParts();
  }

  #transaction(frames: Buffer, at: number, end: number): void {
    const endLsn = frames.readBigUInt64LE(at + 16);
    const hasParts = frames[at + 40] === 1;
    if (endLsn <= this.#currentPosition()) {
      if (this.#openXid !== null) this.#abandon();
      return;
    }
    if (hasParts !== (this.#openXid !== null)) {
      throw new ProtocolError(
        hasParts
          ? 'a transaction ends whose parts did not come'
          : 'the end of a transaction in parts did not come',
      );
    }
    if (this.#openError !== null) throw this.#openError;
    if (hasParts && readUInt32(frames, at + 32) !== this.#openXid)
      throw new ProtocolError('another transaction ends than the one that is open');
    this.#hasParts ||= hasParts;
    this.#beginUnlessOpen();
    this.#applyChanges(frames, at + TRANSACTION_HEADER_BYTES, end, readUInt32(frames, at + 32));
    const pending = this.#pending;
    pending.position = endLsn;
    pending.commitTimeUs = frames.readBigInt64LE(at + 24);
    pending.transactions++;
    pending.changes += readUInt32(frames, at + 36) + this.#openChanges;
    this.#openXid = null;
    this.#openChanges = 0;
  }

  #part(frames: Buffer, at: number, end: number): void {
    const xid = readUInt32(frames, at + 8);
    if (this.#openXid === null) {
      // What is complete must not wait for the end of a transaction that may take hours.
      this.#commitPending();
      this.#openXid = xid;
    } else if (this.#openXid !== xid) {
      throw new ProtocolError('parts of two transactions are mixed');
    }
    if (this.#openError !== null) return;
    this.#openChanges += readUInt32(frames, at + 12);
    this.#inParts(() => {
      this.#beginUnlessOpen();
      this.#applyChanges(frames, at + PART_HEADER_BYTES, end, xid);
    });
  }

  #flushParts(): void {
    if (this.#openError === null) this.#inParts(() => this.#flush());
  }

  /** Keeps an error until it is known whether the transaction is one that the file contains already. */
  #inParts(work: () => void): void {
    try {
      work();
    } catch (error) {
      if (!(error instanceof RivuletError)) throw error;
      const xid = this.#openXid;
      this.#abandon();
      this.#openXid = xid;
      this.#openError = error;
    }
  }

  #moveTo(position: Lsn): void {
    // While parts are open the position cannot have passed their transaction; it will say more than this.
    if (this.#openXid !== null || position <= this.#currentPosition()) return;
    this.#beginUnlessOpen();
    this.#pending.position = position;
  }

  #applyChanges(frames: Buffer, from: number, end: number, xid: number): void {
    let at = from;
    while (at < end) {
      const start = at;
      const kind = frames[at]!;
      const oid = readUInt32(frames, at + 1);
      const body = at + CHANGE_HEADER_BYTES;
      at = body + readUInt32(frames, at + 5);
      if (kind === CHANGE.schema) {
        this.#changeSchema(JSON.parse(frames.utf8Slice(body, at)) as SchemaChange);
        continue;
      }
      if (kind === CHANGE.leftOut) {
        noteLeftOut(this.#db, oid, JSON.parse(frames.utf8Slice(body, at)) as LeftOutValue);
        continue;
      }
      if (kind === CHANGE.move) {
        this.#moveRows(JSON.parse(frames.utf8Slice(body, at)) as RowMove);
        continue;
      }
      if (kind === CHANGE.truncate) forgetLeftOut(this.#db, oid);
      const writer = oid === this.#lastOid ? this.#lastWriter : this.#writer(oid);
      if (writer === null) {
        this.#reloadStep(oid, frames.subarray(start, at), body, xid);
        continue;
      }
      writer.change(kind, body);
      if (kind === CHANGE.truncate) this.#afterTruncate(writer.layout);
    }
    if (at !== end) throw new ProtocolError('the changes of a frame do not fill it');
  }

  /** Null for a table that is being read again. */
  #writer(oid: number): TableWriter | null {
    if (this.#reloads.has(oid)) {
      this.#lastOid = oid;
      this.#lastWriter = null;
      return null;
    }
    let writer = this.#writers.get(oid);
    if (writer === undefined) {
      writer = new TableWriter(this.#db, this.#layout(oid), this.#source);
      this.#writers.set(oid, writer);
    }
    this.#dirty.add(writer);
    this.#touched.add(writer.layout.sqliteName);
    this.#lastOid = oid;
    this.#lastWriter = writer;
    return writer;
  }

  #changeSchema(change: SchemaChange): void {
    this.#flush();
    for (const table of this.#changer.apply(change, this.#layouts)) this.#touched.add(table);
    for (const oid of change.dropped) this.#reloads.delete(oid);
    const { reloading = [] } = change;
    if (reloading.length > 0 && this.#reloads.size === 0) this.#settled = this.#currentPosition();
    for (const relation of reloading) {
      this.#reloads.set(
        relation.oid,
        new TableReload(this.#db, this.#changer.beginReload(relation, this.#layouts)),
      );
    }
    this.#schemaTouched = true;
    this.#forgetWriters();
  }

  #moveRows(move: RowMove): void {
    this.#flush();
    const from = this.#layout(move.from);
    const to = move.to === null ? null : this.#layout(move.to);
    moveRows(this.#db, move, { from, to });
    for (const layout of [from, to]) if (layout !== null) this.#touched.add(layout.sqliteName);
  }

  #layout(oid: number): TableLayout {
    const layout = this.#layouts.get(oid);
    if (layout !== undefined) return layout;
    throw new RivuletError(
      'UNSUPPORTED_SCHEMA_CHANGE',
      `a change came for the relation ${oid}, which the file does not have`,
      { hint: 'the file will be made anew', facts: { relation: oid } },
    );
  }

  /** A change of a table that is being read again, or a step of the reading. */
  #reloadStep(oid: number, change: Buffer, body: number, xid: number): void {
    const reload = this.#reloads.get(oid)!;
    switch (change[0]) {
      case CHANGE.reloadBegin: {
        this.#flush();
        const begin = JSON.parse(change.utf8Slice(CHANGE_HEADER_BYTES)) as ReloadBegin;
        // What is noted of the pieces before this one stays.
        if (begin.isFirst) forgetLeftOut(this.#db, oid);
        reload.begin(begin);
        break;
      }
      case CHANGE.reloadRow: {
        let writer = this.#writers.get(oid);
        if (writer === undefined) {
          writer = reload.rowWriter(this.#source);
          this.#writers.set(oid, writer);
        }
        this.#dirty.add(writer);
        writer.change(CHANGE.insert, body);
        break;
      }
      case CHANGE.reloadEnd:
        this.#flush();
        reload.drain();
        this.#touched.add(this.#changer.endReload(reload.layout, this.#layouts));
        this.#reloads.delete(oid);
        this.#schemaTouched = true;
        this.#forgetWriters();
        break;
      default:
        reload.hold(change, xid);
    }
  }

  #readReloads(): void {
    this.#reloads = new Map(
      readReloads(this.#db, this.#layouts).map((reload) => [reload.layout.relation.oid, reload]),
    );
  }

  /** An empty table takes the key that its rows could not satisfy. */
  #afterTruncate(layout: TableLayout): void {
    if (layout.keyIsEnforced || !canEnforceKey(layout.relation)) return;
    this.#flush();
    this.#changer.enforceKey(layout, this.#layouts);
    this.#schemaTouched = true;
    this.#forgetWriters();
  }

  #forgetWriters(): void {
    this.#writers.clear();
    this.#dirty.clear();
    this.#lastOid = -1;
    this.#lastWriter = null;
  }

  #flush(): void {
    for (const writer of this.#dirty) {
      this.#writing = writer;
      writer.flush();
    }
    this.#writing = null;
    this.#dirty.clear();
    this.#lastOid = -1;
    this.#lastWriter = null;
  }

  #currentPosition(): Lsn {
    return this.#pending.position ?? this.#position;
  }

  #beginUnlessOpen(): void {
    if (!this.#db.inTransaction) this.#begin.run();
  }

  #commitPending(): void {
    const { position, commitTimeUs } = this.#pending;
    if (position === null) return;
    this.#flush();
    const settled = this.#reloads.size === 0 ? position : this.#settled;
    const isRetried = this.#schemaTouched || (this.#isRetryDue && this.#hasParts);
    const isSettled = this.#local !== null && (isRetried || this.#hasDropped);
    if (isSettled) this.#local!.settle({ retry: isRetried });
    this.#writePosition.run(
      formatLsn(settled),
      BigInt.asIntN(64, settled),
      commitTimeUs === null ? null : formatCommitTime(commitTimeUs),
      formatLsn(position),
    );
    this.#commit.run();
    this.#hasDropped = false;
    if (isRetried) this.#isRetryDue = false;
    this.#hasParts = false;
    if (isSettled) this.#local!.committed();
    this.#position = position;
    this.#settled = settled;
    const done = this.#done;
    done.commitTimeUs = commitTimeUs ?? done.commitTimeUs;
    done.transactions += this.#pending.transactions;
    done.changes += this.#pending.changes;
    done.schemaChanged ||= this.#schemaTouched;
    for (const table of this.#touched) done.tables.add(table);
    this.#pending = emptyTally();
    this.#touched.clear();
    this.#schemaTouched = false;
  }

  /** Back to the last commit. Schema changes in memory go the same way as those in the file. */
  #abandon(): void {
    for (const writer of this.#writers.values()) writer.discard();
    if (this.#db.inTransaction) this.#rollback.run();
    this.#openXid = null;
    this.#openChanges = 0;
    this.#openError = null;
    this.#pending = emptyTally();
    this.#touched.clear();
    this.#hasDropped = false;
    this.#hasParts = false;
    this.#writing = null;
    if (this.#schemaTouched) {
      this.#schemaTouched = false;
      this.#layouts = readLayouts(this.#db);
      this.#settled = readPosition(this.#db).lsn;
      this.#readReloads();
    }
    this.#forgetWriters();
  }
}

const NO_FRAMES = Buffer.alloc(0);

function diskFull(file: string, cause: unknown): RivuletError {
  return new RivuletError('DISK_FULL', `no space is left to write ${file}`, {
    hint: 'free some space; nothing is lost, and applying goes on by itself',
    cause,
    facts: { file },
  });
}

interface Tally {
  position: Lsn | null;
  commitTimeUs: bigint | null;
  transactions: number;
  changes: number;
  readonly tables: Set<string>;
  schemaChanged: boolean;
}

function emptyTally(): Tally {
  return {
    position: null,
    commitTimeUs: null,
    transactions: 0,
    changes: 0,
    tables: new Set(),
    schemaChanged: false,
  };
}
