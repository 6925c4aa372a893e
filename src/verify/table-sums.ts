import { RowHash } from '../change/row-hash.ts';
import { valueAt, valueEnd } from '../replica/tuple.ts';

/** A bucket of a million rows then has some fifteen: so few are read again where one differs. */
const BUCKET_BITS = 16;
export const BUCKETS = 2 ** BUCKET_BITS;

/** A row that is not added up but looked at by itself. */
export interface ApartRow {
  readonly tuple: Buffer;
  /** More than one only in a table without a key. */
  count: number;
}

/**
 * What a pass over one side of a table leaves: number and sum of the rows' hashes in each bucket. Sums are
 * modulo 2^64, so the order of rows does not matter, and equal rows of a table without a key count as often as
 * they are there.
 */
export interface TableSums {
  rows: number;
  readonly counts: Uint32Array<ArrayBuffer>;
  readonly low: Uint32Array<ArrayBuffer>;
  readonly high: Uint32Array<ArrayBuffer>;
  /** By key. */
  readonly apart: Map<string, ApartRow>;
}

export function emptySums(): TableSums {
  return {
    rows: 0,
    counts: new Uint32Array(BUCKETS),
    low: new Uint32Array(BUCKETS),
    high: new Uint32Array(BUCKETS),
    apart: new Map(),
  };
}

/** Buckets in which the two sides differ, as one flag for each; null if there are none. */
export function differingBuckets(left: TableSums, right: TableSums): Uint8Array<ArrayBuffer> | null {
  let flags: Uint8Array<ArrayBuffer> | null = null;
  for (let bucket = 0; bucket < BUCKETS; bucket++) {
    if (
      left.counts[bucket] === right.counts[bucket] &&
      left.low[bucket] === right.low[bucket] &&
      left.high[bucket] === right.high[bucket]
    ) {
      continue;
    }
    flags ??= new Uint8Array(BUCKETS);
    flags[bucket] = 1;
  }
  return flags;
}

/** The bytes of the key's values, as text for a Map; of the whole row where there is no key. */
export function keyText(bytes: Buffer, tuple: number, end: number, key: readonly number[]): string {
  if (key.length === 0) return bytes.latin1Slice(tuple, end);
  let text = '';
  for (const column of key) {
    const at = valueAt(bytes, tuple, column);
    text += bytes.latin1Slice(at, valueEnd(bytes, at));
  }
  return text;
}

/**
 * Looks at the tuples of one table, of either side, in the same way: which bucket, which hash, which are set
 * apart. Rows go to a bucket by their key, so that a row that differs is in the same bucket on both sides.
 */
export class RowSorter {
  readonly #key: readonly number[];
  readonly #hash = new RowHash();
  readonly #keyHash = new RowHash();
  readonly #apart: ReadonlySet<string>;
  /** Buckets in which a key of `apart` lies: only there a row's key is made into text. */
  readonly #apartBuckets: Uint8Array | null;

  /** `key`: places of the key's columns; empty if whole rows are compared. `apart`: keys as keyText() gives them. */
  constructor(key: readonly number[], apart: ReadonlySet<string>) {
    this.#key = key;
    this.#apart = apart;
    this.#apartBuckets = apart.size === 0 ? null : new Uint8Array(BUCKETS);
    if (this.#apartBuckets !== null) {
      for (const text of apart) this.#apartBuckets[this.#bucketOfText(text)] = 1;
    }
  }

  bucket(bytes: Buffer, view: DataView, tuple: number, end: number): number {
    const hash = this.#keyHash;
    const key = this.#key;
    if (key.length === 0) {
      hash.run(view, tuple, end);
      return hash.low % BUCKETS;
    }
    let mixed = 0;
    for (let index = 0; index < key.length; index++) {
      const at = valueAt(bytes, tuple, key[index]!);
      hash.run(view, at, valueEnd(bytes, at));
      mixed = (Math.imul(mixed, 31) + hash.low) | 0;
    }
    return (mixed >>> 0) % BUCKETS;
  }

  isApart(bytes: Buffer, tuple: number, end: number, bucket: number): boolean {
    if (this.#apartBuckets === null || this.#apartBuckets[bucket] === 0) return false;
    return this.#apart.has(keyText(bytes, tuple, end, this.#key));
  }

  add(sums: TableSums, bytes: Buffer, view: DataView, tuple: number, end: number): void {
    const bucket = this.bucket(bytes, view, tuple, end);
    sums.rows++;
    if (this.isApart(bytes, tuple, end, bucket)) {
      const text = keyText(bytes, tuple, end, this.#key);
      const seen = sums.apart.get(text);
      if (seen === undefined)
        sums.apart.set(text, { tuple: Buffer.from(bytes.subarray(tuple, end)), count: 1 });
      else seen.count++;
      return;
    }
    this.#hash.run(view, tuple, end);
    this.#count(sums, bucket, 1);
  }

  /** Adds a whole row of a table without a key so many times; a negative number takes it away. */
  addTimes(sums: TableSums, row: Buffer, times: number): void {
    const view = new DataView(row.buffer, row.byteOffset, row.length);
    const bucket = this.bucket(row, view, 0, row.length);
    sums.rows += times;
    this.#hash.run(view, 0, row.length);
    for (let left = Math.abs(times); left > 0; left--) this.#count(sums, bucket, Math.sign(times));
  }

  #count(sums: TableSums, bucket: number, sign: number): void {
    const { counts, low, high } = sums;
    const { low: hashLow, high: hashHigh } = this.#hash;
    // Uint32Array keeps the lower 32 bits of what is stored; the carry goes up by hand.
    const sum = low[bucket]! + sign * hashLow;
    counts[bucket] = counts[bucket]! + sign;
    low[bucket] = sum;
    high[bucket] = high[bucket]! + sign * hashHigh + (sum < 0 ? -1 : sum > 0xffff_ffff ? 1 : 0);
  }

  #bucketOfText(text: string): number {
    const bytes = Buffer.from(text, 'latin1');
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    if (this.#key.length === 0) return this.bucket(bytes, view, 0, bytes.length);
    let mixed = 0;
    for (let at = 0, index = 0; index < this.#key.length; index++) {
      const end = valueEnd(bytes, at);
      this.#keyHash.run(view, at, end);
      mixed = (Math.imul(mixed, 31) + this.#keyHash.low) | 0;
      at = end;
    }
    return (mixed >>> 0) % BUCKETS;
  }
}
