import { parentPort, workerData } from 'node:worker_threads';
import type { Lsn } from '../lsn.ts';
import { type PlainError, toPlainError } from '../plain-error.ts';
import { monotonicMs } from './freshness.ts';
import { parseLocalSql } from './local-sql.ts';
import { PortLink } from './port-link.ts';
import { ReplicaKeeper } from './replica-keeper.ts';
import { watchWanted } from './wanted-file.ts';
import { MAILBOX, type WorkerMessage, type WorkerRequest, type WorkerSettings } from './worker-messages.ts';

/** The thread that keeps one replica file; Replica starts it. Nothing is decided here, see ReplicaKeeper. */
const settings = workerData as WorkerSettings;
// Not parentPort: modules that are imported here may have a thread of their own and listen to that.
const { source, port } = settings;
const stop = new AbortController();
const begun = Promise.withResolvers<void>();

const LAG_INTERVAL_MS = 1000;

function post(message: WorkerMessage): void {
  port.postMessage(message);
}

/**
 * Commits gather while one message is on its way, so that a main thread that is busy finds one message, not a
 * thousand; one that is not hears of each at once.
 */
const gathered = {
  position: 0n as Lsn,
  reloading: [] as readonly string[],
  transactions: 0,
  tables: new Set<string>(),
  lastLagMs: null as number | null,
  asOfMs: null as number | null,
};
let hasMore = false;

/** Posts what has gathered, unless a message is on its way: then whoever takes that one asks for the rest. */
function tell(): void {
  const { mailbox } = settings;
  if (Atomics.compareExchange(mailbox, 0, MAILBOX.free, MAILBOX.onItsWay) === MAILBOX.free) postApplied();
  else if (Atomics.compareExchange(mailbox, 0, MAILBOX.onItsWay, MAILBOX.hasMore) === MAILBOX.free) tell();
}

function postApplied(): void {
  hasMore = false;
  const { position, reloading, transactions, tables, lastLagMs, asOfMs } = gathered;
  post({ kind: 'applied', position, reloading, transactions, tables: [...tables], lastLagMs, asOfMs });
  gathered.transactions = 0;
  gathered.tables.clear();
}

// Loaded on use, as the store is: who needs neither does not pay for them.
const link =
  'port' in source ? new PortLink(source.port) : new (await import('./http-link.ts')).HttpLink(source);

const store =
  settings.store === null || link instanceof PortLink
    ? null
    : await (await import('./store-source.ts')).StoreSource.open(
        settings.store,
        link,
        (level, message, facts) => post({ kind: 'log', level, message, facts }),
      );

const keeper = new ReplicaKeeper({
  file: settings.file,
  id: settings.id,
  name: settings.name,
  localScript: settings.localSql === null ? null : parseLocalSql(settings.localSql),
  link,
  store,
  events: {
    onFile: (file) => post({ kind: 'file', ...file }),
    onApplied: ({ position, reloading, transactions, tables, lastLagMs }) => {
      gathered.position = position;
      gathered.reloading = reloading;
      gathered.transactions += transactions;
      gathered.lastLagMs = lastLagMs;
      // Of tables that are read again the changes are held back.
      if (transactions > 0 && lastLagMs !== null && reloading.length === 0)
        gathered.asOfMs = monotonicMs() - lastLagMs;
      for (const table of tables) gathered.tables.add(table);
      hasMore = true;
      tell();
    },
    onState: (state, reason) =>
      post({ kind: 'state', state, reason: reason === null ? null : toPlainError(reason) }),
    onProgress: (progress) => post({ kind: 'progress', ...progress }),
    onHead: (position) => post({ kind: 'head', position }),
    onCurrent: (asOfMs, isWhole) => post({ kind: 'current', asOfMs, isWhole }),
    onPinned: (walBytes) => post({ kind: 'pinned', walBytes }),
    onLocal: (missing) => post({ kind: 'local', missing }),
    onMaking: (object) => post({ kind: 'making', object }),
    onLog: (level, message, facts) => post({ kind: 'log', level, message, facts }),
  },
});

port.on('message', (request: WorkerRequest) => {
  switch (request.kind) {
    case 'begin':
      begun.resolve();
      break;
    case 'more':
      if (hasMore) tell();
      break;
    case 'hasten':
      keeper.hasten();
      break;
    case 'close':
      stop.abort();
      begun.resolve();
      break;
  }
});

await begun.promise;
let error: PlainError | null = null;
if (stop.signal.aborted) {
  link.close();
  await store?.close();
} else {
  const wanted = watchWanted(settings.file, () => keeper.wanted());
  const lagTimer = setInterval(() => post({ kind: 'lag', lag: keeper.lagSummary() }), LAG_INTERVAL_MS);
  await keeper.run(stop.signal).catch((thrown: unknown) => {
    error = toPlainError(thrown);
  });
  clearInterval(lagTimer);
  wanted[Symbol.dispose]();
  if (hasMore) postApplied();
}
post({ kind: 'ended', error });
port.close();
parentPort?.close();
