import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import Database from 'better-sqlite3';
import type { PostgresMajor } from '../bench/bench-case.ts';
import { type BenchServer, startBenchServer } from '../bench/bench-server.ts';
import { commitAtRate, createPacedTables } from '../bench/load/paced-commits.ts';
import { startWatcher } from '../bench/load/watcher.ts';
import { monotonicMs } from '../bench/monotonic-clock.ts';
import { percentile } from '../bench/statistics.ts';
import { rivulet } from '../helpers/processes.ts';
import { waitUntil } from '../helpers/wait-until.ts';
import {
  type Happening,
  preferSessions,
  readPauses,
  WrittenFile,
  walBytes,
  watchMachine,
} from './happenings.ts';
import { logTimes } from './log-times.ts';
import { findSpikes, type Spike, worstSeconds } from './spikes.ts';

const SESSIONS = 16;
/** A lag above this is a spike, and wants an explanation. */
const SPIKE_MS = 50;
const WORST_SECONDS = 15;
const LOOK_INTERVAL_MS = 1000;
const MIB = 2 ** 20;
/** From here on the replicator brings it into the log itself, whatever waits. */
const LOG_WAL_LIMIT_BYTES = 256 * MIB;

interface Percentiles {
  readonly p50: number;
  readonly p99: number;
  readonly p999: number;
  readonly max: number;
}

export interface LongReadersReport {
  readonly committed: number;
  /** From the return of a commit to when it is visible. */
  readonly lagMs: Percentiles;
  /** The part of it behind the replicator's log. What is before that is the server's, and what its data waits for. */
  readonly fromLogMs: Percentiles;
  readonly spikes: readonly Spike[];
  /** The longest lag of each of the worst seconds, and what was there beside it. */
  readonly worstSeconds: readonly Spike[];
  /** Largest -wal files, MiB: with readers that hold a snapshot, and what was left a while behind the last. */
  readonly walMiB: {
    readonly log: number;
    readonly replica: number;
    readonly replicaAfter: number;
  };
  /** Whether the replica said that a long reader was there. */
  readonly wasNamed: boolean;
  readonly verdict: string;
  readonly problems: readonly string[];
}

