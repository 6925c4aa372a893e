import { readSync, writeSync } from 'node:fs';
import { giveBack } from '../change/give-back.ts';
import { blobHash } from './blob.ts';
import { fetchChunk } from './chunk-list.ts';
import { explainDownloadError } from './download-error.ts';
import { type ChunkList, chunkAt } from './manifest.ts';
import type { ObjectReader } from './object-reader.ts';

/** Hides the time that a server takes to answer; each takes a chunk's memory as it comes. */
const DOWNLOADS_AT_ONCE = 8;

export interface ChunkShareOptions {
  readonly store: ObjectReader;
  readonly list: ChunkList;
  /** Open for reading and writing. */
  readonly file: number;
  /** May hold the same content in the same places. */
  readonly seed: number | null;
  /** What is in the file may be right already. */
  readonly isResumed: boolean;
  /** Number of the next chunk that nobody has begun with, shared by all who bring them. */
  readonly next: Int32Array<SharedArrayBuffer>;
  readonly signal: AbortSignal;
  readonly onChunk: (chunk: { readonly bytes: number; readonly isReused: boolean }) => void;
}

/**
 * Brings chunks into the file, one after the other as long as there are any, several at once; other threads may do the
 * same. From its decompression to its place in the file a chunk stays on this thread, and in the processor's cache.
 * Once this has resolved or thrown, nothing is written any more.
 */
export async function bringChunks(options: ChunkShareOptions): Promise<void> {
  const { store, list, file, seed, isResumed, next, onChunk } = options;
  const stop = new AbortController();
  const signal = AbortSignal.any([options.signal, stop.signal]);
  const bring = async (): Promise<void> => {
    for (;;) {
      signal.throwIfAborted();
      const index = Atomics.add(next, 0, 1);
      if (index >= list.chunks.length) return;
      const { hash, bytes } = chunkAt(list, index);
      const at = index * list.chunkBytes;
      const holds = (descriptor: number): Buffer | null => {
        const content = readAt(descriptor, at, bytes);
        return content !== null && blobHash(content) === hash ? content : null;
      };
      const isThere = isResumed && holds(file) !== null;
      const seeded = isThere || seed === null ? null : holds(seed);
      if (!isThere) {
        const content = seeded ?? (await fetchChunk(store, list, index, { signal }));
        writeAt(file, content, at);
        giveBack(content);
      }
      onChunk({ bytes, isReused: isThere || seeded !== null });
      // What is there already is read without waiting for anybody: the rest of the program has its turn all the same.
      if (isThere || seeded !== null) await new Promise((resolve) => setImmediate(resolve));
    }
  };
  const all = Array.from({ length: DOWNLOADS_AT_ONCE }, () =>
    bring().catch((error: unknown) => stop.abort(error)),
  );
  await Promise.all(all);
  signal.throwIfAborted();
}

function writeAt(descriptor: number, content: Buffer, at: number): void {
  try {
    for (let written = 0; written < content.length; )
      written += writeSync(descriptor, content, written, content.length - written, at + written);
  } catch (cause) {
    throw explainDownloadError(cause);
  }
}

/** Null where the file ends before. */
function readAt(descriptor: number, at: number, bytes: number): Buffer | null {
  const content = Buffer.allocUnsafe(bytes);
  return readSync(descriptor, content, 0, bytes, at) === bytes ? content : null;
}
