import { hash } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import { constants, zstdCompressSync, zstdDecompressSync } from 'node:zlib';
import { giveBack } from '../change/give-back.ts';
import { RivuletError } from '../errors.ts';
import type { Blob } from './manifest.ts';
import type { ObjectReader } from './object-reader.ts';
import type { ObjectStore, StoreCallOptions } from './object-store.ts';

/** Where an object lies, by what it is. */
export type BlobKind = 'chunks' | 'lists' | 'segments';

/** SQLite pages and frames shrink to within some percent of what level 3 makes of them, in half the time. */
const LEVEL = 1;

/** What came damaged may be whole when it is asked for again: a cache, a proxy, a connection. */
const FETCH_ATTEMPTS = 3;
const RETRY_MS = 50;

const SPARE_BYTES = 64;

export function blobKey(kind: BlobKind, name: string): string {
  return `${kind}/${name.slice(0, 2)}/${name}`;
}

/** The name that content has. */
export function blobHash(content: Uint8Array): string {
  return hash('sha256', content);
}

/**
 * Stores content under its own name. Compresses on this thread, which is one for that: the pool's threads would take
 * more of the machine than is left over beside followers.
 */
export async function putBlob(
  store: ObjectStore,
  kind: BlobKind,
  content: Uint8Array,
  options: StoreCallOptions & { readonly hash?: string } = {},
): Promise<Blob> {
  const name = options.hash ?? blobHash(content);
  const stored = zstdCompressSync(content, { params: { [constants.ZSTD_c_compressionLevel]: LEVEL } });
  await store.put(blobKey(kind, name), stored, options);
  return { hash: name, bytes: content.length, storedBytes: stored.length };
}

/** The content, checked against its name. Throws SNAPSHOT_CORRUPT, with the object's key, if it is not there or another. */
export async function fetchBlob(
  store: ObjectReader,
  kind: BlobKind,
  blob: Pick<Blob, 'hash' | 'bytes'>,
  options: StoreCallOptions = {},
): Promise<Buffer> {
  const key = blobKey(kind, blob.hash);
  for (let attempt = 1; ; attempt++) {
    const stored = await store.get(key, options);
    const content = stored === null ? null : open(stored, blob);
    if (stored !== null) giveBack(stored);
    if (content !== null) return content;
    if (attempt === FETCH_ATTEMPTS) {
      throw new RivuletError(
        'SNAPSHOT_CORRUPT',
        stored === null ? `${key} is missing in ${store.url}` : `${key} in ${store.url} is damaged`,
        { facts: { object: key } },
      );
    }
    await delay(RETRY_MS * attempt, undefined, options);
  }
}

/**
 * On this thread, and into one piece of memory: the pool's threads, and pieces put together, take twice the processor's
 * time. Null if it is not what the name says.
 */
function open(stored: Buffer, { hash: name, bytes }: Pick<Blob, 'hash' | 'bytes'>): Buffer | null {
  try {
    // Room for a little more: a buffer that is just full makes zlib ask for another one.
    const content = zstdDecompressSync(stored, {
      chunkSize: Math.max(constants.Z_MIN_CHUNK, bytes + SPARE_BYTES),
      maxOutputLength: Math.max(1, bytes),
    });
    return content.length === bytes && blobHash(content) === name ? content : null;
  } catch {
    return null;
  }
}
