import { viewOf } from '../change/copy-words.ts';
import { PAGE_BYTES, type PageFile } from './page-file.ts';
import type { RowRecord } from './row-record.ts';
import { varintBytes, writeVarint } from './varint.ts';

/** https://www.sqlite.org/fileformat2.html#b_tree_pages */
const LEAF = { type: 13, headerBytes: 8 } as const;
const INTERIOR = { type: 5, headerBytes: 12 } as const;
const POINTER_BYTES = 2;

/** More of a row than this does not stay in its leaf, and then at least so much does. */
const MAX_LOCAL_BYTES = PAGE_BYTES - 35;
const MIN_LOCAL_BYTES = Math.floor(((PAGE_BYTES - 12) * 32) / 255) - 23;
const OVERFLOW_BYTES = PAGE_BYTES - 4;

/** Children of an inner page, if every key were of the longest kind; the last child has no key of its own. */
const MAX_CHILDREN = Math.floor((PAGE_BYTES - INTERIOR.headerBytes) / (4 + 9 + POINTER_BYTES)) + 1;

/** Room for rows that do not fit a page, kept from one to the next. */
const MAX_KEPT_BYTES = 1024 * 1024;

/** A page below another one, with the greatest rowid under it. */
export interface Child {
  readonly page: number;
  readonly high: number;
  readonly low: number;
}

/**
 * A b-tree of rows, written from its first row to its last as a run of whole pages: they have to come by rising
 * rowids. Memory: one leaf, and a few bytes for each 1 MB of rows.
 */
export class TableTree {
  readonly #pages: PageFile;
  readonly #leaf = Buffer.alloc(PAGE_BYTES);
  readonly #leafView = viewOf(this.#leaf);
  #cells = 0;
  /** Where the cells of the leaf begin: they grow downwards. */
  #top = PAGE_BYTES;
  #overflowing = Buffer.alloc(0);
  /** Leaves that are under no inner page yet: at most one more than the next one takes. */
  readonly #leaves: Child[] = [];
  readonly #inner: Child[] = [];
  #firstHigh = 0;
  #firstLow = 0;
  #lastHigh = 0;
  #lastLow = 0;

  constructor(pages: PageFile) {
    this.#pages = pages;
  }

  get leafCount(): number {
    return this.#inner.length * MAX_CHILDREN + this.#leaves.length + 1;
  }

  /** So small that it has no inner page: it can be a whole table, but no part of one. */
  get isOneLeaf(): boolean {
    return this.#leaves.length === 0 && this.#inner.length === 0;
  }

