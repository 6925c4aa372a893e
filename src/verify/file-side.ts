import { Worker } from 'node:worker_threads';
import { RivuletError } from '../errors.ts';
import { formatLsn, type Lsn } from '../lsn.ts';
import { fromPlainError } from '../plain-error.ts';
import { lockFile } from '../replica/replica-file.ts';
import { SQLITE_LOADED, type SqliteLoaded, sqliteThreadEnd } from '../replica/sqlite-thread.ts';
import type { FileReplies, FileReply, FileRequest, FileSnapshot, TablePart } from './file-messages.ts';
import type { TableSums } from './table-sums.ts';

/** The file, read on a thread of its own, one request at a time; the signal fails what is asked for at once. */
export class FileSide implements AsyncDisposable {
  readonly path: string;
  readonly #signal: AbortSignal;
  readonly #worker: Worker;
  readonly #end: () => Promise<void>;
  #waiting: { resolve(value: unknown): void; reject(error: Error): void } | null = null;
  #queue: Promise<unknown> = Promise.resolve();

  constructor(path: string, signal: AbortSignal) {
    this.path = path;
    this.#signal = signal;
    const script = import.meta.url.endsWith('.ts') ? './file-worker.ts' : './file-worker.js';
    this.#worker = new Worker(new URL(script, import.meta.url), { workerData: path, name: 'rivulet verify' });
    this.#end = sqliteThreadEnd(this.#worker);
    this.#worker.on('message', (reply: FileReply | SqliteLoaded) => {
      if (reply === SQLITE_LOADED) return;
      const waiting = this.#waiting;
      this.#waiting = null;
      if (reply.ok) waiting?.resolve(reply.value);
      else waiting?.reject(fromPlainError(reply.error));
    });
    this.#worker.on('error', (cause) => {
      this.#waiting?.reject(
        new RivuletError('PROTOCOL', `reading ${path} failed: ${(cause as Error).message}`, { cause }),
      );
      this.#waiting = null;
    });
    signal.addEventListener('abort', this.#interrupt, { once: true });
  }

  /** Reads from now on as of one position at or behind `target`; waits until the file is there. */
  async begin(target: Lsn, timeoutMs: number): Promise<FileSnapshot> {
    const answer = await this.#ask({ kind: 'begin', target, timeoutMs });
    if (!('late' in answer)) return answer;
    throw this.#late(answer.late, answer.hasMoved, target);
  }

  async end(): Promise<void> {
    await this.#ask({ kind: 'end' }).catch(() => undefined);
  }

  boundary(request: Omit<Extract<FileRequest, { kind: 'boundary' }>, 'kind'>): Promise<bigint | null> {
    return this.#ask({ kind: 'boundary', ...request });
  }

  async sum(part: TablePart): Promise<TableSums> {
    const { apart, ...sums } = await this.#ask({ kind: 'sum', ...part });
    return {
      ...sums,
      apart: new Map(apart.map(([key, tuple, count]) => [key, { tuple: Buffer.from(tuple), count }])),
    };
  }

  /** Gives every row of the flagged buckets that is not set apart. */
  async pick(
    part: TablePart,
    buckets: Uint8Array<ArrayBuffer>,
    onTuple: (tuple: Buffer) => void,
  ): Promise<void> {
    await this.#ask({ kind: 'pick', buckets, ...part });
    for (;;) {
      const { tuples, isLast } = await this.#ask({ kind: 'more' });
      const bytes = Buffer.from(tuples.buffer);
      for (let at = 0; at < bytes.length; ) {
        const end = at + 4 + bytes.readUInt32LE(at);
        onTuple(bytes.subarray(at + 4, end));
        at = end;
      }
      if (isLast) return;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#signal.removeEventListener('abort', this.#interrupt);
    await this.#end();
  }

  readonly #interrupt = (): void => {
    this.#waiting?.reject(this.#signal.reason);
    this.#waiting = null;
    void this.#end();
  };

  #ask<Kind extends FileRequest['kind']>(
    request: Extract<FileRequest, { kind: Kind }>,
  ): Promise<FileReplies[Kind]> {
    const asked = this.#queue.then(
      () =>
        new Promise<unknown>((resolve, reject) => {
          this.#signal.throwIfAborted();
          this.#waiting = { resolve, reject };
          this.#worker.postMessage(request);
        }),
    );
    this.#queue = asked.catch(() => undefined);
    return asked as Promise<FileReplies[Kind]>;
  }

  #late(at: Lsn, hasMoved: boolean, target: Lsn): RivuletError {
    const where = `${this.path} is at ${formatLsn(at)}, before ${formatLsn(target)}`;
    if (hasMoved || this.isKept()) {
      return new RivuletError('WAIT_TIMEOUT', `${where}, after all the time given`, {
        hint: "'rivulet status' shows how far behind the replica is; --timeout gives it longer",
      });
    }
    return new RivuletError('FILE_UNUSABLE', `${where}, and no process brings it forward`, {
      hint: 'start `rivulet replica` on it, or give --replicator URL: verify then brings it forward by itself',
      facts: { file: this.path },
    });
  }

  /** Whether a process keeps the file current. */
  isKept(): boolean {
    try {
      lockFile(this.path).release();
      return false;
    } catch {
      return true;
    }
  }
}