/** Commits at an even rate while readers hold snapshots of the replica's file, one after the other. */
export async function longReaders(options: {
  readonly major: PostgresMajor;
  readonly seconds: number;
  readonly perSecond: number;
  readonly holdSeconds: number;
  readonly log?: (line: string) => void;
}): Promise<LongReadersReport> {
  const { major, seconds, perSecond, holdSeconds, log = () => undefined } = options;
  const directory = mkdtempSync(join(tmpdir(), 'rivulet-test-'));
  const happened: Happening[] = [];
  try {
    // Its checkpoints are among what is looked for.
    await using server = await startBenchServer(major, { checkpoint_timeout: '60s', max_wal_size: '1GB' });
    await createPacedTables(server, SESSIONS);
    const env = { NODE_OPTIONS: `--import=${new URL('./note-pauses.ts', import.meta.url)}` };
    await using replicator = rivulet(
      ['replicator', '--postgres', server.url, '--data', join(directory, 'data'), '--listen', '127.0.0.1:0'],
      env,
    );
    readPauses(replicator, 'replicator', happened);
    const url = await replicator.ready;
    const file = join(directory, 'app.db');
    await using replica = rivulet(
      ['replica', '--replicator', url, '--file', file, '--listen', '127.0.0.1:0'],
      env,
    );
    readPauses(replica, 'replica', happened);
    const replicaUrl = await replica.ready;
    const logFile = join(directory, 'data', 'log.db');
    const stop = new AbortController();
    const walSender = await walSenderPid(server);
    // Each of the server's processes is a session of its own: of the load's there are many.
    preferSessions([process.pid, server.pid!, walSender]);
    const pids = new Map([
      ['replicator', replicator.pid],
      ['replica', replica.pid],
      ['walsender', walSender],
      ['this program', process.pid],
    ]);
    const written = {
      log: new WrittenFile(logFile, "the replicator's log was checkpointed", happened),
      replica: new WrittenFile(file, "the replica's file was checkpointed", happened),
    };
    let wasNamed = false;
    const watching = [
      watchMachine(pids, happened, stop.signal),
      written.log.watch(stop.signal),
      written.replica.watch(stop.signal),
      noteServerCheckpoints(server, happened, stop.signal),
      everySecond(stop.signal, async () => {
        wasNamed ||= (await pinned(replicaUrl)) > 0;
      }),
    ];
    const reading = holdSnapshots(file, { holdSeconds, happened, log, signal: stop.signal });
    await using watcher = await startWatcher(
      new URL('../bench/load/replica-watcher.ts', import.meta.url),
      file,
      SESSIONS,
    );
    const startedMs = monotonicMs();
    const clockMs = Date.now() - startedMs;
    const { committedMs, durationsMs, slow } = await commitAtRate({
      url: server.url,
      perSecond,
      seconds,
      sessions: SESSIONS,
    });
    await delay(500);
    const seen = await watcher.stop();
    stop.abort();
    await reading;
    await Promise.all(watching);
    for (const { fromMs, toMs } of slow)
      happened.push({ what: 'the server: a slow COMMIT', fromMs, toMs, heldMs: toMs - fromMs });
    for (const { fromMs, toMs } of watcher.pauses)
      happened.push({ what: 'this program: did not look', fromMs, toMs, heldMs: toMs - fromMs });
    // Once no reader is in the way a few more commits let the WAL start over.
    await commitAtRate({ url: server.url, perSecond: 500, seconds: 3, sessions: SESSIONS });
    await waitUntil('the WAL to be written back', () => pinned(replicaUrl).then((bytes) => bytes === 0), {
      timeoutMs: 30_000,
    });
    const logged = logTimes(logFile, SESSIONS);
    const lags = committedMs.flatMap((commits, session) =>
      commits.slice(1).map((atMs, index) => ({
        atMs,
        ms: (seen[session]![index + 1] ?? Number.POSITIVE_INFINITY) - atMs,
        // The log's own times are whole milliseconds.
        toLogMs: Math.max(0, (logged[session]![index + 1] ?? Number.NaN) - clockMs - atMs),
      })),
    );
    const record = { happened, startedMs };
    const spikes = findSpikes(lags, SPIKE_MS, record);
    const lagMs = summary(lags.map(({ ms }) => ms));
    const fromLogMs = summary(lags.map(({ ms, toLogMs }) => Math.max(0, ms - toLogMs)));
    const walMiB = {
      log: toMiB(written.log.walBytes),
      replica: toMiB(written.replica.walBytes),
      replicaAfter: toMiB(walBytes(file)),
    };
    const problems = [
      ...lags.filter(({ ms }) => ms === Number.POSITIVE_INFINITY).map(() => 'a commit never became visible'),
      ...spikes
        .filter(({ isExplained }) => !isExplained)
        .map(
          ({ atSecond, ms, toLogMs, beside }) =>
            `a lag of ${ms} ms at second ${atSecond} (${toLogMs} ms of it up to the log) that nothing explains: ${beside.join('; ')}`,
        ),
      ...(walMiB.log * MIB > LOG_WAL_LIMIT_BYTES ? [`the WAL of the log grew to ${walMiB.log} MiB`] : []),
    ];
    return {
      committed: durationsMs.length,
      lagMs,
      fromLogMs,
      spikes,
      worstSeconds: worstSeconds(lags, WORST_SECONDS, record),
      walMiB,
      wasNamed,
      verdict: `${spikes.length} spikes above ${SPIKE_MS} ms, ${spikes.filter(({ isExplained }) => !isExplained).length} of them without an explanation; p50 ${lagMs.p50.toFixed(1)}, p99 ${lagMs.p99.toFixed(1)}, longest ${lagMs.max.toFixed(0)} ms, of which behind the log p99 ${fromLogMs.p99.toFixed(1)}, longest ${fromLogMs.max.toFixed(0)} ms; WAL at most ${walMiB.log} MiB (log) and ${walMiB.replica} MiB (replica, beside readers), ${walMiB.replicaAfter} MiB once they had gone`,
      problems,
    };
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

/** The server process that the replicator reads from. */
async function walSenderPid(server: BenchServer): Promise<number> {
  const { rows } = await server.sql.query<{ pid: number }>('select pid from pg_stat_replication');
  return rows[0]!.pid;
}

async function everySecond(signal: AbortSignal, look: () => Promise<void>): Promise<void> {
  while (!signal.aborted) {
    await look();
    await delay(LOOK_INTERVAL_MS, undefined, { signal }).catch(() => undefined);
  }
}

async function pinned(replicaUrl: string): Promise<number> {
  const status = (await (await fetch(`${replicaUrl}/status`)).json()) as { pinnedWalBytes: number };
  return status.pinnedWalBytes;
}

/** While it writes, the numbers of the server's checkpointer move. */
async function noteServerCheckpoints(
  server: BenchServer,
  happened: Happening[],
  signal: AbortSignal,
): Promise<void> {
  let before: string | null = null;
  let beforeMs = monotonicMs();
  while (!signal.aborted) {
    await delay(250);
    const { rows } = await server.sql.query<{ state: string }>(
      `select concat(t, ' ', c.checkpoint_lsn) as state from
         pg_stat_${server.major >= 17 ? 'checkpointer' : 'bgwriter'} t, pg_control_checkpoint() c`,
    );
    const nowMs = monotonicMs();
    const { state } = rows[0]!;
    if (before !== null && state !== before)
      happened.push({ what: 'the server: a checkpoint', fromMs: beforeMs, toMs: nowMs, heldMs: 0 });
    before = state;
    beforeMs = nowMs;
  }
}

/** One reader after the other, each with a snapshot of its own for so long. */
async function holdSnapshots(
  file: string,
  options: {
    readonly holdSeconds: number;
    readonly happened: Happening[];
    readonly log: (line: string) => void;
    readonly signal: AbortSignal;
  },
): Promise<void> {
  const { holdSeconds, happened, log, signal } = options;
  while (!signal.aborted) {
    const db = new Database(file, { readonly: true });
    db.exec('begin');
    const count = db.prepare('select count(*) from bench_event').pluck().get();
    log(`a reader holds a snapshot of ${count} events`);
    await delay(holdSeconds * 1000, undefined, { signal }).catch(() => undefined);
    const fromMs = monotonicMs();
    db.exec('commit');
    db.close();
    await delay(5000, undefined, { signal }).catch(() => undefined);
    happened.push({
      what: 'what a long reader had held was written back',
      fromMs,
      toMs: monotonicMs(),
      heldMs: 0,
    });
  }
}

function summary(values: readonly number[]): Percentiles {
  const at = (part: number): number => Math.round(10 * percentile(values, part)) / 10;
  return {
    p50: at(0.5),
    p99: at(0.99),
    p999: at(0.999),
    max: values.reduce((most, each) => Math.max(most, Math.round(each)), 0),
  };
}

function toMiB(bytes: number): number {
  return Math.round(bytes / MIB);
}
