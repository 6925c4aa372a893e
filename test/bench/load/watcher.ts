import { once } from 'node:events';
import { Worker } from 'node:worker_threads';

/** Shared with the watching thread: [0] is set to end it. */
export type StopFlag = Int32Array<SharedArrayBuffer>;

export interface WatcherInput<Source> {
  readonly source: Source;
  readonly sessions: number;
  readonly stop: StopFlag;
}

/** Per session, the moment at which the commit with that number was seen; index 0 is not used. */
export type SeenMs = readonly (readonly number[])[];

/** Between two looks, ms of the monotonic clock. */
export interface Pause {
  readonly fromMs: number;
  readonly toMs: number;
}

/** A thread that notes when commits become visible somewhere. */
export interface Watcher extends AsyncDisposable {
  /** Ends the thread and gives what it saw. */
  stop(): Promise<SeenMs>;
  /** When it did not look for a while: what it saw then it may have seen late. */
  readonly pauses: readonly Pause[];
}

/** Starts one of the watching threads; it watches by the time this resolves. */
export async function startWatcher<Source>(file: URL, source: Source, sessions: number): Promise<Watcher> {
  const stop: StopFlag = new Int32Array(new SharedArrayBuffer(4));
  const workerData: WatcherInput<Source> = { source, sessions, stop };
  const worker = new Worker(file, { workerData });
  const messages: unknown[] = [];
  const pauses: Pause[] = [];
  await once(worker, 'message');
  worker.on('message', (message: SeenMs | Pause) => {
    if (Array.isArray(message)) messages.push(message);
    else pauses.push(message as Pause);
  });
  const exited = once(worker, 'exit');
  exited.catch(() => undefined);
  return {
    pauses,
    async stop() {
      Atomics.store(stop, 0, 1);
      Atomics.notify(stop, 0);
      await exited;
      return messages.at(-1) as SeenMs;
    },
    async [Symbol.asyncDispose]() {
      await worker.terminate();
    },
  };
}

/** Notes the moment for every commit up to `commits` that was not seen before. */
export function noteSeen(seen: number[], commits: number, nowMs: number): void {
  if (commits === 0) seen.length = 1;
  while (seen.length <= commits) seen.push(nowMs);
}
