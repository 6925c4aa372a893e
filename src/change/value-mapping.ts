import { ProtocolError } from '../errors.ts';
import { isOneToOne, writeArrayAsJson } from './array-text.ts';
import { TAG } from './frame.ts';
import { FrameWriter } from './frame-writer.ts';
import type { ScalarMapping, ValueMapping } from './relation.ts';

/**
 * The one mapping of values, from the text that Postgres prints (DateStyle ISO, TimeZone UTC, IntervalStyle
 * postgres, extra_float_digits 3, bytea_output hex, UTF-8) to what SQLite stores. The initial copy and the
 * stream both go through here, so they give the same bytes. README shows it as a table.
 */
export type ValueEncoder = (source: Buffer, from: number, to: number, out: FrameWriter) => void;

const SCALARS: Record<ScalarMapping, ValueEncoder> = {
  bool: encodeBool,
  int: encodeInt,
  float: encodeFloat,
  numeric: encodeNumeric,
  text: encodeText,
  json: encodeText,
  bytea: encodeBytea,
  date: encodeText,
  timestamp: encodeTimestamp,
  timestamptz: encodeTimestamptz,
};

export function valueEncoder(mapping: ValueMapping): ValueEncoder {
  if (typeof mapping === 'string') return SCALARS[mapping];
  return (source, from, to, out) => {
    if (mapping.isKey === true && !isOneToOne(source, from, mapping.array)) out.writeText(source, from, to);
    else writeArrayAsJson(source, from, to, mapping, out);
  };
}

/** One for all: there may be thousands of values to write, and each writer has a slab. */
let single: FrameWriter | undefined;

/** What the text of one value becomes, with its tag, for where tuples have no place. */
export function valueAsBase64(mapping: ValueMapping, text: string): string {
  single ??= new FrameWriter();
  const bytes = Buffer.from(text);
  valueEncoder(mapping)(bytes, 0, bytes.length, single);
  const value = single.take(single.pendingBytes).toString('base64');
  single.rewind();
  return value;
}

const ZERO = 0x30;
const MINUS = 0x2d;
const POINT = 0x2e;

function encodeText(source: Buffer, from: number, to: number, out: FrameWriter): void {
  out.writeText(source, from, to);
}

function encodeBool(source: Buffer, from: number, _to: number, out: FrameWriter): void {
  out.writeInt32(source[from] === 0x74 ? 1 : 0);
}

function encodeInt(source: Buffer, from: number, to: number, out: FrameWriter): void {
  // Fifteen digits always fit a double's 53 bits.
  if (to - from > 15) {
    out.writeInt64(BigInt(source.latin1Slice(from, to)));
    return;
  }
  const negative = source[from] === MINUS;
  let value = 0;
  for (let index = negative ? from + 1 : from; index < to; index++) {
    const digit = source[index]! - ZERO;
    if (digit < 0 || digit > 9) throw notA('integer', source, from, to);
    value = value * 10 + digit;
  }
  out.writeInteger(negative ? -value : value);
}

function encodeFloat(source: Buffer, from: number, to: number, out: FrameWriter): void {
  const text = source.latin1Slice(from, to);
  // SQLite turns a bound NaN into NULL (https://www.sqlite.org/floatingpoint.html), so it stays a word.
  if (text === 'NaN') {
    out.writeText(source, from, to);
    return;
  }
  out.writeReal(Number(text));
}

const MIN_INT64 = -(2n ** 63n);
const MAX_INT64 = 2n ** 63n - 1n;
/** A double gives back any decimal of so many significant digits, in its normal range. */
const MAX_REAL_DIGITS = 15;
/** Zeros behind the point after which 15 digits would reach into the subnormal doubles, which hold fewer. */
const MAX_LEADING_ZEROS = 290;

/**
 * INTEGER if the value is an integer of 64 bits, REAL if it has at most 15 significant digits, otherwise TEXT
 * with all digits. Zeros that end a fraction are not significant: 5.00 is the integer 5.
 */
