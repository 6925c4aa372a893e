import { TAG } from '../change/frame.ts';
import { ProtocolError } from '../errors.ts';
import { readUInt32, type TupleSource, tupleLength, valueAt, valueEnd } from './tuple.ts';

/** What is left to do for one key once all changes of a batch are known. */
export const ROW = { none: 0, insert: 1, update: 2, delete: 3 } as const;

/** A row's key in a Map: the number itself for a single 32-bit integer, else the bytes of its values. */
export type RowKey = number | string;

/** Called where a change contradicts what came before it: the stream and the file do not belong together. */
export type Divergence = (what: 'missing' | 'present', tuple: number, isKeyTuple: boolean) => Error;

const INITIAL_CAPACITY = 256;
/** Marks a version that holds the key's values only. */
const KEY_ONLY = -2;
const NO_VERSION = -1;

/**
 * Folds all changes of a batch to one table whose rows are found by the primary key, into one insert, update or
 * delete for each key. What is left concerns distinct keys, so it can be written in any order that has deletes
 * first: Postgres checked its key row by row, in order, so each key's history is consistent by itself.
 *
 * A change of key is a delete of the old and an insert of the new one (those with values that Postgres did not
 * send are not folded; see TableWriter). Versions of a row are chained: where the newest lacks an unchanged
 * out-of-line value, the one before it may have it.
 *
 * Keys are compared by the bytes that came: Postgres sends the old key whenever they change, and the encoding
 * is canonical. As long as a batch brings only inserts no key is even looked at; SQLite finds duplicates.
 */
export class RowFold {
  readonly #source: TupleSource;
  readonly #locators: readonly number[];
  readonly #divergence: Divergence;
  readonly #mayVanish: boolean;
  readonly #slots = new Map<RowKey, number>();
  #slotCount = 0;
  #indexed = 0;
  #isIndexed = false;
  #action = new Uint8Array(INITIAL_CAPACITY);
  /** Newest version of each slot's row; for a delete, one that has the key. */
  #newest = new Int32Array(INITIAL_CAPACITY);
  #versionCount = 0;
  #tuple = new Int32Array(INITIAL_CAPACITY);
  #before = new Int32Array(INITIAL_CAPACITY);

  /** `mayVanish`: rows may go without a word, so that one whose key is there takes that one's place. */
  constructor(
    source: TupleSource,
    locators: readonly number[],
    divergence: Divergence,
    { mayVanish = false }: { readonly mayVanish?: boolean } = {},
  ) {
    this.#source = source;
    this.#locators = locators;
    this.#divergence = divergence;
    this.#mayVanish = mayVanish;
  }

  get slotCount(): number {
    return this.#slotCount;
  }

  action(slot: number): number {
    return this.#action[slot]!;
  }

  /** The tuple with the newest version of the row. */
  newestTuple(slot: number): number {
    return this.#tuple[this.#newest[slot]!]!;
  }

