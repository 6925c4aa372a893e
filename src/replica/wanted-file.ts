import { closeSync, openSync, utimesSync, watch } from 'node:fs';

/**
 * `<path>-wanted` is how another process says that it waits: it sets the file's time, and the process that keeps the
 * replica asks the server for its position, as it does for readers of its own, and looks for rows to mend.
 */
function wantedPath(path: string): string {
  return `${path}-wanted`;
}

/** False where it cannot be said: nobody keeps the file here, or this user may not touch what is beside it. */
export function sayWanted(path: string): boolean {
  try {
    const now = new Date();
    utimesSync(wantedPath(path), now, now);
    return true;
  } catch {
    return false;
  }
}

/** Calls `onWanted` whenever a reader waits. Where the platform cannot watch a file, readers wait a second longer. */
export function watchWanted(path: string, onWanted: () => void): Disposable {
  try {
    closeSync(openSync(wantedPath(path), 'a', 0o666));
    const watcher = watch(wantedPath(path), { persistent: false }, () => onWanted());
    watcher.on('error', () => watcher.close());
    return { [Symbol.dispose]: () => watcher.close() };
  } catch {
    return { [Symbol.dispose]: () => undefined };
  }
}