function encodeNumeric(source: Buffer, from: number, to: number, out: FrameWriter): void {
  const negative = source[from] === MINUS;
  const digitsFrom = negative ? from + 1 : from;
  const first = source[digitsFrom]!;
  if (first < ZERO || first > ZERO + 9) {
    // NaN, Infinity
    out.writeText(source, from, to);
    return;
  }
  let point = to;
  let end = to;
  for (let index = digitsFrom; index < to; index++) {
    if (source[index] === POINT) {
      point = index;
      break;
    }
  }
  if (point < to) {
    while (source[end - 1] === ZERO) end--;
    if (end - 1 === point) end = point;
  }
  if (end <= point) {
    encodeNumericInteger(source, from, to, point, out);
    return;
  }
  let significantFrom = digitsFrom;
  while (source[significantFrom] === ZERO || source[significantFrom] === POINT) significantFrom++;
  const significant = end - significantFrom - (significantFrom <= point ? 1 : 0);
  if (significant <= MAX_REAL_DIGITS && significantFrom - point <= MAX_LEADING_ZEROS) {
    out.writeReal(Number(source.latin1Slice(from, end)));
  } else {
    out.writeText(source, from, to);
  }
}

/** `from` to `point` are the digits of an integer (with its sign), `from` to `to` all that Postgres printed. */
function encodeNumericInteger(
  source: Buffer,
  from: number,
  to: number,
  point: number,
  out: FrameWriter,
): void {
  if (point - from <= 15) {
    encodeInt(source, from, point, out);
    return;
  }
  if (point - from <= 20) {
    const value = BigInt(source.latin1Slice(from, point));
    if (value >= MIN_INT64 && value <= MAX_INT64) {
      out.writeInt64(value);
      return;
    }
  }
  out.writeText(source, from, to);
}

const HEX = new Int8Array(256).fill(-1);
for (let digit = 0; digit < 16; digit++) {
  HEX['0123456789abcdef'.charCodeAt(digit)] = digit;
  HEX['0123456789ABCDEF'.charCodeAt(digit)] = digit;
}

function encodeBytea(source: Buffer, from: number, to: number, out: FrameWriter): void {
  if (source[from] !== 0x5c || source[from + 1] !== 0x78 || (to - from) % 2 !== 0)
    throw notA('bytea in hex', source, from, to);
  const length = (to - from - 2) / 2;
  out.reserve(length + 5);
  const { bytes } = out;
  let { at } = out;
  bytes[at] = TAG.blob;
  out.setUInt32(at + 1, length);
  at += 5;
  for (let index = from + 2; index < to; index += 2) {
    const byte = (HEX[source[index]!]! << 4) | HEX[source[index + 1]!]!;
    if (byte < 0) throw notA('bytea in hex', source, from, to);
    bytes[at++] = byte;
  }
  out.at = at;
}

/** `2026-11-21 03:00:00`: what is always there in a timestamp of the years 1 to 9999. */
const SECONDS_LENGTH = 19;
const LAST_OF_BC = 0x43;

function encodeTimestamp(source: Buffer, from: number, to: number, out: FrameWriter): void {
  if (isOrdinaryTimestamp(source, from, to)) writeSixDigits(source, from, to, false, out);
  else out.writeText(source, from, to);
}

function encodeTimestamptz(source: Buffer, from: number, to: number, out: FrameWriter): void {
  if (source[to - 3] === 0x2b && isOrdinaryTimestamp(source, from, to - 3))
    writeSixDigits(source, from, to - 3, true, out);
  else out.writeText(source, from, to);
}

/** Not infinity, not BC, no year past 9999: those stay as Postgres prints them. */
function isOrdinaryTimestamp(source: Buffer, from: number, to: number): boolean {
  const length = to - from;
  return (
    length >= SECONDS_LENGTH &&
    length <= SECONDS_LENGTH + 7 &&
    source[from + 4] === MINUS &&
    source[from + 10] === 0x20 &&
    (length === SECONDS_LENGTH || (source[from + SECONDS_LENGTH] === POINT && source[to - 1] !== LAST_OF_BC))
  );
}

function writeSixDigits(source: Buffer, from: number, to: number, utc: boolean, out: FrameWriter): void {
  const length = SECONDS_LENGTH + 7 + (utc ? 1 : 0);
  out.reserve(length + 1);
  out.bytes[out.at++] = TAG.shortText + length;
  out.writeRaw(source, from, to);
  const { bytes } = out;
  let { at } = out;
  if (to - from === SECONDS_LENGTH) bytes[at++] = POINT;
  for (let digits = Math.max(0, to - from - SECONDS_LENGTH - 1); digits < 6; digits++) bytes[at++] = ZERO;
  if (utc) bytes[at++] = 0x5a;
  out.at = at;
}

function notA(what: string, source: Buffer, from: number, to: number): ProtocolError {
  // The value itself is data of the user's: only its length goes into the message.
  return new ProtocolError(
    `Postgres sent a value of ${to - from} bytes (first byte ${source[from]}) that is not a ${what}`,
    {
      hint: 'check that no proxy or role setting changes bytea_output, DateStyle or the like after connecting',
    },
  );
}
