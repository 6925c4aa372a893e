import fs from 'node:fs';
import { syncBuiltinESMExports } from 'node:module';
import { constants, PerformanceObserver } from 'node:perf_hooks';
import { isMainThread, threadId } from 'node:worker_threads';
import Database from 'better-sqlite3';
import { monotonicMs } from '../bench/monotonic-clock.ts';

/**
 * Loaded into a process, and each of its threads, before its program (`--import`): says on stderr what took long there,
 * a line each, which readPauses() understands.
 */
const COLLECTION_MS = 10;
const STATEMENT_MS = 10;
const SYNC_MS = 25;
/** Between two looks of an event loop that has nothing better to do. */
const LOOK_MS = 10;
const BUSY_MS = 20;

function note(fromMs: number, toMs: number, what: string): void {
  process.stderr.write(`pause ${fromMs.toFixed(1)} ${toMs.toFixed(1)} ${what}\n`);
}

const thread = isMainThread ? 'main thread' : `thread ${threadId}`;

new PerformanceObserver((list) => {
  // Entries of this type have a kind, which the types leave out.
  for (const entry of list.getEntries()) {
    const { duration, detail } = entry as typeof entry & { readonly detail: { readonly kind: number } };
    if (duration < COLLECTION_MS) continue;
    const kind = detail.kind === constants.NODE_PERFORMANCE_GC_MAJOR ? 'full' : 'small';
    const fromMs = monotonicMs() - performance.now() + entry.startTime;
    note(fromMs, fromMs + duration, `a ${kind} collection of garbage (${thread})`);
  }
}).observe({ entryTypes: ['gc'] });

let lookedMs = monotonicMs();
setInterval(() => {
  const nowMs = monotonicMs();
  if (nowMs - lookedMs - LOOK_MS > BUSY_MS) note(lookedMs + LOOK_MS, nowMs, `busy (${thread})`);
  lookedMs = nowMs;
}, LOOK_MS).unref();

function timed<T>(what: string, leastMs: number, work: () => T): T {
  const fromMs = monotonicMs();
  try {
    return work();
  } finally {
    const toMs = monotonicMs();
    if (toMs - fromMs >= leastMs) note(fromMs, toMs, what);
  }
}

/** Statements that write to a file, or read all of it. */
const NOTED = /^(COMMIT|INSERT INTO batch|PRAGMA wal_checkpoint(?!\(NOOP))/;

const { prepare, pragma } = Database.prototype;
Database.prototype.prepare = function (this: Database.Database, source: string) {
  const statement = prepare.call(this, source);
  const [what] = NOTED.exec(source) ?? [];
  if (what === undefined) return statement;
  for (const method of ['run', 'get'] as const) {
    const original = statement[method].bind(statement) as (...args: unknown[]) => unknown;
    Object.defineProperty(statement, method, {
      value: (...args: unknown[]) => timed(`${what} (${thread})`, STATEMENT_MS, () => original(...args)),
    });
  }
  return statement;
} as typeof prepare;
Database.prototype.pragma = function (
  this: Database.Database,
  source: string,
  options?: Database.PragmaOptions,
) {
  const run = (): unknown => pragma.call(this, source, options);
  return source.startsWith('wal_checkpoint')
    ? timed(`PRAGMA ${source} (${thread})`, STATEMENT_MS, run)
    : run();
};

const { fdatasync } = fs;
fs.fdatasync = ((fd: number, callback: fs.NoParamCallback) => {
  const fromMs = monotonicMs();
  fdatasync(fd, (error) => {
    const toMs = monotonicMs();
    if (toMs - fromMs >= SYNC_MS) note(fromMs, toMs, 'a sync of the log');
    callback(error);
  });
}) as typeof fdatasync;
syncBuiltinESMExports();