  /** The key of a row that is not deleted. */
  slotKey(slot: number): RowKey {
    const { bytes } = this.#source;
    const tuple = this.newestTuple(slot);
    if (this.#locators.length === 1) {
      const at = valueAt(bytes, tuple, this.#locators[0]!);
      return bytes[at] === TAG.unchanged ? '' : this.#keyAt(at);
    }
    return this.keyOf(tuple);
  }

  /** For deletes: whether newestTuple() holds the key's values only. */
  isKeyTuple(slot: number): boolean {
    return this.#before[this.#newest[slot]!] === KEY_ONLY;
  }

  /** Where the newest value of a column stands that newestTuple() lacks; -1 if this batch does not know it. */
  olderValue(slot: number, column: number): number {
    const { bytes } = this.#source;
    for (let version = this.#before[this.#newest[slot]!]!; version >= 0; version = this.#before[version]!) {
      const at = valueAt(bytes, this.#tuple[version]!, column);
      if (bytes[at] !== TAG.unchanged) return at;
    }
    return -1;
  }

  clear(): void {
    this.#slotCount = 0;
    this.#versionCount = 0;
    this.#indexed = 0;
    this.#isIndexed = false;
    this.#slots.clear();
  }

  insert(tuple: number): void {
    const version = this.#addVersion(tuple, NO_VERSION);
    if (this.#isIndexed) this.#insert(this.keyOf(tuple), version);
    else this.#addSlot(ROW.insert, version);
  }

  update(tuple: number): void {
    this.#index();
    this.#update(this.keyOf(tuple), tuple, NO_VERSION);
  }

  /** `oldKey` is a key tuple; the new tuple is complete. */
  updateKey(oldKey: number, tuple: number): void {
    this.#index();
    const from = this.keyOfKeyTuple(oldKey);
    const to = this.keyOf(tuple);
    if (from === to) {
      this.#update(to, tuple, NO_VERSION);
    } else {
      this.#delete(from, this.#addVersion(oldKey, KEY_ONLY));
      this.#insert(to, this.#addVersion(tuple, NO_VERSION));
    }
  }

  /** Both tuples hold all columns; the new one may lack what is the same in the old one. */
  updateFull(old: number, tuple: number): void {
    this.#index();
    const from = this.keyOf(old);
    const to = this.keyOf(tuple, old);
    const before = this.#addVersion(old, NO_VERSION);
    if (from === to) {
      this.#update(to, tuple, before);
    } else {
      this.#delete(from, before);
      this.#insert(to, this.#addVersion(tuple, before));
    }
  }

  deleteKey(oldKey: number): void {
    this.#index();
    this.#delete(this.keyOfKeyTuple(oldKey), this.#addVersion(oldKey, KEY_ONLY));
  }

  deleteFull(old: number): void {
    this.#index();
    this.#delete(this.keyOf(old), this.#addVersion(old, NO_VERSION));
  }

  /** The key in a tuple of all columns; values not sent are taken from `old`. */
  keyOf(tuple: number, old = -1): RowKey {
    const { bytes } = this.#source;
    const locators = this.#locators;
    if (locators.length === 1) {
      let at = valueAt(bytes, tuple, locators[0]!);
      if (bytes[at] === TAG.unchanged && old >= 0) at = valueAt(bytes, old, locators[0]!);
      return this.#keyAt(at);
    }
    let key = '';
    for (const column of locators) {
      let at = valueAt(bytes, tuple, column);
      if (bytes[at] === TAG.unchanged && old >= 0) at = valueAt(bytes, old, column);
      if (bytes[at] === TAG.unchanged) throw keyNotSent();
      key += bytes.latin1Slice(at, valueEnd(bytes, at));
    }
    return key;
  }

  keyOfKeyTuple(tuple: number): RowKey {
    const { bytes } = this.#source;
    const count = this.#locators.length;
    if (tupleLength(bytes, tuple) !== count) {
      throw new ProtocolError(
        `an old key has ${tupleLength(bytes, tuple)} values where the key has ${count} columns`,
      );
    }
    return count === 1 ? this.#keyAt(tuple + 2) : bytes.latin1Slice(tuple + 2, valueAt(bytes, tuple, count));
  }

  #keyAt(at: number): RowKey {
    const { bytes } = this.#source;
    if (bytes[at] === TAG.int32) return readUInt32(bytes, at + 1) | 0;
    if (bytes[at] === TAG.unchanged) throw keyNotSent();
    return bytes.latin1Slice(at, valueEnd(bytes, at));
  }

  #insert(key: RowKey, version: number): void {
    const slot = this.#slots.get(key);
    if (slot === undefined) {
      this.#slots.set(key, this.#addSlot(ROW.insert, version));
      return;
    }
    const action = this.#action[slot];
    if ((action === ROW.insert || action === ROW.update) && !this.#mayVanish)
      throw this.#divergence('present', this.#tuple[version]!, false);
    // A row that was there before the batch is written over: its key stays, all its columns are new.
    this.#action[slot] = action === ROW.delete || action === ROW.update ? ROW.update : ROW.insert;
    this.#newest[slot] = version;
  }

  #update(key: RowKey, tuple: number, older: number): void {
    const slot = this.#slots.get(key);
    if (slot === undefined) {
      this.#slots.set(key, this.#addSlot(ROW.update, this.#addVersion(tuple, older)));
      return;
    }
    const action = this.#action[slot];
    if (action === ROW.delete || action === ROW.none) throw this.#divergence('missing', tuple, false);
    this.#newest[slot] = this.#addVersion(tuple, older >= 0 ? older : this.#newest[slot]!);
  }

  #delete(key: RowKey, version: number): void {
    const slot = this.#slots.get(key);
    if (slot === undefined) {
      this.#slots.set(key, this.#addSlot(ROW.delete, version));
      return;
    }
    const action = this.#action[slot];
    if (action === ROW.delete || action === ROW.none) {
      throw this.#divergence('missing', this.#tuple[version]!, this.#before[version] === KEY_ONLY);
    }
    this.#action[slot] = action === ROW.insert ? ROW.none : ROW.delete;
    this.#newest[slot] = version;
  }

  /** Looks up the keys of what was inserted so far. */
  #index(): void {
    if (this.#isIndexed) return;
    this.#isIndexed = true;
    for (; this.#indexed < this.#slotCount; this.#indexed++) {
      const tuple = this.newestTuple(this.#indexed);
      const key = this.keyOf(tuple);
      const before = this.#slots.get(key);
      if (before !== undefined) {
        if (!this.#mayVanish) throw this.#divergence('present', tuple, false);
        this.#action[before] = ROW.none;
      }
      this.#slots.set(key, this.#indexed);
    }
  }

  #addSlot(action: number, version: number): number {
    const slot = this.#slotCount++;
    if (slot === this.#action.length) {
      this.#action = grown(this.#action, new Uint8Array(slot * 2));
      this.#newest = grown(this.#newest, new Int32Array(slot * 2));
    }
    this.#action[slot] = action;
    this.#newest[slot] = version;
    return slot;
  }

  #addVersion(tuple: number, before: number): number {
    const version = this.#versionCount++;
    if (version === this.#tuple.length) {
      this.#tuple = grown(this.#tuple, new Int32Array(version * 2));
      this.#before = grown(this.#before, new Int32Array(version * 2));
    }
    this.#tuple[version] = tuple;
    this.#before[version] = before;
    return version;
  }
}

function keyNotSent(): ProtocolError {
  return new ProtocolError('a row came without the value of a key column');
}

function grown<T extends Uint8Array | Int32Array>(from: T, to: T): T {
  to.set(from);
  return to;
}
