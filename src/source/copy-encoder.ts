import { viewOf } from '../change/copy-words.ts';
import { CHANGE, FRAME, PART_HEADER_BYTES, TAG } from '../change/frame.ts';
import { FrameWriter } from '../change/frame-writer.ts';
import type { Relation, SchemaChange } from '../change/relation.ts';
import { type ValueEncoder, valueEncoder } from '../change/value-mapping.ts';
import { ProtocolError } from '../errors.ts';
import { type CutValue, describeLeftOut, LARGE_VALUE_BYTES, RowBudget } from './row-budget.ts';

const TAB = 0x09;
const NEWLINE = 0x0a;
const BACKSLASH = 0x5c;

/** What stands behind a backslash in COPY's text format, besides the character itself. */
const ESCAPES: Readonly<Record<number, number>> = { 98: 8, 102: 12, 110: 10, 114: 13, 116: 9, 118: 11 };

/** What unescaped values may keep of memory. */
const MAX_KEPT_BYTES = 1024 * 1024;

/**
 * Whether none of four bytes is a backslash or below 14, as tab and newline are.
 * https://graphics.stanford.edu/~seander/bithacks.html#HasLessInWord
 */
function isPlain(word: number): boolean {
  const other = word ^ 0x5c5c5c5c;
  return ((((word - 0x0e0e0e0e) & ~word) | ((other - 0x01010101) & ~other)) & 0x80808080) === 0;
}

/** What a row becomes: one of the initial copy, or one of a table that is read again beside the stream. */
export type RowKind = typeof CHANGE.insert | typeof CHANGE.reloadRow;

export interface CopyEncoderOptions {
  /** Stands in the frames for the COPY that the rows are from. */
  readonly origin?: number | undefined;
  /** A frame is good only until the next row comes. Otherwise it is the caller's for good. */
  readonly reusesMemory?: boolean | undefined;
  /** Behind its columns each row names the values that it comes without: see cutCopyStatement(). */
  readonly namesCuts?: boolean | undefined;
}

/**
 * Turns rows in COPY's text format into part frames of changes, through the same mapping as the stream.
 * The server sends one CopyData message for each row.
 * https://www.postgresql.org/docs/current/sql-copy.html (File Formats)
 */
export class CopyEncoder {
  readonly #oid: number;
  readonly #name: string;
  readonly #encoders: readonly ValueEncoder[];
  readonly #relation: Relation;
  readonly #budget: RowBudget;
  readonly #out = new FrameWriter();
  #rows = 0;
  #unescaped = Buffer.allocUnsafe(4096);
  /** What rows were taken from last. */
  #source: Buffer = Buffer.alloc(0);
  #sourceView = viewOf(this.#source);
  #rowStart = 0;
  readonly #kind: RowKind;

  readonly #origin: number;
  readonly #reusesMemory: boolean;
  readonly #namesCuts: boolean;
  /** Of the row that is being taken. */
  #cuts: readonly CutValue[] = [];

  constructor(
    relation: Relation,
    kind: RowKind,
    { origin = 0, reusesMemory = false, namesCuts = false }: CopyEncoderOptions = {},
  ) {
    this.#namesCuts = namesCuts;
    this.#kind = kind;
    this.#origin = origin;
    this.#reusesMemory = reusesMemory;
    this.#relation = relation;
    this.#budget = new RowBudget(relation);
    this.#oid = relation.oid;
    this.#name = `${relation.schema}.${relation.name}`;
    this.#encoders = relation.columns.map((column) => valueEncoder(column.mapping));
    this.#begin();
  }

  get pendingBytes(): number {
    return this.#out.pendingBytes;
  }

  get pendingRows(): number {
    return this.#rows;
  }

