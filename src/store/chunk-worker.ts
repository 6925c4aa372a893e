import { closeSync, openSync } from 'node:fs';
import { parentPort, workerData } from 'node:worker_threads';
import { type PlainError, toPlainError } from '../plain-error.ts';
import { bringChunks } from './chunk-share.ts';
import type { ChunkList } from './manifest.ts';
import { openReader, type ReaderLocation } from './object-reader.ts';

/** What a helping thread is started with. */
export interface ChunkTask {
  readonly location: ReaderLocation;
  readonly list: ChunkList;
  readonly file: string;
  readonly seed: string | null;
  readonly isResumed: boolean;
  readonly next: Int32Array<SharedArrayBuffer>;
}

export type ChunkReply =
  | { readonly kind: 'chunk'; readonly bytes: number; readonly isReused: boolean }
  | { readonly kind: 'failed'; readonly error: PlainError };

/** Ends with its share of the chunks, or is ended; downloadChunks() starts it. */
const { location, file, seed, ...task } = workerData as ChunkTask;
const port = parentPort!;
const reply = (message: ChunkReply): void => port.postMessage(message);

const output = openSync(file, 'r+');
const before = seed === null ? null : openSync(seed, 'r');
try {
  await using store = await openReader(location);
  await bringChunks({
    ...task,
    store,
    file: output,
    seed: before,
    signal: new AbortController().signal,
    onChunk: (chunk) => reply({ kind: 'chunk', ...chunk }),
  });
} catch (error) {
  reply({ kind: 'failed', error: toPlainError(error) });
} finally {
  closeSync(output);
  if (before !== null) closeSync(before);
}
