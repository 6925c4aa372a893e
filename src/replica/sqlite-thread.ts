import type { MessagePort, Worker } from 'node:worker_threads';
import Database from 'better-sqlite3';

/** The first message of a thread that uses SQLite. */
export const SQLITE_LOADED = 'SQLite is loaded';
export type SqliteLoaded = typeof SQLITE_LOADED;

/** In the thread, before it takes any work: the library comes with the first database otherwise. */
export function loadSqlite(port: MessagePort): void {
  new Database(':memory:').close();
  port.postMessage(SQLITE_LOADED);
}

/**
 * How to end the thread, as often as one likes: not before it has loaded SQLite, because one that is ended while it
 * loads a native library takes the process with it. To be asked for right after its start.
 */
export function sqliteThreadEnd(worker: Worker): () => Promise<void> {
  const loaded = new Promise<void>((resolve) => {
    worker.once('message', () => resolve());
    // Also after an error.
    worker.once('exit', () => resolve());
  });
  return async () => {
    await loaded;
    await worker.terminate();
  };
}
