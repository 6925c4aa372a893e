import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs';
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
import { type RivuletProcess, rivulet } from '../helpers/processes.ts';
import { waitUntil } from '../helpers/wait-until.ts';

const SESSIONS = 16;
/** A lag above this is a spike, and wants an explanation. */
const SPIKE_MS = 50;
/** Spikes that are no further apart are one. */
const SAME_SPIKE_MS = 250;
const SAMPLE_INTERVAL_MS = 25;
/** How late the sampler has to be before the machine counts as busy. */
const LATE_MS = 25;
/** Between two samples; more than that is felt. */
const WAITED_MS = 10;

/** Something that takes a machine's time, or keeps somebody waiting. */
interface Happening {
  readonly what: string;
  readonly fromMs: number;
  readonly toMs: number;
}

export interface LongReadersReport {
  readonly committed: number;
  readonly lagMs: { readonly p50: number; readonly p99: number; readonly max: number };
  /** Seconds of the run, and what else happened then. */
  readonly spikes: readonly {
    readonly atSecond: number;
    readonly ms: number;
    readonly beside: readonly string[];
  }[];
  /** Largest -wal files, MiB: with readers that hold a snapshot, and what was left a while behind the last. */
  readonly walMiB: {
    readonly log: number;
    readonly replica: number;
    readonly replicaAfter: number;
  };
  /** Whether the replica said that a long reader was there. */
  readonly wasNamed: boolean;
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
    const env = { NODE_OPTIONS: `--import=${new URL('./note-collections.ts', import.meta.url)}` };
    await using replicator = rivulet(
      ['replicator', '--postgres', server.url, '--data', join(directory, 'data'), '--listen', '127.0.0.1:0'],
      env,
    );
    const url = await replicator.ready;
    const file = join(directory, 'app.db');
    await using replica = rivulet(
      ['replica', '--replicator', url, '--file', file, '--listen', '127.0.0.1:0'],
      env,
    );
    const replicaUrl = await replica.ready;
    noteCollections(replicator, 'replicator', happened);
    noteCollections(replica, 'replica', happened);
    const stop = new AbortController();
    const pids = new Map([
      ['replicator', replicator.pid],
      ['replica', replica.pid],
    ]);
    const sampler = new Sampler({ directory, file, replicaUrl, pids }, happened);
    const sampling = [sampler.run(stop.signal), noteCheckpoints(server, happened, stop.signal)];
    const reading = holdSnapshots(file, { holdSeconds, happened, log, signal: stop.signal });
    await using watcher = await startWatcher(
      new URL('../bench/load/replica-watcher.ts', import.meta.url),
      file,
      SESSIONS,
    );
    const startedMs = monotonicMs();
    const { committedMs, durationsMs } = await commitAtRate({
      url: server.url,
      perSecond,
      seconds,
      sessions: SESSIONS,
    });
    await delay(500);
    const seen = await watcher.stop();
    stop.abort();
    await reading;
    await Promise.all(sampling);
    const largest = { log: sampler.logWalBytes, replica: sampler.replicaWalBytes };
    // Once no reader is in the way a few more commits let the WAL start over.
    await commitAtRate({ url: server.url, perSecond: 500, seconds: 3, sessions: SESSIONS });
    await waitUntil('the WAL to be written back', () => pinned(replicaUrl).then((bytes) => bytes === 0), {
      timeoutMs: 30_000,
    });
    const lags = committedMs.flatMap((commits, session) =>
      commits.slice(1).map((committed, index) => ({
        atMs: committed,
        ms: (seen[session]![index + 1] ?? Number.POSITIVE_INFINITY) - committed,
      })),
    );
    const values = lags.map(({ ms }) => ms);
    const spikes = findSpikes(lags, happened, startedMs);
    return {
      committed: durationsMs.length,
      lagMs: {
        p50: percentile(values, 0.5),
        p99: percentile(values, 0.99),
        max: values.reduce((most, each) => Math.max(most, each), 0),
      },
      spikes,
      walMiB: {
        log: toMiB(largest.log),
        replica: toMiB(largest.replica),
        replicaAfter: toMiB(walBytes(file)),
      },
      wasNamed: sampler.wasNamed,
      problems: [
        ...values.filter((ms) => ms === Number.POSITIVE_INFINITY).map(() => 'a commit never became visible'),
        ...spikes
          .filter(({ beside }) => beside.length === 0)
          .map(({ atSecond, ms }) => `a lag of ${ms} ms at second ${atSecond} that nothing explains`),
      ],
    };
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

interface SampledFiles {
  readonly directory: string;
  readonly file: string;
  readonly replicaUrl: string;
  /** By name. */
  readonly pids: ReadonlyMap<string, number>;
}

/** Looks at files, at its own punctuality, and at who waits for a core. */
class Sampler {
  readonly #options: SampledFiles;
  readonly #happened: Happening[];
  logWalBytes = 0;
  replicaWalBytes = 0;
  wasNamed = false;

