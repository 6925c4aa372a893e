import { parentPort, workerData } from 'node:worker_threads';
import { ReplicationStream } from '../../../src/source/replication-stream.ts';
import { monotonicMs } from '../monotonic-clock.ts';
import { noteSeen, type WatcherInput } from './watcher.ts';

export interface DeliverySource {
  readonly url: string;
  readonly slot: string;
  readonly publication: string;
}

const UPDATE = 0x55; // U
const COMMIT = 0x43; // C
const NEW_TUPLE = 0x4e; // N
const POLL_STOP_MS = 50;

/** Watches the replication stream itself: when a commit has come, nothing behind the server has been paid for yet. */
const { source, sessions, stop } = workerData as WatcherInput<DeliverySource>;
const seen: number[][] = Array.from({ length: sessions }, () => [Number.NaN]);
const done = new AbortController();
let updated: [session: number, commits: number][] = [];

const stream = new ReplicationStream({
  ...source,
  from: 0n,
  onBegun: () => Promise.resolve(),
  onMessage(bytes, from) {
    // Only rows of bench_session are updated.
    if (bytes[from] === UPDATE && bytes[from + 5] === NEW_TUPLE)
      updated.push(readTwoNumbers(bytes, from + 8));
    if (bytes[from] === COMMIT) {
      const nowMs = monotonicMs();
      for (const [session, commits] of updated) noteSeen(seen[session]!, commits, nowMs);
      updated = [];
    }
    return true;
  },
  onKeepalive: () => undefined,
  onChunk: () => undefined,
  durablePosition: () => 0n,
});

/** Two text values of a tuple: type, length, digits, each. */
function readTwoNumbers(bytes: Buffer, at: number): [number, number] {
  const length = bytes.readUInt32BE(at + 1);
  const second = at + 5 + length;
  const number = (from: number): number =>
    Number(bytes.latin1Slice(from + 5, from + 5 + bytes.readUInt32BE(from + 1)));
  return [number(at), number(second)];
}

const timer = setInterval(() => {
  if (Atomics.load(stop, 0) === 0) return;
  clearInterval(timer);
  done.abort();
}, POLL_STOP_MS);
parentPort!.postMessage('ready');
await stream.run(done.signal);
parentPort!.postMessage(seen);
