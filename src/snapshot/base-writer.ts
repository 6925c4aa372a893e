import { once } from 'node:events';
import { statSync } from 'node:fs';
import { Worker } from 'node:worker_threads';
import { RivuletError } from '../errors.ts';
import type { Lsn } from '../lsn.ts';
import { SQLITE_LOADED, type SqliteLoaded, sqliteThreadEnd } from '../replica/sqlite-thread.ts';
import type { BaseReply, BaseRequest, BaseTask } from './base-worker.ts';

/** Frames that wait for the writing thread: enough that neither side idles, far from any memory bound. */
const MAX_BYTES_IN_FLIGHT = 8 * 1024 * 1024;

/** What lives long is the file's pages and these frames, not JavaScript's objects. */
const MAX_YOUNG_GENERATION_MB = 6;

/** Frames of at least so many bytes go over in memory that comes back: new memory costs as much as what is done with it. */
const LEAST_POOLED_BYTES = 64 * 1024;
/** A part of a transaction, with the row that made it one. */
const POOLED_BYTES = 576 * 1024;

export interface FinishedBase {
  readonly position: Lsn;
  /** Null where none is kept. */
  readonly checksum: string | null;
}

/**
 * The writing end of a base file, on a thread of its own: frames go in behind the task, with back-pressure; finish()
 * leaves one whole, synced file without a WAL. Until then the file is of no use to anybody.
 */
export class BaseWriter implements AsyncDisposable {
  readonly #worker: Worker;
  #file = '';
  readonly #exited: Promise<unknown>;
  readonly #end: () => Promise<void>;
  #bytesInFlight = 0;
  readonly #pool: ArrayBuffer[] = [];
  #wakers: (() => void)[] = [];
  #failure: RivuletError | null = null;
  #finished: FinishedBase | null = null;

  /** Starts the thread, which takes a tenth of a second. */
  constructor() {
    const name = import.meta.url.endsWith('.ts') ? './base-worker.ts' : './base-worker.js';
    this.#worker = new Worker(new URL(name, import.meta.url), {
      resourceLimits: { maxYoungGenerationSizeMb: MAX_YOUNG_GENERATION_MB },
    });
    this.#exited = once(this.#worker, 'exit').catch(() => undefined);
    this.#end = sqliteThreadEnd(this.#worker);
    this.#worker.on('message', (reply: BaseReply | SqliteLoaded) => {
      if (reply === SQLITE_LOADED) return;
      if (reply.kind === 'consumed') this.#consumed(reply.bytes);
      else if (reply.kind === 'finished') this.#finished = reply;
      else this.#fail(reply.message, reply.code);
      this.#wake();
    });
    this.#worker.on('error', (error) => {
      this.#fail(error.message, (error as { code?: string }).code);
      this.#wake();
    });
  }

  /** What the thread is to do: before anything else, and once. */
  begin(task: BaseTask): this {
    this.#file = task.file;
    this.#post({ kind: 'begin', task });
    return this;
  }

  /** Hands on whole frames; undefined means that more may come at once. */
  write(frames: Buffer): Promise<void> | undefined {
    if (this.#failure !== null) return Promise.reject(this.#failure);
    // Copied, because the memory is shared with frames that are still being written or sent.
    const bytes = this.#memoryFor(frames.length);
    bytes.set(frames);
    this.#bytesInFlight += bytes.length;
    this.#post({ kind: 'frames', bytes }, [bytes.buffer]);
    if (this.#bytesInFlight < MAX_BYTES_IN_FLIGHT) return undefined;
    return this.#until(() => this.#bytesInFlight <= MAX_BYTES_IN_FLIGHT / 2);
  }

  /** Of a new file: the rows are over, and are its content at this position. Frames of the log may follow. */
  endCopy(position: Lsn, commitTimeUs: bigint): void {
    this.#post({ kind: 'endCopy', position, commitTimeUs });
  }

  /** The file is whole and synced when this resolves. */
  async finish(): Promise<FinishedBase> {
    this.#post({ kind: 'finish' });
    // The thread has closed the file, and ends by itself.
    await this.#until(() => this.#finished !== null);
    return this.#finished!;
  }

  /** Ends the thread, finished or not. May be called twice. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#end();
    await this.#exited;
  }

  #memoryFor(length: number): Uint8Array<ArrayBuffer> {
    if (length < LEAST_POOLED_BYTES || length > POOLED_BYTES) return new Uint8Array(length);
    return new Uint8Array(this.#pool.pop() ?? new ArrayBuffer(POOLED_BYTES), 0, length);
  }

  #consumed(bytes: Uint8Array<ArrayBuffer>): void {
    this.#bytesInFlight -= bytes.length;
    if (bytes.buffer.byteLength === POOLED_BYTES) this.#pool.push(bytes.buffer);
  }

  #post(request: BaseRequest, transfer: ArrayBuffer[] = []): void {
    this.#worker.postMessage(request, transfer);
  }

  async #until(condition: () => boolean): Promise<void> {
    while (!condition()) {
      if (this.#failure !== null) throw this.#failure;
      await new Promise<void>((resolve) => this.#wakers.push(resolve));
    }
    if (this.#failure !== null) throw this.#failure;
  }

  #wake(): void {
    for (const wake of this.#wakers.splice(0)) wake();
  }

  #fail(message: string, code: string | undefined): void {
    const isFull = code === 'SQLITE_FULL' || code === 'DISK_FULL' || code === 'ENOSPC';
    this.#failure ??= new RivuletError(
      isFull ? 'DISK_FULL' : 'SNAPSHOT_CORRUPT',
      `writing ${this.#file} failed: ${message}`,
      {
        ...(isFull ? { hint: 'free some space: the copy begins again by itself' } : {}),
        facts: {
          file: this.#file,
          sqlite: code ?? null,
          bytes: statSync(this.#file, { throwIfNoEntry: false })?.size ?? 0,
        },
      },
    );
  }
}
