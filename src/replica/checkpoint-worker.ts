import { fdatasyncSync, readdirSync, readlinkSync, realpathSync } from 'node:fs';
import { parentPort, workerData } from 'node:worker_threads';
import Database from 'better-sqlite3';
import { CHECKPOINT_IDLE, CHECKPOINT_STATE } from './checkpointer.ts';

/** The thread behind WalKeeper; nothing imports this file. */
const { file, state } = workerData as { readonly file: string; readonly state: Int32Array };
const port = parentPort!;
let db: Database.Database | null = null;

/**
 * Of the file and its WAL, as SQLite has them open: where the checkpoint has not come to the end, as it seldom does
 * beside a writer, it has synced no copied page. They are not opened here, for closing one lets go of SQLite's locks
 * (https://www.sqlite.org/howtocorrupt.html#_posix_advisory_locks_canceled_by_a_separate_thread_doing_close_). Only
 * Linux tells; elsewhere the writer syncs more. A number that is another file's by then is synced for nothing.
 */
function openDescriptors(): readonly number[] {
  if (process.platform !== 'linux') return [];
  const wanted = new Set([realpathSync(file), `${realpathSync(file)}-wal`]);
  const found: number[] = [];
  for (const descriptor of readdirSync('/proc/self/fd')) {
    try {
      // Several connections have the same file open.
      if (wanted.delete(readlinkSync(`/proc/self/fd/${descriptor}`))) found.push(Number(descriptor));
    } catch {
      // Closed meanwhile.
    }
  }
  return found;
}

port.on('message', (message) => {
  if (message === 'close') {
    db?.close();
    port.close();
    return;
  }
  try {
    db ??= new Database(file, { fileMustExist: true, timeout: 1_000 });
    // The writer looks at how far this came; a reader in the way is not an error.
    db.pragma('wal_checkpoint(PASSIVE)');
    for (const descriptor of openDescriptors()) fdatasyncSync(descriptor);
  } catch {
    // Full disk, or the file is gone: the writer meets the same and says so. Here the WAL only grows on.
    db?.close();
    db = null;
  } finally {
    Atomics.store(state, CHECKPOINT_STATE, CHECKPOINT_IDLE);
    Atomics.notify(state, CHECKPOINT_STATE);
  }
});
