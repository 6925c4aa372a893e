import type { Lsn } from '../lsn.ts';

export interface HeapEntry {
  /** Its place in the heap, or -1: the heap's. */
  at: number;
}

/**
 * Who waits, by position, the lowest first: an apply that brings nobody there costs one comparison, however many
 * wait, and whoever gives up is taken out in logarithmic time.
 */
export class WaiterHeap<Entry extends HeapEntry> {
  readonly #heap: Entry[] = [];
  readonly #positionOf: (entry: Entry) => Lsn;

  constructor(positionOf: (entry: Entry) => Lsn) {
    this.#positionOf = positionOf;
  }

  get size(): number {
    return this.#heap.length;
  }

  get first(): Entry | undefined {
    return this.#heap[0];
  }

  entries(): Entry[] {
    return [...this.#heap];
  }

  add(entry: Entry): void {
    this.#heap.push(entry);
    this.#rise(entry, this.#heap.length - 1);
  }

  /** Does nothing if it is not in here. */
  remove(entry: Entry): void {
    const { at } = entry;
    if (at < 0 || this.#heap[at] !== entry) return;
    entry.at = -1;
    const last = this.#heap.pop()!;
    if (last === entry) return;
    this.#sink(last, at);
    if (last.at === at) this.#rise(last, at);
  }

  #rise(entry: Entry, from: number): void {
    const heap = this.#heap;
    const position = this.#positionOf(entry);
    let at = from;
    while (at > 0) {
      const up = (at - 1) >> 1;
      const parent = heap[up]!;
      if (this.#positionOf(parent) <= position) break;
      heap[at] = parent;
      parent.at = at;
      at = up;
    }
    heap[at] = entry;
    entry.at = at;
  }

  #sink(entry: Entry, from: number): void {
    const heap = this.#heap;
    const position = this.#positionOf(entry);
    let at = from;
    for (let down = 2 * at + 1; down < heap.length; down = 2 * at + 1) {
      if (down + 1 < heap.length && this.#positionOf(heap[down + 1]!) < this.#positionOf(heap[down]!)) down++;
      const child = heap[down]!;
      if (position <= this.#positionOf(child)) break;
      heap[at] = child;
      child.at = at;
      at = down;
    }
    heap[at] = entry;
    entry.at = at;
  }
}
