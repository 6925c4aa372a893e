import { once } from 'node:events';
import { constants } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import { setTimeout as delay } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import { fromPlainError } from '../plain-error.ts';
import { bringChunks } from './chunk-share.ts';
import type { ChunkReply, ChunkTask } from './chunk-worker.ts';
import { explainDownloadError } from './download-error.ts';
import type { ChunkList } from './manifest.ts';
import type { ObjectStore, StoreCallOptions } from './object-store.ts';

/** A network or a disk that more of them could not wait for is rare. */
const MAX_HELPERS = 4;
/** A helper needs a moment before it begins, so it is asked for this much of the file only. */
const BYTES_PER_HELPER = 64 * 1024 * 1024;

/**
 * Of a helper, for objects that are new. What sockets bring lies outside of it, in pieces of 64 kB that are freed with
 * a small object each: with a hundred times this size, as is usual, they add up until the whole heap is searched, and
 * that ten times and more for a gigabyte.
 */
const YOUNG_GENERATION_MB = 2;

/** Short enough that little is left for the end. */
const WRITE_BACK_MS = 100;

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
 * Brings a file together from its chunks, every one checked against its name; for a large file on as many threads as
 * the machine has, none of them this one, whose heap is not made for it. Killed at any moment, it leaves a file that
 * the next call goes on with: what is there is known by its content, not by notes. Synced when this resolves. Throws
 * SNAPSHOT_CORRUPT, naming the object, DISK_FULL, FILE_UNUSABLE, and what the store throws.
 */
export async function downloadChunks(options: DownloadChunksOptions): Promise<DownloadReport> {
  try {
    return await download(options);
  } catch (error) {
    if (options.signal?.aborted === true) throw error;
    throw explainDownloadError(error);
  }
}

async function download(options: DownloadChunksOptions): Promise<DownloadReport> {
  const { store, list, signal, onProgress } = options;
  await using seed = options.seed === undefined ? null : await open(options.seed, 'r').catch(() => null);
  await using file = await open(options.file, constants.O_RDWR | constants.O_CREAT);
  const isResumed = (await file.stat()).size > 0;
  const next = new Int32Array(new SharedArrayBuffer(4));
  const report = { downloadedBytes: 0, reusedBytes: 0 };
  const onChunk = ({ bytes, isReused }: { readonly bytes: number; readonly isReused: boolean }): void => {
    report[isReused ? 'reusedBytes' : 'downloadedBytes'] += bytes;
    onProgress?.({ bytes: report.reusedBytes + report.downloadedBytes, totalBytes: list.fileBytes });
  };
  const stop = new AbortController();
  const running = signal === undefined ? stop.signal : AbortSignal.any([signal, stop.signal]);
  const count = helpers(list);
  const share = { list, isResumed, next };
  const task: ChunkTask = {
    ...share,
    location: await store.reading(),
    file: options.file,
    seed: seed === null ? null : options.seed!,
  };
  const shares =
    count === 0
      ? [bringChunks({ ...share, store, file: file.fd, seed: seed?.fd ?? null, signal: running, onChunk })]
      : Array.from({ length: count }, () => help(task, onChunk, running));
  const fail = (error: unknown): void => {
    // Nobody begins with another one, and the one that failed first says why.
    Atomics.store(next, 0, list.chunks.length);
    stop.abort(error);
  };
  const writeBack = new WriteBack(file, fail);
  await Promise.allSettled(shares.map((each) => each.catch(fail)));
  await writeBack.stop();
  running.throwIfAborted();
  await file.truncate(list.fileBytes);
  await writeBack.sync();
  return report;
}

/**
 * Sends to the disk what is written, while more is on its way: otherwise all of it is waited for at the end.
 *
 * A failure is said once: the next sync may succeed although pages are lost, and until they are needed for something
 * else they read as if they were not. So nothing of the file is kept for the next attempt then.
 * https://man7.org/linux/man-pages/man2/fsync.2.html
 */
class WriteBack {
  readonly #file: FileHandle;
  readonly #stop = new AbortController();
  readonly #ended: Promise<void>;

  constructor(file: FileHandle, onFailure: (error: unknown) => void) {
    this.#file = file;
    this.#ended = this.#run().catch(onFailure);
  }

  /** Nothing is sent any more, and no failure comes. */
  async stop(): Promise<void> {
    this.#stop.abort();
    await this.#ended;
  }

  /** For the last time, with the file's size. */
  async sync(): Promise<void> {
    await this.#orEmpty(() => this.#file.sync());
  }

  async #run(): Promise<void> {
    const { signal } = this.#stop;
    for (;;) {
      await delay(WRITE_BACK_MS, undefined, { signal }).catch(() => undefined);
      if (signal.aborted) return;
      await this.#orEmpty(() => this.#file.datasync());
    }
  }

  async #orEmpty(sync: () => Promise<void>): Promise<void> {
    try {
      await sync();
    } catch (error) {
      await this.#file.truncate(0).catch(() => undefined);
      throw error;
    }
  }
}

/** None where the file is small, or where they would only take turns with this thread. */
function helpers({ fileBytes }: ChunkList): number {
  const processors = availableParallelism();
  if (processors === 1 || fileBytes < BYTES_PER_HELPER) return 0;
  return Math.min(MAX_HELPERS, processors, Math.ceil(fileBytes / BYTES_PER_HELPER));
}

/** A thread that brings chunks. */
async function help(
  task: ChunkTask,
  onChunk: (chunk: { readonly bytes: number; readonly isReused: boolean }) => void,
  signal: AbortSignal,
): Promise<void> {
  const name = import.meta.url.endsWith('.ts') ? './chunk-worker.ts' : './chunk-worker.js';
  const worker = new Worker(new URL(name, import.meta.url), {
    workerData: task,
    name: 'rivulet download',
    resourceLimits: { maxYoungGenerationSizeMb: YOUNG_GENERATION_MB },
  });
  let failure: Error | null = null;
  worker.on('message', (reply: ChunkReply) => {
    if (reply.kind === 'chunk') onChunk(reply);
    else failure ??= fromPlainError(reply.error);
  });
  worker.on('error', (error: Error) => {
    failure ??= error;
  });
  const end = (): void => void worker.terminate();
  signal.addEventListener('abort', end, { once: true });
  await once(worker, 'exit').catch(() => undefined);
  signal.removeEventListener('abort', end);
  if (failure !== null) throw failure as Error;
  signal.throwIfAborted();
}
