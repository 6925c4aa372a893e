import type { Lsn } from '../lsn.ts';
import type { PlainError } from '../plain-error.ts';
import type { KeyRange } from '../replica/stored-rows.ts';
import type { TableLayout } from '../replica/table-layout.ts';

/** A part of a table to look at. */
export interface TablePart {
  readonly oid: number;
  /** Places of the columns that rows go by; empty: whole rows. */
  readonly key: readonly number[];
  /** Null: the whole table. */
  readonly range: KeyRange | null;
  /** Keys of rows that are looked at by themselves. */
  readonly apart: readonly string[];
}

export type FileRequest =
  /** Begins to read as of the first position at or behind this one. */
  | { readonly kind: 'begin'; readonly target: Lsn; readonly timeoutMs: number }
  | { readonly kind: 'end' }
  /** Where the part of a table ends that begins at `from` and has about so many rows; null: with the table. */
  | {
      readonly kind: 'boundary';
      readonly oid: number;
      readonly column: string;
      readonly from: bigint | null;
      readonly rows: number;
    }
  | ({ readonly kind: 'sum' } & TablePart)
  /** Begins to give out the rows of some buckets: one flag each. */
  | ({ readonly kind: 'pick'; readonly buckets: Uint8Array<ArrayBuffer> } & TablePart)
  | { readonly kind: 'more' };

export interface FileSnapshot {
  readonly position: Lsn;
  readonly epoch: string;
  readonly layouts: ReadonlyMap<number, TableLayout>;
  /** Tables that are being read again: what the file has of them is of an earlier position. */
  readonly reloading: readonly number[];
}

export interface WireSums {
  readonly rows: number;
  readonly counts: Uint32Array<ArrayBuffer>;
  readonly low: Uint32Array<ArrayBuffer>;
  readonly high: Uint32Array<ArrayBuffer>;
  readonly apart: readonly (readonly [key: string, tuple: Uint8Array, count: number])[];
}

/** What each request is answered with. */
export interface FileReplies {
  /** Not there in time: where the file stands instead, and whether it moved at all. */
  readonly begin: FileSnapshot | { readonly late: Lsn; readonly hasMoved: boolean };
  readonly end: null;
  readonly boundary: bigint | null;
  readonly sum: WireSums;
  readonly pick: null;
  /** Tuples, each behind its length (u32). */
  readonly more: { readonly tuples: Uint8Array<ArrayBuffer>; readonly isLast: boolean };
}

export type FileReply =
  | { readonly ok: true; readonly value: FileReplies[FileRequest['kind']] }
  | { readonly ok: false; readonly error: PlainError };
