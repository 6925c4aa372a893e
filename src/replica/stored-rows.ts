import type { Database } from 'better-sqlite3';
import { MAX_SHORT_TEXT_BYTES, TAG } from '../change/frame.ts';
import { quoteName } from './naming.ts';
import { PLACEHOLDER_COLUMN } from './table-layout.ts';

/** Rows of a part of a table: those whose first key column lies in [from, to). Null: open on that side. */
export interface KeyRange {
  readonly column: string;
  readonly from: bigint | null;
  readonly to: bigint | null;
}

export interface StoredTable {
  readonly sqliteName: string;
  /** In the order in which the values of a tuple stand. */
  readonly columnNames: readonly string[];
}

const INITIAL_BYTES = 64 * 1024;
/** ASCII of this length is copied faster here than by a call into native code; three times it is a short text. */
const MAX_COPIED_CHARS = 79;
const REPLACEMENT = '\ufffd';
const TEXT_MARK = 0x74; // t

/**
 * Reads rows of a replica file as tuples of the change format: what is stored, by its storage class and its
 * bytes, whatever the column should hold. A row that came through the applier gives exactly the bytes that it
 * came in.
 */
export class StoredRows {
  /** The present row's tuple stands at 0 to `end`; overwritten by the next one. */
  bytes: Buffer = Buffer.allocUnsafeSlow(INITIAL_BYTES);
  view: DataView = new DataView(this.bytes.buffer);
  end = 0;
  readonly #db: Database;
  readonly #table: StoredTable;
  readonly #range: KeyRange | null;
  #sawReplacement = false;

  constructor(db: Database, table: StoredTable, range: KeyRange | null = null) {
    this.#db = db;
    this.#table = table;
    this.#range = range;
  }

