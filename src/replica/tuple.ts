import { TAG } from '../change/frame.ts';
import { ProtocolError } from '../errors.ts';

/** What better-sqlite3 binds. A number becomes REAL, which INTEGER affinity turns back into an integer. */
export type SqliteValue = number | bigint | string | Buffer | null;

/** The frames that are being applied. Tuples are offsets into it; nothing is decoded that is not written. */
export class TupleSource {
  bytes: Buffer = Buffer.alloc(0);
  view: DataView = new DataView(new ArrayBuffer(0));

  set(frames: Buffer): void {
    this.bytes = frames;
    this.view = new DataView(frames.buffer, frames.byteOffset, frames.length);
  }
}

export function readUInt32(bytes: Buffer, at: number): number {
  return (bytes[at]! | (bytes[at + 1]! << 8) | (bytes[at + 2]! << 16) | (bytes[at + 3]! << 24)) >>> 0;
}

export function tupleLength(bytes: Buffer, tuple: number): number {
  return bytes[tuple]! | (bytes[tuple + 1]! << 8);
}

/** Where the value that starts at `at` ends. */
export function valueEnd(bytes: Buffer, at: number): number {
  const tag = bytes[at]!;
  if (tag >= TAG.shortText) return at + 1 + tag - TAG.shortText;
  switch (tag) {
    case TAG.null:
    case TAG.unchanged:
      return at + 1;
    case TAG.int32:
      return at + 5;
    case TAG.int64:
    case TAG.real:
      return at + 9;
    case TAG.text:
    case TAG.blob:
      return at + 5 + readUInt32(bytes, at + 1);
    default:
      throw new ProtocolError(`a value has the unknown tag ${tag}`);
  }
}

/** Where the value at `place` of a tuple starts. */
export function valueAt(bytes: Buffer, tuple: number, place: number): number {
  let at = tuple + 2;
  for (let index = 0; index < place; index++) at = valueEnd(bytes, at);
  return at;
}

export function tupleEnd(bytes: Buffer, tuple: number): number {
  return valueAt(bytes, tuple, tupleLength(bytes, tuple));
}

export function hasUnchanged(bytes: Buffer, tuple: number): boolean {
  const count = tupleLength(bytes, tuple);
  let at = tuple + 2;
  for (let index = 0; index < count; index++) {
    if (bytes[at] === TAG.unchanged) return true;
    at = valueEnd(bytes, at);
  }
  return false;
}

const TWO_32 = 4_294_967_296;
const MAX_SAFE_HIGH = 0x1f_ffff;

/**
 * One value as better-sqlite3 takes it. `exactIntegers` for columns without affinity, where a JavaScript number
 * would be stored as REAL; elsewhere a number is cheaper than a bigint and as exact up to 2^53.
 */
export function readValue(source: TupleSource, at: number, exactIntegers: boolean): SqliteValue {
  const { bytes } = source;
  const tag = bytes[at]!;
  if (tag >= TAG.shortText) {
    return tag === TAG.shortText ? '' : bytes.utf8Slice(at + 1, at + 1 + tag - TAG.shortText);
  }
  switch (tag) {
    case TAG.null:
      return null;
    case TAG.int32: {
      const value = bytes[at + 1]! | (bytes[at + 2]! << 8) | (bytes[at + 3]! << 16) | (bytes[at + 4]! << 24);
      return exactIntegers ? BigInt(value) : value;
    }
    case TAG.int64: {
      const high = source.view.getInt32(at + 5, true);
      if (exactIntegers || high > MAX_SAFE_HIGH || high < -MAX_SAFE_HIGH)
        return source.view.getBigInt64(at + 1, true);
      return high * TWO_32 + source.view.getUint32(at + 1, true);
    }
    case TAG.real:
      return source.view.getFloat64(at + 1, true);
    case TAG.text:
      return bytes.utf8Slice(at + 5, at + 5 + readUInt32(bytes, at + 1));
    case TAG.blob:
      return bytes.subarray(at + 5, at + 5 + readUInt32(bytes, at + 1));
    case TAG.unchanged:
      throw new ProtocolError('a value that must be there was not sent');
    default:
      throw new ProtocolError(`a value has the unknown tag ${tag}`);
  }
}

/** A single value with its tag, as valueAsBase64() writes it. */
export function valueOfBase64(text: string): SqliteValue {
  const source = new TupleSource();
  source.set(Buffer.from(text, 'base64'));
  return readValue(source, 0, true);
}

/**
 * Decodes a whole tuple into `into`, the value of column i at `base + places[i]`. Values that Postgres did not
 * send are left out; returns how many those are.
 */
export function decodeTuple(
  source: TupleSource,
  tuple: number,
  columns: ColumnPlaces,
  into: SqliteValue[],
  base: number,
): number {
  const { bytes, view } = source;
  const { places, exactIntegers } = columns;
  const count = places.length;
  if (tupleLength(bytes, tuple) !== count) {
    throw new ProtocolError(
      `a row has ${tupleLength(bytes, tuple)} values where the table has ${count} columns`,
    );
  }
  let at = tuple + 2;
  let unchanged = 0;
  for (let index = 0; index < count; index++) {
    const tag = bytes[at]!;
    let value: SqliteValue;
    if (tag >= TAG.shortText) {
      const end = at + 1 + tag - TAG.shortText;
      value = tag === TAG.shortText ? '' : bytes.utf8Slice(at + 1, end);
      at = end;
    } else if (tag === TAG.int32) {
      const integer = view.getInt32(at + 1, true);
      value = exactIntegers[index] ? BigInt(integer) : integer;
      at += 5;
    } else if (tag === TAG.null) {
      value = null;
      at++;
    } else if (tag === TAG.unchanged) {
      unchanged++;
      at++;
      continue;
    } else {
      value = readValue(source, at, exactIntegers[index]!);
      at = valueEnd(bytes, at);
    }
    into[base + places[index]!] = value;
  }
  return unchanged;
}

/** Where each column's value goes among a statement's parameters, and how its integers are bound. */
export interface ColumnPlaces {
  readonly places: readonly number[];
  readonly exactIntegers: readonly boolean[];
}
