import type { Relation } from './relation.ts';
import { RowHash } from './row-hash.ts';

/** One table's content at one position, in a few bytes: equal tables have equal digests. */
export interface TableDigest {
  /** `schema.name` in Postgres. */
  readonly table: string;
  readonly rows: number;
  /** 64 bits in hexadecimal, of the definition and all rows. */
  readonly digest: string;
}

/** What one replica says of one announced position. */
export interface ReplicaDigest {
  /** Of the announcement. */
  readonly id: string;
  /** Null: none yet, but it is ready to make them at once when the position comes. */
  readonly tables: readonly TableDigest[] | null;
  /** Tables for which there was no time, in the order of their names: the rest. */
  readonly left: number;
}

/** Adds up a table's rows, in any order, modulo 2^64. */
export class DigestSum {
  readonly #hash = new RowHash();
  #low = 0;
  #high = 0;
  rows = 0;

  /** Begins with the definition: a column that has another type is a difference, also in an empty table. */
  constructor(relation: Relation) {
    const columns = relation.columns.map(({ attnum, name, typeName, mapping, keyOrdinal }) => [
      attnum,
      name,
      typeName,
      mapping,
      keyOrdinal,
    ]);
    const bytes = Buffer.from(JSON.stringify([relation.schema, relation.name, columns]));
    this.#add(new DataView(bytes.buffer, bytes.byteOffset, bytes.length), 0, bytes.length);
  }

  /** Takes a row's tuple in the change format. */
  add(view: DataView, from: number, to: number): void {
    this.rows++;
    this.#add(view, from, to);
  }

  get digest(): string {
    const hex = (word: number): string => (word >>> 0).toString(16).padStart(8, '0');
    return hex(this.#high) + hex(this.#low);
  }

  #add(view: DataView, from: number, to: number): void {
    const hash = this.#hash;
    hash.run(view, from, to);
    const low = this.#low + hash.low;
    this.#low = low >>> 0;
    this.#high = (this.#high + hash.high + (low > 0xffff_ffff ? 1 : 0)) >>> 0;
  }
}
