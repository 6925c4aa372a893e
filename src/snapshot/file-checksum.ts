import {
  closeSync,
  existsSync,
  fsyncSync,
  openSync,
  readFileSync,
  readSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { dirname } from 'node:path';
import { CHECKSUM_PAGE_BYTES, PageChecksum, pageTerm } from '../replica/page-checksum.ts';

const READ_BYTES = 1024 * 1024;

const WAL_HEADER_BYTES = 32;
const WAL_FRAME_HEADER_BYTES = 24;

/** Reads all of the file, synchronously. */
export function checksumOf(file: string): bigint {
  const checksum = new PageChecksum();
  const buffer = Buffer.alloc(READ_BYTES);
  const descriptor = openSync(file, 'r');
  try {
    for (;;) {
      const bytes = readSync(descriptor, buffer, 0, READ_BYTES, null);
      if (bytes === 0) return checksum.sum;
      checksum.update(buffer.subarray(0, bytes));
    }
  } finally {
    closeSync(descriptor);
  }
}

/**
 * What the checksum of a database changes by when its WAL is copied back into it: of the pages that the WAL holds,
 * the old content out, the new one in. A page that was damaged before leaves more than it takes, or less, so the
 * damage stays in the checksum for good. Only for a WAL that began empty and whose last frame is a commit; null
 * where its pages have another size.
 * https://www.sqlite.org/fileformat2.html#walformat
 */
export function checksumChange(file: string): bigint | null {
  if (!existsSync(`${file}-wal`)) return 0n;
  const wal = openSync(`${file}-wal`, 'r');
  const database = openSync(file, 'r');
  try {
    const header = Buffer.alloc(WAL_HEADER_BYTES);
    if (readSync(wal, header, 0, header.length, 0) < header.length) return 0n;
    if (header.readUInt32BE(8) !== CHECKSUM_PAGE_BYTES) return null;
    const salts = header.subarray(16, 24);
    const newest = new Map<number, number>();
    const frame = Buffer.alloc(WAL_FRAME_HEADER_BYTES);
    for (
      let at = WAL_HEADER_BYTES;
      readSync(wal, frame, 0, frame.length, at) === frame.length && frame.subarray(8, 16).equals(salts);
      at += WAL_FRAME_HEADER_BYTES + CHECKSUM_PAGE_BYTES
    ) {
      newest.set(frame.readUInt32BE(0), at + WAL_FRAME_HEADER_BYTES);
    }
    let change = 0n;
    const page = Buffer.alloc(CHECKSUM_PAGE_BYTES);
    for (const [number, at] of newest) {
      const index = number - 1;
      const old = readSync(database, page, 0, CHECKSUM_PAGE_BYTES, index * CHECKSUM_PAGE_BYTES);
      if (old > 0) change -= pageTerm(index, page.subarray(0, old));
      readSync(wal, page, 0, CHECKSUM_PAGE_BYTES, at);
      change += pageTerm(index, page);
    }
    return change;
  } finally {
    closeSync(database);
    closeSync(wal);
  }
}

/** The checksum stands in a file beside the base file. None: the file was being changed when its process ended. */
export function checksumFile(file: string): string {
  return `${file}.checksum`;
}

export function readChecksum(file: string): string | null {
  const beside = checksumFile(file);
  if (!existsSync(beside)) return null;
  const text = readFileSync(beside, 'utf8').trim();
  return /^[0-9a-f]{16}$/.test(text) ? text : null;
}

export function writeChecksum(file: string, checksum: string): void {
  const beside = checksumFile(file);
  writeFileSync(`${beside}.new`, `${checksum}\n`, { flush: true });
  renameSync(`${beside}.new`, beside);
}

/** Before the file is changed: a checksum of what it was would make damage of the change. */
export function removeChecksum(file: string): void {
  rmSync(checksumFile(file), { force: true });
  const directory = openSync(dirname(file), 'r');
  try {
    fsyncSync(directory);
  } finally {
    closeSync(directory);
  }
}