  /** Whether all of its rows come before all of the other's. */
  endsBefore(other: TableTree): boolean {
    return isLess(this.#lastHigh, this.#lastLow, other.#firstHigh, other.#firstLow);
  }

  overlaps(other: TableTree): boolean {
    return !this.endsBefore(other) && !other.endsBefore(this);
  }

  /** Whether the row that was measured last lies among these. */
  spans({ rowidHigh, rowidLow }: RowRecord): boolean {
    return (
      !isLess(rowidHigh, rowidLow, this.#firstHigh, this.#firstLow) &&
      !isLess(this.#lastHigh, this.#lastLow, rowidHigh, rowidLow)
    );
  }

  /** Adds the row that was measured last. False: its rowid is not above all others. */
  append(row: RowRecord): boolean {
    const { rowidHigh, rowidLow, payloadBytes } = row;
    if (this.#cells > 0 && !isLess(this.#lastHigh, this.#lastLow, rowidHigh, rowidLow)) return false;
    const isLong = payloadBytes > MAX_LOCAL_BYTES;
    const localBytes = isLong ? localPart(payloadBytes) : payloadBytes;
    const keyBytes = varintBytes(0, payloadBytes) + varintBytes(rowidHigh, rowidLow);
    const cellBytes = keyBytes + localBytes + (isLong ? 4 : 0);
    if (this.#top - cellBytes < LEAF.headerBytes + POINTER_BYTES * (this.#cells + 1)) this.#addLeaf();
    const leaf = this.#leaf;
    this.#top -= cellBytes;
    const pointer = LEAF.headerBytes + POINTER_BYTES * this.#cells;
    leaf[pointer] = this.#top >>> 8;
    leaf[pointer + 1] = this.#top;
    let at = writeVarint(leaf, this.#top, 0, payloadBytes);
    at = writeVarint(leaf, at, rowidHigh, rowidLow);
    if (isLong) this.#writeLong(row, at, localBytes);
    else row.write(leaf, this.#leafView, at);
    if (this.isOneLeaf && this.#cells === 0) {
      this.#firstHigh = rowidHigh;
      this.#firstLow = rowidLow;
    }
    this.#cells++;
    this.#lastHigh = rowidHigh;
    this.#lastLow = rowidLow;
    return true;
  }

  /** No more rows. All inner pages of the lowest level, for a tree that is not one leaf. */
  finish(): readonly Child[] {
    this.#addLeaf();
    for (const children of split(this.#leaves)) this.#addInner(children);
    return this.#inner;
  }

  /** No more rows: the whole tree, below a root that is there already. */
  finishAt(root: number): void {
    if (this.isOneLeaf) {
      this.#pages.put(root, this.#wholeLeaf());
      return;
    }
    this.#addLeaf();
    if (this.#inner.length === 0) {
      writeRoot(this.#pages, root, this.#leaves);
      return;
    }
    for (const children of split(this.#leaves)) this.#addInner(children);
    writeRoot(this.#pages, root, this.#inner);
  }

  #addLeaf(): void {
    this.#leaves.push({ page: this.#pages.add(this.#wholeLeaf()), high: this.#lastHigh, low: this.#lastLow });
    this.#cells = 0;
    this.#top = PAGE_BYTES;
    // No inner page may have one child only, so two leaves have to be left for the next.
    if (this.#leaves.length === MAX_CHILDREN + 2) this.#addInner(this.#leaves.splice(0, MAX_CHILDREN));
  }

  #addInner(children: readonly Child[]): void {
    this.#inner.push(addInnerPage(this.#pages, children));
  }

  #wholeLeaf(): Buffer {
    const leaf = this.#leaf;
    leaf.fill(0, LEAF.headerBytes + POINTER_BYTES * this.#cells, this.#top);
    leaf[0] = LEAF.type;
    leaf.writeUInt16BE(this.#cells, 3);
    leaf.writeUInt16BE(this.#top, 5);
    return leaf;
  }

  /** The row's beginning at `at` of the leaf, the rest in a chain of pages. */
  #writeLong(row: RowRecord, at: number, localBytes: number): void {
    const { payloadBytes } = row;
    if (this.#overflowing.length < payloadBytes) this.#overflowing = Buffer.allocUnsafe(payloadBytes);
    const payload = this.#overflowing;
    row.write(payload, viewOf(payload), 0);
    payload.copy(this.#leaf, at, 0, localBytes);
    let page = this.#pages.allocate();
    this.#leaf.writeUInt32BE(page, at + localBytes);
    const overflow = Buffer.alloc(PAGE_BYTES);
    for (let from = localBytes; from < payloadBytes; from += OVERFLOW_BYTES) {
      const to = Math.min(payloadBytes, from + OVERFLOW_BYTES);
      const next = to < payloadBytes ? this.#pages.allocate() : 0;
      overflow.writeUInt32BE(next, 0);
      payload.copy(overflow, 4, from, to);
      overflow.fill(0, 4 + to - from);
      this.#pages.put(page, overflow);
      page = next;
    }
    if (this.#overflowing.length > MAX_KEPT_BYTES) this.#overflowing = Buffer.alloc(0);
  }
}

/** Puts one root above inner pages of one level, or above leaves, that follow each other by rowid. */
export function writeRoot(pages: PageFile, root: number, children: readonly Child[]): void {
  let level = children;
  while (level.length > MAX_CHILDREN) level = split(level).map((some) => addInnerPage(pages, some));
  pages.put(root, innerPage(level));
}

/** Even parts, none of them larger than an inner page takes. */
function split(children: readonly Child[]): readonly (readonly Child[])[] {
  const parts = Math.ceil(children.length / MAX_CHILDREN);
  return Array.from({ length: parts }, (_, part) =>
    children.slice(
      Math.floor((children.length * part) / parts),
      Math.floor((children.length * (part + 1)) / parts),
    ),
  );
}

function addInnerPage(pages: PageFile, children: readonly Child[]): Child {
  const page = pages.add(innerPage(children));
  return { ...children.at(-1)!, page };
}

function innerPage(children: readonly Child[]): Buffer {
  const bytes = Buffer.alloc(PAGE_BYTES);
  let top = PAGE_BYTES;
  const cells = children.length - 1;
  for (let index = 0; index < cells; index++) {
    const { page, high, low } = children[index]!;
    top -= 4 + varintBytes(high, low);
    bytes.writeUInt32BE(page, top);
    writeVarint(bytes, top + 4, high, low);
    bytes.writeUInt16BE(top, INTERIOR.headerBytes + POINTER_BYTES * index);
  }
  bytes[0] = INTERIOR.type;
  bytes.writeUInt16BE(cells, 3);
  bytes.writeUInt16BE(top, 5);
  bytes.writeUInt32BE(children[cells]!.page, 8);
  return bytes;
}

/** How much of a long row stays in its leaf. */
function localPart(payloadBytes: number): number {
  const bytes = MIN_LOCAL_BYTES + ((payloadBytes - MIN_LOCAL_BYTES) % OVERFLOW_BYTES);
  return bytes <= MAX_LOCAL_BYTES ? bytes : MIN_LOCAL_BYTES;
}

function isLess(high: number, low: number, thanHigh: number, thanLow: number): boolean {
  return high < thanHigh || (high === thanHigh && low >>> 0 < thanLow >>> 0);
}
