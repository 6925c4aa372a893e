import { copyWords, MAX_WORDWISE_BYTES } from '../change/copy-words.ts';
import { TAG } from '../change/frame.ts';
import { ProtocolError } from '../errors.ts';
import { rowidColumn, type TableLayout } from './table-layout.ts';
import { readUInt32, type TupleSource, tupleLength } from './tuple.ts';
import { varintBytes, writeVarint } from './varint.ts';

/** Serial types: https://www.sqlite.org/fileformat2.html#record_format */
const SERIAL = { null: 0, real: 7, zero: 8, one: 9, blob: 12, text: 13 } as const;

/**
 * Rows of one table as SQLite stores them. Equal, byte for byte, to what SQLite makes of the same values when they
 * are inserted: that rests on the affinities of table-layout.ts, which convert nothing.
 */
export class RowRecord {
  readonly #source: TupleSource;
  readonly #rowidColumn: number;
  readonly #columnCount: number;
  /** Of the row measured last: type and place of each value. */
  readonly #types: Int32Array;
  readonly #starts: Int32Array;
  #headerBytes = 0;
  payloadBytes = 0;
  /** The rowid's 64 bits, both halves signed. Where it is none of the columns, the caller gives it. */
  rowidHigh = 0;
  rowidLow = 0;

  constructor(source: TupleSource, layout: TableLayout) {
    this.#source = source;
    this.#rowidColumn = rowidColumn(layout);
    this.#columnCount = layout.relation.columns.length;
    this.#types = new Int32Array(Math.max(1, this.#columnCount));
    this.#starts = new Int32Array(Math.max(1, this.#columnCount));
  }

  /** Finds rowid and length of the row whose tuple stands at `tuple`. */
  measure(tuple: number): void {
    const { bytes } = this.#source;
    const count = this.#columnCount;
    const types = this.#types;
    const starts = this.#starts;
    if (tupleLength(bytes, tuple) !== count) {
      throw new ProtocolError(
        `a row has ${tupleLength(bytes, tuple)} values where the table has ${count} columns`,
      );
    }
    let header = 0;
    let body = 0;
    let at = tuple + 2;
    for (let column = 0; column < count; column++) {
      const tag = bytes[at]!;
      let type: number;
      if (tag >= TAG.shortText) {
        const length = tag - TAG.shortText;
        type = SERIAL.text + 2 * length;
        starts[column] = at + 1;
        at += 1 + length;
        body += length;
      } else if (column === this.#rowidColumn) {
        at = this.#takeRowid(tag, at);
        type = SERIAL.null;
      } else if (tag === TAG.int32) {
        const value =
          bytes[at + 1]! | (bytes[at + 2]! << 8) | (bytes[at + 3]! << 16) | (bytes[at + 4]! << 24);
        type = integerType(value);
        starts[column] = at + 1;
        at += 5;
        body += serialBytes(type);
      } else {
        type = this.#typeAt(tag, at);
        const isLong = tag === TAG.text || tag === TAG.blob;
        starts[column] = isLong ? at + 5 : at + 1;
        const length = serialBytes(type);
        at += isLong ? 5 + length : tag === TAG.null ? 1 : 9;
        body += length;
      }
      types[column] = type;
      header += type < 0x80 ? 1 : varintBytes(0, type);
    }
    // A table without columns has its placeholder, which every row leaves NULL.
    if (count === 0) header = 1;
    header += header < 0x7f ? 1 : 2;
    this.#headerBytes = header;
    this.payloadBytes = header + body;
  }

  /** Writes the row measured last; `view` is of `target`. */
  write(target: Buffer, view: DataView, at: number): void {
    const { bytes, view: source } = this.#source;
    const types = this.#types;
    const starts = this.#starts;
    const count = this.#columnCount;
    let body = at + this.#headerBytes;
    at = writeVarint(target, at, 0, this.#headerBytes);
    if (count === 0) target[at] = SERIAL.null;
    for (let column = 0; column < count; column++) {
      const type = types[column]!;
      const start = starts[column]!;
      if (type < 0x80) target[at++] = type;
      else at = writeVarint(target, at, 0, type);
      if (type >= SERIAL.blob) {
        const length = (type - SERIAL.blob) >>> 1;
        if (length > MAX_WORDWISE_BYTES) bytes.copy(target, body, start, start + length);
        else if (length >= 8) copyWords(view, body, source, start, length);
        else for (let index = 0; index < length; index++) target[body + index] = bytes[start + index]!;
        body += length;
      } else if (type !== SERIAL.null && type < SERIAL.zero) {
        // Numbers stand here with their lowest byte first, there with their highest.
        const length = serialBytes(type);
        for (let index = length - 1; index >= 0; index--) target[body++] = bytes[start + index]!;
      }
    }
  }

  #takeRowid(tag: number, at: number): number {
    const { view } = this.#source;
    if (tag === TAG.int32) {
      this.rowidLow = view.getInt32(at + 1, true);
      this.rowidHigh = this.rowidLow >> 31;
      return at + 5;
    }
    if (tag !== TAG.int64) throw new ProtocolError(`a key of integers has the tag ${tag}`);
    this.rowidLow = view.getInt32(at + 1, true);
    this.rowidHigh = view.getInt32(at + 5, true);
    return at + 9;
  }

  #typeAt(tag: number, at: number): number {
    const { bytes, view } = this.#source;
    switch (tag) {
      case TAG.null:
        return SERIAL.null;
      case TAG.int64: {
        const high = view.getInt32(at + 5, true);
        const low = view.getInt32(at + 1, true);
        if (high === low >> 31) return integerType(low);
        return (high < 0 ? ~high : high) < 0x8000 ? 5 : 6;
      }
      case TAG.real:
        // SQLite has no NaN.
        return Number.isNaN(view.getFloat64(at + 1, true)) ? SERIAL.null : SERIAL.real;
      case TAG.text:
        return SERIAL.text + 2 * readUInt32(bytes, at + 1);
      case TAG.blob:
        return SERIAL.blob + 2 * readUInt32(bytes, at + 1);
      case TAG.unchanged:
        throw new ProtocolError('a value that must be there was not sent');
      default:
        throw new ProtocolError(`a value has the unknown tag ${tag}`);
    }
  }
}

function integerType(value: number): number {
  const magnitude = value < 0 ? ~value : value;
  if (magnitude <= 0x7f) return value === 0 ? SERIAL.zero : value === 1 ? SERIAL.one : 1;
  if (magnitude <= 0x7fff) return 2;
  return magnitude <= 0x7f_ffff ? 3 : 4;
}

/** How many bytes a value of this type takes in the body. */
function serialBytes(type: number): number {
  if (type >= SERIAL.blob) return (type - SERIAL.blob) >>> 1;
  if (type <= 4) return type;
  return type === 5 ? 6 : type <= SERIAL.real ? 8 : 0;
}
