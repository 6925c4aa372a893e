import { closeSync, fdatasync, ftruncateSync, openSync, readSync, writeSync } from 'node:fs';
import { RivuletError } from '../errors.ts';

/** SQLite's own default, which new files have. */
export const PAGE_BYTES = 4096;

/** Taken from the file at a time: the more there are, the more, so that SQLite rarely finds its cache out of date. */
const FIRST_EXTENT_PAGES = 16;
const MAX_EXTENT_PAGES = 1024;

/** Written at a time. */
const WINDOW_PAGES = 64;

/** SQLite locks the file's bytes from 2^30 on: the page that holds them stays unused. */
const LOCK_PAGE = 0x4000_0000 / PAGE_BYTES + 1;

/** So much is on its way to the disk while more comes: the sync at the end need not wait for all of it. */
const SYNC_BYTES = 16 * 1024 * 1024;

/** Offsets in the file's header: https://www.sqlite.org/fileformat2.html#the_database_header */
const HEADER = {
  pageBytes: 16,
  reservedBytes: 20,
  changeCounter: 24,
  pageCount: 28,
  firstFreePage: 32,
  freePages: 36,
  versionValidFor: 92,
} as const;
const HEADER_BYTES = 100;

/** Numbers that one page of the free list holds; SQLite leaves the last six places unused. */
const FREE_PER_TRUNK = PAGE_BYTES / 4 - 8;

/**
 * Pages of a SQLite file that are written beside SQLite. They are taken from the file's end, some megabytes at a
 * time, between two transactions of the connection that has it open: the header's change counter tells it. Until
 * close() the pages that were taken and not used belong to nobody, so the file is of no use after a crash.
 */
export class PageFile {
  readonly #descriptor: number;
  readonly #beforeChange: () => void;
  #next = 1;
  #last = 0;
  #extentPages = FIRST_EXTENT_PAGES;
  readonly #window = Buffer.alloc(WINDOW_PAGES * PAGE_BYTES);
  #windowFirst = 0;
  #windowPages = 0;
  #unsyncedBytes = 0;
  #isSyncing = false;
  #isClosed = false;

  /** `beforeChange` ends the connection's transaction, if it has begun one. */
  constructor(file: string, beforeChange: () => void) {
    this.#descriptor = openSync(file, 'r+');
    this.#beforeChange = beforeChange;
    const header = this.#readHeader();
    if (header.readUInt16BE(HEADER.pageBytes) !== PAGE_BYTES || header[HEADER.reservedBytes] !== 0)
      throw new RivuletError('FILE_UNUSABLE', `${file} does not have pages of ${PAGE_BYTES} bytes`);
  }

  /** A page that is the caller's from now on. */
  allocate(): number {
    if (this.#next > this.#last) this.#extend();
    if (this.#next === LOCK_PAGE) {
      this.#next++;
      return this.allocate();
    }
    const page = this.#next++;
    if (page !== this.#windowFirst + this.#windowPages || this.#windowPages === WINDOW_PAGES) {
      this.#flush();
      this.#windowFirst = page;
    }
    this.#windowPages++;
    return page;
  }

  /** Writes a page that was allocated, or the root that SQLite has made for an empty table. */
  put(page: number, bytes: Buffer): void {
    const index = page - this.#windowFirst;
    if (index >= 0 && index < this.#windowPages) bytes.copy(this.#window, index * PAGE_BYTES);
    else this.#write(bytes, PAGE_BYTES, (page - 1) * PAGE_BYTES);
  }

  /** Puts a new page, and gives its number. */
  add(bytes: Buffer): number {
    const page = this.allocate();
    this.put(page, bytes);
    return page;
  }

  /** Everything that was put is in the file, and SQLite looks at it anew. */
  flush(): void {
    this.#flush();
    this.#changeHeader(() => undefined);
  }

  /** Gives back what was not used. */
  close(): void {
    this.#flush();
    this.#changeHeader((header) => {
      if (header.readUInt32BE(HEADER.pageCount) === this.#last) {
        header.writeUInt32BE(this.#next - 1, HEADER.pageCount);
        ftruncateSync(this.#descriptor, (this.#next - 1) * PAGE_BYTES);
      } else {
        this.#freeRest(header);
      }
    });
    this.#isClosed = true;
    if (!this.#isSyncing) closeSync(this.#descriptor);
  }

  #flush(): void {
    if (this.#windowPages === 0) return;
    const offset = (this.#windowFirst - 1) * PAGE_BYTES;
    this.#write(this.#window, this.#windowPages * PAGE_BYTES, offset);
    this.#unsyncedBytes += this.#windowPages * PAGE_BYTES;
    this.#windowPages = 0;
    if (this.#unsyncedBytes >= SYNC_BYTES && !this.#isSyncing) this.#startSync();
  }

  /** Whether it works shows when the whole file is synced. */
  #startSync(): void {
    this.#isSyncing = true;
    this.#unsyncedBytes = 0;
    fdatasync(this.#descriptor, () => {
      this.#isSyncing = false;
      if (this.#isClosed) closeSync(this.#descriptor);
    });
  }

  #extend(): void {
    this.#changeHeader((header) => {
      const count = header.readUInt32BE(HEADER.pageCount);
      this.#next = count + 1;
      this.#last = count + this.#extentPages;
      this.#extentPages = Math.min(2 * this.#extentPages, MAX_EXTENT_PAGES);
      ftruncateSync(this.#descriptor, this.#last * PAGE_BYTES);
      header.writeUInt32BE(this.#last, HEADER.pageCount);
    });
  }

  /** https://www.sqlite.org/fileformat2.html#the_freelist */
  #freeRest(header: Buffer): void {
    while (this.#next <= this.#last) {
      const trunk = Buffer.alloc(PAGE_BYTES);
      const page = this.#next++;
      if (page === LOCK_PAGE) continue;
      const leaves: number[] = [];
      for (; this.#next <= this.#last && leaves.length < FREE_PER_TRUNK; this.#next++)
        if (this.#next !== LOCK_PAGE) leaves.push(this.#next);
      trunk.writeUInt32BE(header.readUInt32BE(HEADER.firstFreePage), 0);
      trunk.writeUInt32BE(leaves.length, 4);
      leaves.forEach((leaf, index) => {
        trunk.writeUInt32BE(leaf, 8 + 4 * index);
      });
      this.put(page, trunk);
      header.writeUInt32BE(page, HEADER.firstFreePage);
      header.writeUInt32BE(header.readUInt32BE(HEADER.freePages) + 1 + leaves.length, HEADER.freePages);
    }
  }

  #changeHeader(change: (header: Buffer) => void): void {
    this.#beforeChange();
    const header = this.#readHeader();
    change(header);
    const counter = (header.readUInt32BE(HEADER.changeCounter) + 1) >>> 0;
    header.writeUInt32BE(counter, HEADER.changeCounter);
    header.writeUInt32BE(counter, HEADER.versionValidFor);
    this.#write(header, HEADER_BYTES, 0);
  }

  /** A disk that becomes full takes a part first, and says why with the rest. */
  #write(bytes: Buffer, length: number, offset: number): void {
    for (let done = 0; done < length; )
      done += writeSync(this.#descriptor, bytes, done, length - done, offset + done);
  }

  #readHeader(): Buffer {
    const header = Buffer.alloc(HEADER_BYTES);
    readSync(this.#descriptor, header, 0, HEADER_BYTES, 0);
    return header;
  }
}
