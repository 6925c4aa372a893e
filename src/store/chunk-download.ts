import { type FileHandle, open } from 'node:fs/promises';
import { blobHash } from './blob.ts';
import { fetchChunk } from './chunk-list.ts';
import { type ChunkList, chunkAt } from './manifest.ts';
import type { ObjectStore, StoreCallOptions } from './object-store.ts';

/** Hides the time that a server takes to answer; each takes two chunks' memory, as it comes and as it is. */
const DOWNLOADS_AT_ONCE = 8;

export interface DownloadProgress {
  /** Of the file, whether they had to travel or were there already. */
  readonly bytes: number;
  readonly totalBytes: number;
}

export interface DownloadChunksOptions extends StoreCallOptions {
  readonly store: ObjectStore;
  readonly list: ChunkList;
  /** What an earlier attempt left there is used as far as it is right. */
  readonly file: string;
  /** A file that may hold the same content in the same places: an older replica. */
  readonly seed?: string | undefined;
  readonly onProgress?: (progress: DownloadProgress) => void;
}

export interface DownloadReport {
  readonly downloadedBytes: number;
  /** Were in the file, or in the seed. */
  readonly reusedBytes: number;
}

/**
 * Brings a file together from its chunks, in parallel, every one checked against its name. Killed at any moment, it
 * leaves a file that the next call goes on with: what is there is known by its content, not by notes. Synced when
 * this resolves. Throws SNAPSHOT_CORRUPT, naming the object, and what the store throws.
 */
export async function downloadChunks(options: DownloadChunksOptions): Promise<DownloadReport> {
  const { list, signal, onProgress } = options;
  const { fileBytes, chunks } = list;
  const seed = options.seed === undefined ? null : await open(options.seed, 'r').catch(() => null);
  const file = await openForWriting(options.file);
  const isResumed = (await file.stat()).size > 0;
  const stop = new AbortController();
  const running = signal === undefined ? stop.signal : AbortSignal.any([signal, stop.signal]);
  let next = 0;
  let reusedBytes = 0;
  let downloadedBytes = 0;
  const bring = async (): Promise<void> => {
    while (next < chunks.length) {
      running.throwIfAborted();
      const index = next++;
      const { hash, bytes } = chunkAt(list, index);
      const at = index * list.chunkBytes;
      if (isResumed && (await holds(file, at, bytes, hash))) {
        reusedBytes += bytes;
      } else {
        const seeded = seed === null ? null : await readAt(seed, at, bytes);
        const isSeeded = seeded !== null && blobHash(seeded) === hash;
        const content = isSeeded ? seeded : await fetchChunk(options.store, list, index, { signal: running });
        await file.write(content, 0, bytes, at);
        if (isSeeded) reusedBytes += bytes;
        else downloadedBytes += bytes;
      }
      onProgress?.({ bytes: reusedBytes + downloadedBytes, totalBytes: fileBytes });
    }
  };
  try {
    const workers = Array.from({ length: DOWNLOADS_AT_ONCE }, () =>
      bring().catch((error: unknown) => {
        stop.abort(error);
        throw error;
      }),
    );
    await Promise.allSettled(workers);
    await Promise.all(workers).catch((error: unknown) => {
      // The one that failed first says why; the others only that they were told to stop.
      throw signal?.aborted === true ? error : stop.signal.reason;
    });
    await file.truncate(fileBytes);
    await file.sync();
    return { downloadedBytes, reusedBytes };
  } finally {
    await file.close();
    await seed?.close();
  }
}

async function openForWriting(path: string): Promise<FileHandle> {
  try {
    return await open(path, 'r+');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
    return await open(path, 'w+');
  }
}

async function holds(file: FileHandle, at: number, bytes: number, hash: string): Promise<boolean> {
  const content = await readAt(file, at, bytes);
  return content !== null && blobHash(content) === hash;
}

/** Null where the file ends before. */
async function readAt(file: FileHandle, at: number, bytes: number): Promise<Buffer | null> {
  const content = Buffer.allocUnsafe(bytes);
  const { bytesRead } = await file.read(content, 0, bytes, at);
  return bytesRead === bytes ? content : null;
}
