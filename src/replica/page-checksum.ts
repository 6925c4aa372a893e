import { crc32 } from 'node:zlib';

/** SQLite's own default, which base files have. */
export const CHECKSUM_PAGE_BYTES = 4096;

/**
 * What one page adds to the checksum. The place counts, so that pages that were exchanged show; the factor is odd,
 * so that no difference of a single page is lost modulo 2^64.
 */
export function pageTerm(index: number, page: Uint8Array): bigint {
  return BigInt(crc32(page)) * BigInt(2 * index + 1);
}

/** The checksum as it is stored and sent: 16 hexadecimal digits. */
export function formatChecksum(sum: bigint): string {
  return BigInt.asUintN(64, sum).toString(16).padStart(16, '0');
}

/**
 * Checksum of a file in pages: a sum over all of them, so that whoever changes a few pages of a large file can bring
 * it forward without reading the rest. It finds damage, not forgery.
 */
export class PageChecksum {
  #sum = 0n;
  #pages = 0;
  #rest: Uint8Array = new Uint8Array(0);

  /** The next bytes of the file, cut anywhere. */
  update(chunk: Uint8Array): void {
    let from = 0;
    if (this.#rest.length > 0) {
      from = Math.min(chunk.length, CHECKSUM_PAGE_BYTES - this.#rest.length);
      this.#rest = Buffer.concat([this.#rest, chunk.subarray(0, from)]);
      if (this.#rest.length < CHECKSUM_PAGE_BYTES) return;
      this.#add(this.#rest);
    }
    for (; from + CHECKSUM_PAGE_BYTES <= chunk.length; from += CHECKSUM_PAGE_BYTES)
      this.#add(chunk.subarray(from, from + CHECKSUM_PAGE_BYTES));
    this.#rest = Buffer.from(chunk.subarray(from));
  }

  /** Of all that has come so far. */
  get sum(): bigint {
    return this.#rest.length === 0 ? this.#sum : this.#sum + pageTerm(this.#pages, this.#rest);
  }

  #add(page: Uint8Array): void {
    this.#sum += pageTerm(this.#pages++, page);
    // Kept small: a sum of millions of terms would grow otherwise, and slow down.
    if (this.#pages % 1024 === 0) this.#sum = BigInt.asUintN(64, this.#sum);
  }
}
