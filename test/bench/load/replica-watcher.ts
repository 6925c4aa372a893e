import { parentPort, workerData } from 'node:worker_threads';
import Database from 'better-sqlite3';
import { monotonicMs } from '../monotonic-clock.ts';
import { noteSeen, type Pause, type WatcherInput } from './watcher.ts';

/**
 * How long the thread sleeps between two looks: with the scheduler's own slack about 0.1 ms, which is the
 * error of what is measured. Spinning would take one of the two cores from those that are measured.
 */
const SLEEP_MS = 0.05;
/** Without a look for so long it says so. */
const PAUSE_MS = 10;

/** Watches a replica's file, as a reader in any other process would. */
const { source: file, sessions, stop } = workerData as WatcherInput<string>;
const db = new Database(file, { readonly: true });
// Cheap, and differs whenever another connection has committed. https://www.sqlite.org/pragma.html#pragma_data_version
const version = db.prepare('pragma data_version').pluck();
const rows = db.prepare('select session, commits from bench_session').raw();
const seen: number[][] = Array.from({ length: sessions }, () => [Number.NaN]);

let last: unknown;
parentPort!.postMessage('ready');
let lookedMs = monotonicMs();
while (Atomics.load(stop, 0) === 0) {
  const lookMs = monotonicMs();
  if (lookMs - lookedMs > PAUSE_MS)
    parentPort!.postMessage({ fromMs: lookedMs, toMs: lookMs } satisfies Pause);
  lookedMs = lookMs;
  const current = version.get();
  if (current !== last) {
    last = current;
    const found = rows.all() as [number, number][];
    const nowMs = monotonicMs();
    for (const [session, commits] of found) noteSeen(seen[session]!, commits, nowMs);
  }
  Atomics.wait(stop, 0, 0, SLEEP_MS);
}
db.close();
parentPort!.postMessage(seen);
