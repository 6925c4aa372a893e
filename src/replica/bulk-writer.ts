import type { Database } from 'better-sqlite3';
import { CHANGE, CHANGE_HEADER_BYTES, FRAME, PART_HEADER_BYTES } from '../change/frame.ts';
import type { LeftOutValue } from '../change/relation.ts';
import { ProtocolError } from '../errors.ts';
import { BulkTable } from './bulk-table.ts';
import { noteLeftOut } from './left-out.ts';
import { PageFile } from './page-file.ts';
import type { TableLayout } from './table-layout.ts';
import { readUInt32, TupleSource } from './tuple.ts';

export interface BulkOptions {
  /** Whether all text is UTF-8. Otherwise it has to go through a string, as in the stream. */
  readonly isUtf8: boolean;
}

/**
 * Writes the rows of the initial copy into a new file that nobody else has open. Most of them become pages of
 * their tables without SQLite, in less than half the time; the others are inserted; the content is the same. Until
 * finish() the file is of no use.
 */
export class BulkWriter {
  readonly #db: Database;
  readonly #source = new TupleSource();
  readonly #pages: PageFile;
  readonly #tables: ReadonlyMap<number, BulkTable>;
  readonly #others: Buffer[] = [];
  /** Tables with rows that wait for SQLite. */
  readonly #waiting = new Set<BulkTable>();

  /** `db` has made the tables, empty. It may not lock the file between transactions. */
  constructor(db: Database, layouts: readonly TableLayout[], { isUtf8 }: BulkOptions) {
    this.#db = db;
    this.#pages = new PageFile(db.name, () => this.#commit());
    this.#tables = new Map(
      layouts.map((layout) => {
        const table = new BulkTable(db, layout, this.#source, this.#pages);
        if (!isUtf8) table.settle();
        return [layout.relation.oid, table];
      }),
    );
  }

  /**
   * Takes whole part frames: of rows, and then xid stands for their origin (see BulkTable), or one that begins with a
   * schema change and is not for this writer.
   */
  write(frames: Buffer): void {
    this.#source.set(frames);
    let at = 0;
    while (at < frames.length) {
      const end = at + readUInt32(frames, at);
      if (frames[at + 4] !== FRAME.part || end > frames.length)
        throw new ProtocolError('a frame of the initial copy does not hold rows');
      if (frames[at + PART_HEADER_BYTES] === CHANGE.schema)
        this.#others.push(Buffer.from(frames.subarray(at, end)));
      else this.#writeChanges(frames, at + PART_HEADER_BYTES, end, readUInt32(frames, at + 8));
      at = end;
    }
    if (this.#waiting.size === 0) return;
    this.#begin();
    for (const table of this.#waiting) table.flush();
    this.#waiting.clear();
  }

  /** All rows have come, and are in the file. Gives back the frames that were not of rows. */
  finish(): readonly Buffer[] {
    for (const table of this.#tables.values()) table.settle();
    this.#pages.close();
    return this.#others;
  }

  #writeChanges(frames: Buffer, from: number, end: number, origin: number): void {
    let table: BulkTable | undefined;
    let lastOid = -1;
    let at = from;
    while (at < end) {
      const kind = frames[at]!;
      const oid = readUInt32(frames, at + 1);
      const body = at + CHANGE_HEADER_BYTES;
      at = body + readUInt32(frames, at + 5);
      if (oid !== lastOid) {
        table = this.#tables.get(oid);
        lastOid = oid;
      }
      if (kind === CHANGE.insert && table !== undefined) {
        if (!table.insert(body, origin)) this.#waiting.add(table);
      } else if (kind === CHANGE.leftOut) {
        this.#begin();
        noteLeftOut(this.#db, oid, JSON.parse(frames.utf8Slice(body, at)) as LeftOutValue);
      } else {
        throw new ProtocolError(`a change of the initial copy has the kind ${kind}, of relation ${oid}`);
      }
    }
    if (at !== end) throw new ProtocolError('the changes of a frame do not fill it');
  }

  #begin(): void {
    if (!this.#db.inTransaction) this.#db.exec('BEGIN');
  }

  #commit(): void {
    if (this.#db.inTransaction) this.#db.exec('COMMIT');
  }
}
