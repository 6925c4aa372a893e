import {
  CHANGE,
  CHANGE_HEADER_BYTES,
  FRAME,
  PART_HEADER_BYTES,
  TRANSACTION_HEADER_BYTES,
} from '../change/frame.ts';
import { locatorColumns, type SchemaChange } from '../change/relation.ts';
import type { TableLayout } from './table-layout.ts';
import { readUInt32, tupleEnd, tupleLength, valueAt, valueEnd } from './tuple.ts';

interface WatchedTable {
  readonly key: readonly number[];
  readonly rows: Set<string>;
  /** It was truncated or read again, or its definition changed: nothing that was known of it holds. */
  isStale: boolean;
}

/** Notes which of some rows are changed by the frames that are applied. What was rolled back counts too. */
export class RowWatch {
  readonly #tables = new Map<number, WatchedTable>();

  /** `key`: the bytes of the values by which the stream finds the row; null: only the table is watched. */
  add(layout: TableLayout, key: Buffer | null): void {
    const { relation } = layout;
    let table = this.#tables.get(relation.oid);
    if (table === undefined) {
      table = { key: locatorColumns(relation), rows: new Set(), isStale: false };
      this.#tables.set(relation.oid, table);
    }
    if (key !== null) table.rows.add(key.latin1Slice());
  }

  /** Whether the row is as it was when the watch began. */
  isUntouched(oid: number, key: Buffer | null): boolean {
    const table = this.#tables.get(oid);
    if (table === undefined || table.isStale) return false;
    return key === null ? table.key.length === 0 : table.rows.has(key.latin1Slice());
  }

  /** Takes whole frames that are about to be applied. */
  see(frames: Buffer): void {
    for (let at = 0; at < frames.length; ) {
      const end = at + readUInt32(frames, at);
      const type = frames[at + 4];
      if (type === FRAME.transaction) this.#changes(frames, at + TRANSACTION_HEADER_BYTES, end);
      else if (type === FRAME.part) this.#changes(frames, at + PART_HEADER_BYTES, end);
      at = end;
    }
  }

  #changes(bytes: Buffer, from: number, end: number): void {
    for (let at = from; at < end; ) {
      const kind = bytes[at]!;
      const oid = readUInt32(bytes, at + 1);
      const body = at + CHANGE_HEADER_BYTES;
      at = body + readUInt32(bytes, at + 5);
      if (kind === CHANGE.schema) {
        const { changed, dropped, reloading = [] } = JSON.parse(bytes.utf8Slice(body, at)) as SchemaChange;
        for (const { oid: each } of [...changed, ...reloading]) this.#outdate(each);
        for (const each of dropped) this.#outdate(each);
        continue;
      }
      const table = this.#tables.get(oid);
      if (table === undefined) continue;
      if (kind === CHANGE.truncate || kind >= CHANGE.reloadBegin) table.isStale = true;
      else if (table.rows.size > 0) this.#touch(table, kind, bytes, body);
    }
  }

  #touch({ key, rows }: WatchedTable, kind: number, bytes: Buffer, body: number): void {
    const isKeyFirst = kind === CHANGE.updateKey || kind === CHANGE.deleteKey;
    rows.delete(
      isKeyFirst
        ? bytes.latin1Slice(body + 2, valueAt(bytes, body, tupleLength(bytes, body)))
        : keyOf(bytes, body, key),
    );
    if (kind === CHANGE.updateKey || kind === CHANGE.updateFull)
      rows.delete(keyOf(bytes, tupleEnd(bytes, body), key));
  }

  #outdate(oid: number): void {
    const table = this.#tables.get(oid);
    if (table !== undefined) table.isStale = true;
  }
}

/** A key value that was not sent again did not change: the old key has told of the row. */
function keyOf(bytes: Buffer, tuple: number, key: readonly number[]): string {
  let text = '';
  for (const column of key) {
    const at = valueAt(bytes, tuple, column);
    text += bytes.latin1Slice(at, valueEnd(bytes, at));
  }
  return text;
}
