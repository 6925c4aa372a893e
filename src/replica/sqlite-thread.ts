import { once } from 'node:events';
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
 * Resolves once the thread may be ended, or has ended: one that is ended while it loads a native library takes the
 * process with it. To be called right after its start.
 */
export async function sqliteLoaded(worker: Worker): Promise<void> {
  const isOver = new AbortController();
  const { signal } = isOver;
  // An error ends it, too.
  await Promise.race([once(worker, 'message', { signal }), once(worker, 'exit', { signal })]).catch(
    () => undefined,
  );
  isOver.abort();
}