  /**
   * Calls `onRow` for every row. Bytes that are no UTF-8 come out of SQLite as U+FFFD, so where that is seen the
   * table is read once more, with its texts as the bytes that they are: `restart` is called first.
   */
  read(onRow: () => void, restart: () => void): void {
    this.#sawReplacement = false;
    for (const row of this.iterate()) {
      this.encode(row);
      if (this.#sawReplacement) break;
      onRow();
    }
    if (!this.#sawReplacement) return;
    restart();
    for (const row of this.iterate(true)) {
      this.encodeBytes(row);
      onRow();
    }
  }

  /** Plain rows for encode(); with `asBytes`, marked bytes of texts and blobs, for encodeBytes(). */
  iterate(asBytes = false): IterableIterator<unknown[]> {
    const { sqliteName, columnNames } = this.#table;
    const names = (columnNames.length === 0 ? [PLACEHOLDER_COLUMN] : columnNames).map(quoteName);
    // A text or blob becomes a blob with a letter in front that tells which of the two it was: as a column of its
    // own the storage class would not fit beside 1,600 columns.
    const list = asBytes
      ? names.map(
          (name) =>
            `CASE typeof(${name}) WHEN 'text' THEN cast('t' || ${name} AS BLOB) WHEN 'blob' THEN cast('b' || cast(${name} AS TEXT) AS BLOB) ELSE ${name} END`,
        )
      : names;
    const { sql, values } = whereRange(this.#range);
    return this.#db
      .prepare<bigint[], unknown[]>(`SELECT ${list.join(', ')} FROM ${quoteName(sqliteName)}${sql}`)
      .raw()
      .safeIntegers()
      .iterate(...values) as IterableIterator<unknown[]>;
  }

  encode(row: readonly unknown[]): void {
    this.#begin();
    const count = this.#table.columnNames.length;
    for (let index = 0; index < count; index++) this.#value(row[index]);
  }

  encodeBytes(row: readonly unknown[]): void {
    this.#begin();
    const count = this.#table.columnNames.length;
    for (let index = 0; index < count; index++) {
      const value = row[index];
      if (!Buffer.isBuffer(value)) this.#value(value);
      else if (value[0] === TEXT_MARK) this.#textBytes(value.subarray(1));
      else this.#long(TAG.blob, value.subarray(1));
    }
  }

  #begin(): void {
    const count = this.#table.columnNames.length;
    this.bytes[0] = count;
    this.bytes[1] = count >>> 8;
    this.end = 2;
  }

  #value(value: unknown): void {
    if (typeof value === 'string') {
      this.#text(value);
      return;
    }
    this.#reserve(9);
    const { view, end } = this;
    if (typeof value === 'bigint') {
      const number = Number(value);
      if ((number | 0) === number) {
        this.bytes[end] = TAG.int32;
        view.setInt32(end + 1, number, true);
        this.end = end + 5;
      } else {
        this.bytes[end] = TAG.int64;
        view.setBigInt64(end + 1, value, true);
        this.end = end + 9;
      }
    } else if (value === null) {
      this.bytes[end] = TAG.null;
      this.end = end + 1;
    } else if (typeof value === 'number') {
      this.bytes[end] = TAG.real;
      view.setFloat64(end + 1, value, true);
      this.end = end + 9;
    } else {
      this.#long(TAG.blob, value as Buffer);
    }
  }

  #text(text: string): void {
    const { length } = text;
    this.#reserve(5 + length * 3);
    const { bytes, end } = this;
    if (length <= MAX_COPIED_CHARS) {
      let at = end + 1;
      let index = 0;
      for (; index < length; index++) {
        const code = text.charCodeAt(index);
        if (code > 0x7f) break;
        bytes[at++] = code;
      }
      if (index < length) {
        at = end + 1 + bytes.write(text, end + 1);
        this.#sawReplacement ||= text.includes(REPLACEMENT);
      }
      bytes[end] = TAG.shortText + (at - end - 1);
      this.end = at;
      return;
    }
    this.#sawReplacement ||= text.includes(REPLACEMENT);
    const written = bytes.write(text, end + 5);
    if (written <= MAX_SHORT_TEXT_BYTES) {
      bytes.copyWithin(end + 1, end + 5, end + 5 + written);
      bytes[end] = TAG.shortText + written;
      this.end = end + 1 + written;
    } else {
      bytes[end] = TAG.text;
      this.view.setUint32(end + 1, written, true);
      this.end = end + 5 + written;
    }
  }

  #textBytes(text: Buffer): void {
    if (text.length > MAX_SHORT_TEXT_BYTES) {
      this.#long(TAG.text, text);
      return;
    }
    this.#reserve(1 + text.length);
    this.bytes[this.end] = TAG.shortText + text.length;
    text.copy(this.bytes, this.end + 1);
    this.end += 1 + text.length;
  }

  #long(tag: number, value: Buffer): void {
    this.#reserve(5 + value.length);
    this.bytes[this.end] = tag;
    this.view.setUint32(this.end + 1, value.length, true);
    value.copy(this.bytes, this.end + 5);
    this.end += 5 + value.length;
  }

  #reserve(count: number): void {
    if (this.end + count <= this.bytes.length) return;
    const larger = Buffer.allocUnsafeSlow((this.end + count) * 2);
    this.bytes.copy(larger, 0, 0, this.end);
    this.bytes = larger;
    this.view = new DataView(larger.buffer);
  }
}

function whereRange(range: KeyRange | null): { readonly sql: string; readonly values: readonly bigint[] } {
  if (range === null) return { sql: '', values: [] };
  const name = quoteName(range.column);
  const terms: string[] = [];
  const values: bigint[] = [];
  if (range.from !== null) {
    terms.push(`${name} >= ?`);
    values.push(range.from);
  }
  if (range.to !== null) {
    terms.push(`${name} < ?`);
    values.push(range.to);
  }
  return { sql: terms.length === 0 ? '' : ` WHERE ${terms.join(' AND ')}`, values };
}
