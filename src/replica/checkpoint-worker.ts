import { parentPort, workerData } from 'node:worker_threads';
import Database from 'better-sqlite3';
import { CHECKPOINT_IDLE, CHECKPOINT_STATE } from './checkpointer.ts';

/** The thread behind WalKeeper; nothing imports this file. */
const { file, state } = workerData as { readonly file: string; readonly state: Int32Array };
const port = parentPort!;
let db: Database.Database | null = null;

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
  } catch {
    // Full disk, or the file is gone: the writer meets the same and says so. Here the WAL only grows on.
    db?.close();
    db = null;
  } finally {
    Atomics.store(state, CHECKPOINT_STATE, CHECKPOINT_IDLE);
    Atomics.notify(state, CHECKPOINT_STATE);
  }
});
