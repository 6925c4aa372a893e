import { once } from 'node:events';
import { setTimeout as delay } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import { RivuletError } from '../errors.ts';
import type { Log } from '../log.ts';
import { fromPlainError } from '../plain-error.ts';
import type { StoreLocation } from '../store/open-store.ts';
import type {
  ArchiveArgument,
  ArchiveMethod,
  ArchiveReply,
  ArchiveRequest,
  ArchiveResult,
  ArchiveTask,
} from './archive-messages.ts';
import type { ArchiveFacts, ArchiveSettings } from './archive-session.ts';
import type { TransferProgress } from './chunk-upload.ts';

/** A request that is on its way is given up; whatever happens to it, the manifest stays right. */
const CLOSE_TIMEOUT_MS = 5_000;

export interface ArchiveOptions {
  readonly location: StoreLocation;
  readonly settings: ArchiveSettings;
  readonly log: Log;
}

/** An ArchiveSession on a thread of its own: compressing and hashing would be in the way of every follower. */
export class Archive implements AsyncDisposable {
  readonly #worker: Worker;
  readonly #exited: Promise<unknown>;
  readonly #calls = new Map<number, { resolve(result: unknown): void; reject(error: Error): void }>();
  #nextId = 1;
  #facts: ArchiveFacts | null = null;
  #progress: TransferProgress | null = null;
  #failure: RivuletError | null = null;

  constructor({ location, settings, log }: ArchiveOptions) {
    const task: ArchiveTask = { location, settings };
    const name = import.meta.url.endsWith('.ts') ? './archive-worker.ts' : './archive-worker.js';
    this.#worker = new Worker(new URL(name, import.meta.url), { workerData: task, name: 'rivulet archive' });
    this.#exited = once(this.#worker, 'exit').catch(() => undefined);
    this.#worker.on('message', (reply: ArchiveReply) => {
      if (reply.kind === 'progress') this.#progress = reply.progress;
      else if (reply.kind === 'log') log[reply.level](reply.facts, reply.message);
      else this.#settle(reply);
    });
    this.#worker.on('error', (cause: Error) => {
      this.#end(
        new RivuletError('PROTOCOL', `the thread of the object store broke: ${cause.message}`, { cause }),
      );
    });
    this.#worker.on('exit', () => this.#end(new RivuletError('CLOSED', 'the archive was closed')));
  }

  /** After the last call that changed them; null before the first. */
  get facts(): ArchiveFacts | null {
    return this.#facts;
  }

  /** Of the snapshot under way. */
  get progress(): TransferProgress | null {
    return this.#progress;
  }

  /** Frames are handed over, not copied: the caller must not use them any more. */
  call<Method extends ArchiveMethod>(
    method: Method,
    argument: ArchiveArgument<Method>,
  ): Promise<ArchiveResult<Method>> {
    if (this.#failure !== null) return Promise.reject(this.#failure);
    const id = this.#nextId++;
    if (method === 'snapshot') this.#progress = null;
    return new Promise<ArchiveResult<Method>>((resolve, reject) => {
      this.#calls.set(id, { resolve: resolve as (result: unknown) => void, reject });
      const transfer = argument instanceof Uint8Array ? [argument.buffer as ArrayBuffer] : [];
      this.#post({ kind: 'call', id, method, argument }, transfer);
    }).finally(() => {
      if (method === 'snapshot') this.#progress = null;
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#post({ kind: 'close' });
    const tooLong = new AbortController();
    const timer = delay(CLOSE_TIMEOUT_MS, undefined, { signal: tooLong.signal }).catch(() => undefined);
    await Promise.race([this.#exited, timer]);
    tooLong.abort();
    await this.#worker.terminate();
    await this.#exited;
  }

  #post(request: ArchiveRequest, transfer: ArrayBuffer[] = []): void {
    this.#worker.postMessage(request, transfer);
  }

  #settle(reply: Extract<ArchiveReply, { kind: 'done' | 'failed' }>): void {
    const call = this.#calls.get(reply.id);
    this.#calls.delete(reply.id);
    if (reply.kind === 'failed') {
      call?.reject(fromPlainError(reply.error));
      return;
    }
    if (reply.facts !== null) this.#facts = reply.facts;
    call?.resolve(reply.result);
  }

  #end(reason: RivuletError): void {
    this.#failure ??= reason;
    for (const { reject } of this.#calls.values()) reject(reason);
    this.#calls.clear();
  }
}