  /** One row, with its newline. */
  push(bytes: Buffer, from: number, to: number): void {
    if (this.#namesCuts) to = this.#takeCuts(bytes, to);
    if (bytes !== this.#source) {
      this.#source = bytes;
      this.#sourceView = viewOf(bytes);
    }
    this.#rowStart = from;
    const view = this.#sourceView;
    const out = this.#out;
    const encoders = this.#encoders;
    const count = encoders.length;
    const body = out.beginChange(this.#kind, this.#oid);
    out.reserve(2);
    out.bytes[out.at++] = count;
    out.bytes[out.at++] = count >>> 8;
    this.#budget.beginRow();
    let at = from;
    for (let index = 0; index < count; index++) {
      const start = at;
      let escaped = false;
      let byte = 0;
      while (at < to) {
        while (at + 4 <= to && isPlain(view.getInt32(at, true))) at += 4;
        if (at === to) break;
        byte = bytes[at]!;
        if (byte === TAB || byte === NEWLINE) break;
        if (byte === BACKSLASH) {
          escaped = true;
          at++;
        }
        at++;
      }
      if (at >= to || (byte === NEWLINE) !== (index === count - 1)) throw this.#malformed();
      if (!escaped) this.#encode(index, bytes, start, at);
      else if (at - start === 2 && bytes[start + 1] === 0x4e) out.writeTag(TAG.null);
      else this.#encodeEscaped(index, bytes, start, at);
      at++;
    }
    if (count === 0 ? to - from !== 1 : at !== to) throw this.#malformed();
    out.endChange(body);
    this.#rows++;
    if (this.#cuts.length > 0) this.#budget.leftOut.push(...this.#cuts);
    if (this.#budget.leftOut.length > 0) this.#noteLeftOut();
  }

  /** The row ends in front of what names its cuts. */
  #takeCuts(bytes: Buffer, to: number): number {
    const tab = bytes.lastIndexOf(TAB, to - 1);
    const cuts = bytes.latin1Slice(tab + 1, to - 1);
    this.#cuts = cuts === '\\N' ? [] : (JSON.parse(cuts) as CutValue[]);
    bytes[tab] = NEWLINE;
    return tab + 1;
  }

  /** Of the row that was pushed last, while its bytes are there: these values as Postgres prints them, none of them NULL. */
  lastTexts(columns: readonly number[]): readonly string[] {
    const bytes = this.#source;
    return columns.map((column) => {
      let at = this.#rowStart;
      for (let index = 0; index < column; index++) at = bytes.indexOf(TAB, at) + 1;
      const last = this.#encoders.length - 1;
      return this.#unescape(bytes, at, bytes.indexOf(column < last ? TAB : NEWLINE, at)).toString();
    });
  }

  /** The rows so far as one part frame, in which `origin` is in the place of xid. */
  take(): Buffer {
    const out = this.#out;
    const { start } = out;
    out.setUInt32(start, out.pendingBytes);
    out.setUInt32(start + 4, FRAME.part);
    out.setUInt32(start + 8, this.#origin);
    out.setUInt32(start + 12, this.#rows);
    const frame = out.take(out.pendingBytes);
    this.#begin();
    return frame;
  }

  #begin(): void {
    if (this.#reusesMemory) this.#out.rewind();
    this.#out.reserve(PART_HEADER_BYTES);
    this.#out.at += PART_HEADER_BYTES;
    this.#rows = 0;
  }

  #encode(column: number, bytes: Buffer, from: number, to: number): void {
    if (to - from < LARGE_VALUE_BYTES) this.#encoders[column]!(bytes, from, to, this.#out);
    else this.#budget.encode(this.#encoders[column]!, column, bytes, from, to, this.#out);
  }

  #encodeEscaped(column: number, bytes: Buffer, from: number, to: number): void {
    const value = this.#unescape(bytes, from, to);
    this.#encode(column, value, 0, value.length);
    // One huge value must not keep its room for as long as the copy takes.
    if (this.#unescaped.length > MAX_KEPT_BYTES) this.#unescaped = Buffer.allocUnsafe(4096);
  }

  /** In memory that the next one takes. */
  #unescape(bytes: Buffer, from: number, to: number): Buffer {
    if (this.#unescaped.length < to - from) this.#unescaped = Buffer.allocUnsafe((to - from) * 2);
    const target = this.#unescaped;
    let length = 0;
    for (let at = from; at < to; at++) {
      let byte = bytes[at]!;
      if (byte === BACKSLASH) {
        byte = bytes[++at]!;
        byte = ESCAPES[byte] ?? byte;
      }
      target[length++] = byte;
    }
    return target.subarray(0, length);
  }

  /** Behind the row that came last: what of it is not there. */
  #noteLeftOut(): void {
    const keyText = (column: number): string => this.lastTexts([column])[0]!;
    for (const value of describeLeftOut(this.#relation, this.#budget, keyText)) {
      this.#out.writeJsonChange(CHANGE.leftOut, this.#oid, value);
      this.#rows++;
    }
  }

  #malformed(): ProtocolError {
    return new ProtocolError(`a row of ${this.#name} does not come with ${this.#encoders.length} columns`);
  }
}

/** A part frame that says of tables that all their rows will come again. */
export function reloadingFrame(relations: readonly Relation[]): Buffer {
  const out = new FrameWriter();
  out.reserve(PART_HEADER_BYTES);
  out.at += PART_HEADER_BYTES;
  const change: SchemaChange = { changed: [], dropped: [], reloading: relations };
  out.writeJsonChange(CHANGE.schema, 0, change);
  const frame = out.take(out.pendingBytes);
  frame.fill(0, 0, PART_HEADER_BYTES);
  frame.writeUInt32LE(frame.length, 0);
  frame[4] = FRAME.part;
  frame.writeUInt32LE(1, 12);
  return frame;
}
