import { CHANGE, CHANGE_HEADER_BYTES, TAG } from '../change/frame.ts';
import { type LeftOutValue, locatorColumns, type Relation } from '../change/relation.ts';
import { ProtocolError } from '../errors.ts';
import { hasUnchanged, readUInt32, tupleEnd, tupleLength, valueAt, valueEnd } from '../replica/tuple.ts';
import { keyText } from './table-sums.ts';

/** The newest version of a row that the changes touched. */
export interface FoldedRow {
  /** Null: deleted. Values that Postgres did not send are marked unchanged. */
  readonly tuple: Buffer | null;
  /** Key of the row before the changes that unchanged values come from. */
  readonly base: string | null;
}

/** What the changes did to one table. */
export interface TableChanges {
  /** Nothing is left of the rows from before the changes. */
  readonly isTruncated: boolean;
  /** By key, for tables with one. */
  readonly rows: ReadonlyMap<string, FoldedRow>;
  /** By whole row, for tables without: how many more (or fewer) there are of it. */
  readonly counts: ReadonlyMap<string, number>;
  /** What the rows lack because no row of SQLite can hold it. */
  readonly leftOut: readonly LeftOutValue[];
}

interface MutableChanges extends TableChanges {
  isTruncated: boolean;
  readonly key: readonly number[];
  readonly rows: Map<string, FoldedRow>;
  readonly counts: Map<string, number>;
  readonly leftOut: LeftOutValue[];
}

/**
 * Folds transactions, in commit order, into the last word about every row that they touched: Postgres's content
 * at one position and this give its content at a later one.
 *
 * Rows go by the same columns by which the stream finds them. Where there are none (no key, or a deferrable one,
 * which may be violated inside a transaction) a table is a bag of rows, and changes add to it and take from it.
 */
export class ChangeFold {
  readonly #tables: ReadonlyMap<number, MutableChanges>;
  #bytes = 0;

  constructor(relations: Iterable<Relation>) {
    this.#tables = new Map(
      [...relations].map((relation) => [
        relation.oid,
        {
          isTruncated: false,
          key: locatorColumns(relation),
          rows: new Map(),
          counts: new Map(),
          leftOut: [],
        },
      ]),
    );
  }

  /** About what the fold holds. */
  get bytes(): number {
    return this.#bytes;
  }

  of(oid: number): TableChanges | undefined {
    return this.#tables.get(oid);
  }

  /** Takes the changes that stand between `from` and `end`. */
  take(frames: Buffer, from: number, end: number): void {
    let at = from;
    while (at < end) {
      const kind = frames[at]!;
      const table = this.#tables.get(readUInt32(frames, at + 1));
      const body = at + CHANGE_HEADER_BYTES;
      at = body + readUInt32(frames, at + 5);
      if (table === undefined) continue;
      this.#bytes += at - body + CHANGE_HEADER_BYTES;
      if (kind === CHANGE.truncate) {
        table.isTruncated = true;
        table.rows.clear();
        table.counts.clear();
        table.leftOut.length = 0;
      } else if (kind === CHANGE.leftOut) {
        table.leftOut.push(JSON.parse(frames.utf8Slice(body, at)) as LeftOutValue);
      } else if (table.key.length === 0) {
        changeBag(table, kind, frames, body);
      } else {
        changeRow(table, kind, frames, body);
      }
    }
    if (at !== end) throw new ProtocolError('the changes of a frame do not fill it');
  }
}

/**
 * The row as the changes leave it; `before` gives rows as they were before them, by key. Unknown: values of it were
 * not sent, and the row that has them was not given.
 */
export function resolveRow(
  { tuple, base }: FoldedRow,
  before: (key: string) => Buffer | undefined,
): Buffer | null | 'unknown' {
  if (tuple === null || !hasUnchanged(tuple, 0)) return tuple;
  const older = base === null ? undefined : before(base);
  return older === undefined ? 'unknown' : complete(tuple, older);
}

