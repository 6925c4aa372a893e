import { TAG } from '../change/frame.ts';
import { locatorColumns, type Relation } from '../change/relation.ts';
import { readValue, type SqliteValue, TupleSource, tupleLength, valueEnd } from '../replica/tuple.ts';
import type { DifferenceKind, RowDifference } from './difference-spool.ts';

/** A row that differs, for people: values are printed as SQLite literals, which show their storage class. */
export interface PrintedDifference {
  readonly kind: DifferenceKind;
  /** By column; of a table without a key, the whole row. */
  readonly key: Readonly<Record<string, string>>;
  /** The columns that differ, where the row is on both sides. */
  readonly columns: readonly {
    readonly column: string;
    readonly postgres: string;
    readonly file: string;
  }[];
  readonly count: number;
}

/** What is shown of a long value, around the place where the two sides part. */
const SHOWN_CHARACTERS = 60;
const SHOWN_BEFORE = 20;

export function describeDifference(relation: Relation, difference: RowDifference): PrintedDifference {
  const { kind, expected, actual, count } = difference;
  const names = relation.columns.map((column) => column.name);
  const row = expected ?? actual!;
  const key = locatorColumns(relation);
  const values = printTuple(row);
  const columns: PrintedDifference['columns'][number][] = [];
  if (expected !== null && actual !== null) {
    const left = printTuple(expected);
    const right = printTuple(actual);
    const spans = [spansOf(expected), spansOf(actual)] as const;
    for (const [index, column] of names.entries()) {
      if (spans[0][index]!.equals(spans[1][index]!)) continue;
      const [postgres, file] = cutPair(left[index]!, right[index]!);
      columns.push({ column, postgres, file });
    }
  }
  const shown = key.length > 0 ? key : names.map((_, index) => index);
  return {
    kind,
    key: Object.fromEntries(shown.map((index) => [names[index]!, cut(values[index]!, 0)])),
    columns,
    count,
  };
}

function spansOf(tuple: Buffer): Buffer[] {
  const spans: Buffer[] = [];
  for (let left = tupleLength(tuple, 0), at = 2; left > 0; left--) {
    const end = valueEnd(tuple, at);
    spans.push(tuple.subarray(at, end));
    at = end;
  }
  return spans;
}

function printTuple(tuple: Buffer): string[] {
  const source = new TupleSource();
  source.set(tuple);
  const texts: string[] = [];
  for (let left = tupleLength(tuple, 0), at = 2; left > 0; left--) {
    const end = valueEnd(tuple, at);
    const value = readValue(source, at, true);
    const bytes = tuple.subarray(at + (tuple[at] === TAG.text ? 5 : 1), end);
    const isUtf8 = typeof value !== 'string' || Buffer.from(value).equals(bytes);
    texts.push(isUtf8 ? printValue(value) : `cast(${printValue(bytes)} as text)`);
    at = end;
  }
  return texts;
}

/** As a literal of SQL: text in quotes, blobs as x'', a REAL always with a point or an exponent. */
export function printValue(value: SqliteValue): string {
  if (value === null) return 'NULL';
  if (Buffer.isBuffer(value)) return `x'${value.toString('hex')}'`;
  if (typeof value === 'string') return `'${printable(value)}'`;
  if (typeof value === 'bigint') return value.toString();
  if (Object.is(value, -0)) return '-0.0';
  const text = String(value);
  return Number.isInteger(value) && !text.includes('e') ? `${text}.0` : text;
}

/** Nothing that a terminal would act on. */
function printable(text: string): string {
  return text
    .replaceAll("'", "''")
    .replace(/\p{C}/gu, (character) => `\\u{${character.codePointAt(0)!.toString(16)}}`);
}

/** Two values that differ, cut to where they do. */
function cutPair(left: string, right: string): [string, string] {
  let same = 0;
  while (same < left.length && left[same] === right[same]) same++;
  const from = Math.max(0, same - SHOWN_BEFORE);
  return [cut(left, from), cut(right, from)];
}

function cut(text: string, from: number): string {
  if (text.length <= SHOWN_CHARACTERS) return text;
  const start = Math.min(from, Math.max(0, text.length - SHOWN_CHARACTERS));
  const end = start + SHOWN_CHARACTERS;
  return `${start > 0 ? '…' : ''}${text.slice(start, end)}${end < text.length ? '…' : ''}`;
}