  constructor(options: SampledFiles, happened: Happening[]) {
    this.#options = options;
    this.#happened = happened;
  }

  async run(signal: AbortSignal): Promise<void> {
    const { directory, file, replicaUrl, pids } = this.#options;
    const waitedMs = new Map<string, number>();
    const logFile = join(directory, 'data', 'log.db');
    // Only a checkpoint writes to the files themselves.
    const written = new Map([file, logFile].map((each) => [each, statSync(each).mtimeMs]));
    let beforeMs = monotonicMs();
    for (let count = 0; !signal.aborted; count++) {
      await delay(SAMPLE_INTERVAL_MS);
      const nowMs = monotonicMs();
      const note = (what: string): void => {
        this.#happened.push({ what, fromMs: beforeMs, toMs: nowMs });
      };
      if (nowMs - beforeMs - SAMPLE_INTERVAL_MS > LATE_MS)
        note(
          `the machine was busy: a timer came ${Math.round(nowMs - beforeMs - SAMPLE_INTERVAL_MS)} ms late`,
        );
      for (const [name, pid] of pids) {
        const totalMs = waitForCoreMs(pid);
        const sinceMs = totalMs - (waitedMs.get(name) ?? totalMs);
        waitedMs.set(name, totalMs);
        if (sinceMs > WAITED_MS) note(`the ${name} waited for a core`);
      }
      for (const [each, at] of written) {
        const { mtimeMs } = statSync(each);
        if (mtimeMs === at) continue;
        written.set(each, mtimeMs);
        note(each === file ? "a checkpoint of the replica's file" : "a checkpoint of the replicator's log");
      }
      this.logWalBytes = Math.max(this.logWalBytes, walBytes(logFile));
      this.replicaWalBytes = Math.max(this.replicaWalBytes, walBytes(file));
      if (count % 40 === 0 && !this.wasNamed) this.wasNamed = (await pinned(replicaUrl)) > 0;
      beforeMs = monotonicMs();
    }
  }
}

/**
 * How long the threads of a process have waited for a core, all together; 0 where the system does not tell.
 * https://docs.kernel.org/scheduler/sched-stats.html#proc-pid-schedstat
 */
function waitForCoreMs(pid: number): number {
  try {
    const tasks = readdirSync(`/proc/${pid}/task`);
    const waits = tasks.map((task) =>
      Number(readFileSync(`/proc/${pid}/task/${task}/schedstat`, 'utf8').split(' ')[1]),
    );
    return waits.reduce((sum, each) => sum + each, 0) / 1e6;
  } catch {
    return 0;
  }
}

async function pinned(replicaUrl: string): Promise<number> {
  const status = (await (await fetch(`${replicaUrl}/status`)).json()) as { pinnedWalBytes: number };
  return status.pinnedWalBytes;
}

function noteCollections(process: RivuletProcess, name: string, happened: Happening[]): void {
  process.child.stderr!.on('data', (text: string) => {
    const toMs = monotonicMs();
    for (const [, kind, duration] of text.matchAll(/^collection (\w+) (\d+)$/gm)) {
      const what = `a ${kind} collection of the ${name}'s garbage of ${duration} ms`;
      happened.push({ what, fromMs: toMs - Number(duration), toMs });
    }
  });
}

/** While it writes, the numbers of the server's checkpointer move. */
async function noteCheckpoints(
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
      happened.push({ what: 'a checkpoint of the server', fromMs: beforeMs, toMs: nowMs });
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
    happened.push({ what: 'what a long reader had held was written back', fromMs, toMs: monotonicMs() });
  }
}

function findSpikes(
  lags: readonly { readonly atMs: number; readonly ms: number }[],
  happened: readonly Happening[],
  startedMs: number,
): LongReadersReport['spikes'] {
  const late = lags.filter(({ ms }) => ms > SPIKE_MS).sort((a, b) => a.atMs - b.atMs);
  const groups: { fromMs: number; toMs: number; ms: number }[] = [];
  for (const { atMs, ms } of late) {
    const last = groups.at(-1);
    if (last !== undefined && atMs - last.toMs < SAME_SPIKE_MS) {
      last.toMs = Math.max(last.toMs, atMs + ms);
      last.ms = Math.max(last.ms, ms);
    } else {
      groups.push({ fromMs: atMs, toMs: atMs + ms, ms });
    }
  }
  return groups.map(({ fromMs, toMs, ms }) => ({
    atSecond: Math.round((fromMs - startedMs) / 100) / 10,
    ms: Math.round(ms),
    beside: [
      ...new Set(
        happened.filter((each) => each.fromMs <= toMs && each.toMs >= fromMs).map(({ what }) => what),
      ),
    ],
  }));
}

function walBytes(file: string): number {
  return statSync(`${file}-wal`, { throwIfNoEntry: false })?.size ?? 0;
}

function toMiB(bytes: number): number {
  return Math.round(bytes / 2 ** 20);
}
