import { open } from 'node:fs/promises';
import { RivuletError } from '../errors.ts';
import { blobHash, putBlob } from '../store/blob.ts';
import type { ChunkList, ChunkName } from '../store/manifest.ts';
import type { ObjectStore, StoreCallOptions } from '../store/object-store.ts';

/**
 * Small enough that a change in one place of the file costs little, large enough that a server's time per request
 * and the length of the list do not count. A multiple of every page size.
 */
export const DEFAULT_CHUNK_BYTES = 2 * 1024 * 1024;

/** Hides the time that a server takes to answer; a chunk that waits costs its own size in memory. */
const UPLOADS_AT_ONCE = 8;

export interface TransferProgress {
  /** Of the file, whether they had to travel or were there already. */
  readonly bytes: number;
  readonly totalBytes: number;
  /** What went over the wire. */
  readonly sentBytes: number;
}

export interface UploadOptions extends StoreCallOptions {
  readonly store: ObjectStore;
  readonly file: string;
  readonly chunkBytes?: number;
  /** Chunks that the store holds already, with the size that they have there. */
  readonly known: ReadonlyMap<string, number>;
  readonly onProgress?: (progress: TransferProgress) => void;
}

export interface Upload {
  readonly list: ChunkList;
  /** Size of all its chunks in the store. */
  readonly storedBytes: number;
  readonly sentBytes: number;
  readonly sentChunks: number;
  /** Those that were relied on to be there. */
  readonly reused: ReadonlySet<string>;
}

/** Sends a file that stands still as chunks named by their content; what is known to be there is not sent again. */
export async function uploadChunks(options: UploadOptions): Promise<Upload> {
  const { store, file, known, signal, onProgress, chunkBytes = DEFAULT_CHUNK_BYTES } = options;
  const handle = await open(file, 'r');
  const chunks: ChunkName[] = [];
  const sent = new Map<string, number>();
  const reused = new Set<string>();
  const uploads = new Set<Promise<void>>();
  let failure: unknown = null;
  let sentBytes = 0;
  let bytes = 0;
  try {
    const { size: fileBytes } = await handle.stat();
    for (let index = 0; index * chunkBytes < fileBytes; index++) {
      signal?.throwIfAborted();
      if (failure !== null) throw failure;
      const content = await readChunk(
        handle,
        file,
        index * chunkBytes,
        Math.min(chunkBytes, fileBytes - index * chunkBytes),
      );
      const name = blobHash(content);
      const knownBytes = known.get(name);
      bytes += content.length;
      if (knownBytes !== undefined || sent.has(name)) {
        if (knownBytes !== undefined) reused.add(name);
        chunks[index] = [name, knownBytes ?? 0];
        onProgress?.({ bytes, totalBytes: fileBytes, sentBytes });
        continue;
      }
      sent.set(name, 0);
      const upload = putBlob(store, 'chunks', content, { signal, hash: name }).then(
        ({ storedBytes }) => {
          sent.set(name, storedBytes);
          chunks[index] = [name, storedBytes];
          sentBytes += storedBytes;
          onProgress?.({ bytes, totalBytes: fileBytes, sentBytes });
        },
        (error: unknown) => {
          failure ??= error;
        },
      );
      uploads.add(upload);
      void upload.then(() => uploads.delete(upload));
      while (uploads.size >= UPLOADS_AT_ONCE) await Promise.race(uploads);
    }
    await Promise.all(uploads);
    if (failure !== null) throw failure;
    const list = chunks.map(([name, storedBytes]): ChunkName => [name, sent.get(name) ?? storedBytes]);
    return {
      list: { chunkBytes, fileBytes, chunks: list },
      storedBytes: list.reduce((sum, [, storedBytes]) => sum + storedBytes, 0),
      sentBytes,
      sentChunks: sent.size,
      reused,
    };
  } finally {
    await Promise.allSettled(uploads);
    await handle.close();
  }
}

async function readChunk(
  handle: Awaited<ReturnType<typeof open>>,
  file: string,
  at: number,
  length: number,
): Promise<Buffer> {
  const content = Buffer.allocUnsafeSlow(length);
  for (let read = 0; read < length; ) {
    const { bytesRead } = await handle.read(content, read, length - read, at + read);
    if (bytesRead === 0) throw new RivuletError('FILE_UNUSABLE', `${file} was cut short while it was read`);
    read += bytesRead;
  }
  return content;
}