function changeRow(table: MutableChanges, kind: number, bytes: Buffer, body: number): void {
  const { key, rows } = table;
  switch (kind) {
    case CHANGE.insert:
      rows.set(keyOf(bytes, body, key), { tuple: copyTuple(bytes, body), base: null });
      break;
    case CHANGE.update: {
      const text = keyOf(bytes, body, key);
      updateRow(rows, text, text, copyTuple(bytes, body));
      break;
    }
    case CHANGE.updateKey: {
      const from = keyOfKeyTuple(bytes, body, key);
      const tuple = fillKey(copyTuple(bytes, tupleEnd(bytes, body)), bytes, body, key);
      updateRow(rows, from, keyOf(tuple, 0, key), tuple);
      break;
    }
    case CHANGE.updateFull: {
      const old = copyTuple(bytes, body);
      const tuple = complete(copyTuple(bytes, body + old.length), old);
      updateRow(rows, keyOf(old, 0, key), keyOf(tuple, 0, key), tuple);
      break;
    }
    case CHANGE.deleteKey:
      rows.set(keyOfKeyTuple(bytes, body, key), { tuple: null, base: null });
      break;
    case CHANGE.deleteFull:
      rows.set(keyOf(bytes, body, key), { tuple: null, base: null });
      break;
    default:
      throw new ProtocolError(`a change has the unknown kind ${kind}`);
  }
}

function updateRow(rows: Map<string, FoldedRow>, from: string, to: string, tuple: Buffer): void {
  const before = rows.get(from);
  const row: FoldedRow =
    before === undefined
      ? { tuple, base: from }
      : { tuple: before.tuple === null ? tuple : complete(tuple, before.tuple), base: before.base };
  if (from !== to) rows.set(from, { tuple: null, base: null });
  rows.set(to, row);
}

function changeBag(table: MutableChanges, kind: number, bytes: Buffer, body: number): void {
  const add = (tuple: Buffer, count: number): void => {
    const text = tuple.latin1Slice(0, tuple.length);
    const sum = (table.counts.get(text) ?? 0) + count;
    if (sum === 0) table.counts.delete(text);
    else table.counts.set(text, sum);
  };
  const first = copyTuple(bytes, body);
  switch (kind) {
    case CHANGE.insert:
      add(first, 1);
      break;
    case CHANGE.deleteFull:
      add(first, -1);
      break;
    case CHANGE.updateFull:
      add(first, -1);
      add(complete(copyTuple(bytes, body + first.length), first), 1);
      break;
    default:
      throw new ProtocolError(`a change of a table without a key has the kind ${kind}`);
  }
}

function copyTuple(bytes: Buffer, tuple: number): Buffer {
  return Buffer.from(bytes.subarray(tuple, tupleEnd(bytes, tuple)));
}

function keyOf(bytes: Buffer, tuple: number, key: readonly number[]): string {
  return keyText(bytes, tuple, -1, key);
}

/** An old key holds the key's columns only, in their order. */
function keyOfKeyTuple(bytes: Buffer, tuple: number, key: readonly number[]): string {
  if (tupleLength(bytes, tuple) !== key.length)
    throw new ProtocolError(`an old key has ${tupleLength(bytes, tuple)} values instead of ${key.length}`);
  return bytes.latin1Slice(tuple + 2, valueAt(bytes, tuple, key.length));
}

/** Key values that were not sent again are those of the old key. */
function fillKey(tuple: Buffer, bytes: Buffer, oldKey: number, key: readonly number[]): Buffer {
  return replaceUnchanged(tuple, (column) => {
    const place = key.indexOf(column);
    if (place < 0) return null;
    const at = valueAt(bytes, oldKey, place);
    return bytes.subarray(at, valueEnd(bytes, at));
  });
}

/** Values that Postgres did not send, from an older version of the row, as far as that has them. */
function complete(tuple: Buffer, older: Buffer): Buffer {
  return replaceUnchanged(tuple, (column) => {
    const at = valueAt(older, 0, column);
    return older.subarray(at, valueEnd(older, at));
  });
}

function replaceUnchanged(tuple: Buffer, find: (column: number) => Buffer | null): Buffer {
  const count = tupleLength(tuple, 0);
  const parts: Buffer[] = [];
  let copied = 0;
  for (let column = 0, at = 2; column < count; column++) {
    const end = valueEnd(tuple, at);
    if (tuple[at] === TAG.unchanged) {
      const value = find(column);
      if (value !== null) {
        parts.push(tuple.subarray(copied, at), value);
        copied = end;
      }
    }
    at = end;
  }
  if (copied === 0) return tuple;
  parts.push(tuple.subarray(copied));
  return Buffer.concat(parts);
}
