import { ProtocolError } from '../errors.ts';
import type { FrameWriter } from './frame-writer.ts';
import type { ScalarMapping } from './relation.ts';
import { normalizeTimestamp } from './timestamp-text.ts';

const QUOTE = 0x22;
const BACKSLASH = 0x5c;
const OPEN = 0x7b;
const CLOSE = 0x7d;
const COMMA = 0x2c;
const BOUNDS = 0x5b; // [
const SPACE = 0x20;

const NULL = Buffer.from('NULL');
const JSON_NULL = Buffer.from('null');
const TRUE = Buffer.from('true');
const FALSE = Buffer.from('false');

/** As JSON.stringify() writes them. */
const CONTROLS: readonly Buffer[] = Array.from({ length: SPACE }, (_, code) =>
  Buffer.from(JSON.stringify(String.fromCharCode(code)).slice(1, -1)),
);
const LONGEST_ESCAPE_BYTES = 6;
/** Room is made for so many bytes at a time, all of which might be escaped. */
const STEP_BYTES = 4096;

const KEPT_BYTES = 64 * 1024;

/** The JSON, until its length is known. What a large array needed is let go again. */
let json = Buffer.allocUnsafeSlow(KEPT_BYTES);
let length = 0;

/**
 * Whether no other array becomes the same JSON: bounds have no place there, and the null of json itself is the same as none.
 */
export function isOneToOne(source: Buffer, from: number, element: ScalarMapping): boolean {
  return element !== 'json' && source[from] !== BOUNDS;
}

/**
 * Writes Postgres's text of an array as a JSON array, nested as the array is. Numbers keep all their digits. From bytes to
 * bytes: arrays may be longer than strings can be.
 * https://www.postgresql.org/docs/current/arrays.html#ARRAYS-IO
 */
export function writeArrayAsJson(
  source: Buffer,
  from: number,
  to: number,
  { array: element, delimiter }: { readonly array: ScalarMapping; readonly delimiter: string },
  out: FrameWriter,
): void {
  length = 0;
  const between = delimiter.charCodeAt(0);
  // Lower bounds that are not 1 stand in front.
  let at = source[from] === BOUNDS ? source.indexOf('=', from) + 1 : from;
  let depth = 0;
  let separate = false;
  while (at < to) {
    const byte = source[at];
    if (byte === between) {
      at++;
    } else if (byte === CLOSE) {
      put(0x5d);
      separate = true;
      at++;
      if (--depth === 0) break;
    } else {
      if (separate) put(COMMA);
      separate = byte !== OPEN;
      if (byte === OPEN) {
        put(0x5b);
        depth++;
        at++;
      } else {
        const isQuoted = byte === QUOTE;
        const start = isQuoted ? at + 1 : at;
        const end = isQuoted ? endOfQuoted(source, start, to) : endOfPlain(source, start, to, between);
        writeElement(source, start, end, isQuoted, element);
        at = isQuoted ? end + 1 : end;
      }
    }
  }
  if (depth !== 0 || at !== to || length === 0) throw unterminated();
  out.writeText(json, 0, length);
  if (json.length > KEPT_BYTES) json = Buffer.allocUnsafeSlow(KEPT_BYTES);
}

function endOfQuoted(source: Buffer, from: number, to: number): number {
  for (let at = from; at < to; at++) {
    const byte = source[at];
    if (byte === QUOTE) return at;
    if (byte === BACKSLASH) at++;
  }
  throw unterminated();
}

function endOfPlain(source: Buffer, from: number, to: number, between: number): number {
  let at = from;
  while (at < to && source[at] !== between && source[at] !== CLOSE) at++;
  return at;
}

function writeElement(
  source: Buffer,
  from: number,
  to: number,
  isQuoted: boolean,
  element: ScalarMapping,
): void {
  if (!isQuoted && to - from === NULL.length && source.compare(NULL, 0, NULL.length, from, to) === 0) {
    write(JSON_NULL, 0, JSON_NULL.length);
    return;
  }
  switch (element) {
    case 'bool': {
      const value = source[from] === 0x74 ? TRUE : FALSE;
      write(value, 0, value.length);
      break;
    }
    case 'int':
    case 'float':
    case 'numeric':
      if (isJsonNumber(source, from, to)) write(source, from, to);
      else writeString(source, from, to, isQuoted);
      break;
    case 'json':
      if (isQuoted) writeUnquoted(source, from, to);
      else write(source, from, to);
      break;
    case 'timestamp':
    case 'timestamptz': {
      const text = Buffer.from(JSON.stringify(normalizeTimestamp(source.latin1Slice(from, to))));
      write(text, 0, text.length);
      break;
    }
    case 'text':
    case 'date':
    case 'bytea':
      writeString(source, from, to, isQuoted);
      break;
  }
}

/** -?\d+(\.\d+)?([eE][+-]?\d+)? */
function isJsonNumber(source: Buffer, from: number, to: number): boolean {
  let at = source[from] === 0x2d ? from + 1 : from;
  const digits = (): boolean => {
    const start = at;
    while (at < to && source[at]! >= 0x30 && source[at]! <= 0x39) at++;
    return at > start;
  };
  if (!digits()) return false;
  if (at < to && source[at] === 0x2e) {
    at++;
    if (!digits()) return false;
  }
  if (at < to && (source[at]! | 0x20) === 0x65) {
    at++;
    if (at < to && (source[at] === 0x2b || source[at] === 0x2d)) at++;
    if (!digits()) return false;
  }
  return at === to;
}

function writeString(source: Buffer, from: number, to: number, isQuoted: boolean): void {
  put(QUOTE);
  for (let at = from; at < to; ) {
    const end = Math.min(to, at + STEP_BYTES);
    reserve(STEP_BYTES * LONGEST_ESCAPE_BYTES);
    for (; at < end; at++) {
      let byte = source[at]!;
      if (isQuoted && byte === BACKSLASH) byte = source[++at]!;
      if (byte < SPACE) {
        length += CONTROLS[byte]!.copy(json, length);
        continue;
      }
      if (byte === QUOTE || byte === BACKSLASH) json[length++] = BACKSLASH;
      json[length++] = byte;
    }
  }
  put(QUOTE);
}

function writeUnquoted(source: Buffer, from: number, to: number): void {
  reserve(to - from);
  for (let at = from; at < to; at++) {
    let byte = source[at]!;
    if (byte === BACKSLASH) byte = source[++at]!;
    json[length++] = byte;
  }
}

function write(source: Buffer, from: number, to: number): void {
  reserve(to - from);
  if (to - from <= 32) for (let at = from; at < to; at++) json[length++] = source[at]!;
  else length += source.copy(json, length, from, to);
}

function put(byte: number): void {
  reserve(1);
  json[length++] = byte;
}

function reserve(bytes: number): void {
  if (length + bytes <= json.length) return;
  const larger = Buffer.allocUnsafeSlow(Math.max(json.length * 2, length + bytes));
  json.copy(larger, 0, 0, length);
  json = larger;
}

function unterminated(): ProtocolError {
  return new ProtocolError('Postgres sent an array whose text does not end where it should');
}
