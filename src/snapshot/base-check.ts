import { Worker } from 'node:worker_threads';
import { SQLITE_LOADED, type SqliteLoaded, sqliteThreadEnd } from '../replica/sqlite-thread.ts';
import type { CheckReply, CheckTask } from './base-check-worker.ts';

/**
 * Reads all of a base file, on a thread of its own, and compares it with what was written. Rejects when aborted, and
 * where the file could not be read: that is no damage.
 */
export function checkBase(file: string, signal: AbortSignal): Promise<CheckReply> {
  const name = import.meta.url.endsWith('.ts') ? './base-check-worker.ts' : './base-check-worker.js';
  const workerData: CheckTask = { file };
  return new Promise((resolve, reject) => {
    const worker = new Worker(new URL(name, import.meta.url), { workerData });
    const end = sqliteThreadEnd(worker);
    const stop = (): void => void end();
    signal.addEventListener('abort', stop, { once: true });
    if (signal.aborted) stop();
    worker.on('message', (reply: CheckReply | SqliteLoaded) => {
      if (reply !== SQLITE_LOADED) resolve(reply);
    });
    worker.once('error', reject);
    worker.once('exit', (code) => {
      signal.removeEventListener('abort', stop);
      reject(new Error(`the check ended with ${code}`));
    });
  });
}
