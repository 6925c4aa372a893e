import { join } from 'node:path';
import { dropSlot } from '../../../src/source/slot.ts';
import type { BenchCase, BenchContext, Sample, Target } from '../bench-case.ts';
import { type BenchServer, startBenchServer } from '../bench-server.ts';
import { commitAtRate, createPacedTables, type PacedCommits } from '../load/paced-commits.ts';
import { type SeenMs, startWatcher, type Watcher } from '../load/watcher.ts';
import { peers } from '../peer.ts';
import { type ProcessUsage, usageSince } from '../process-usage.ts';
import { percentile } from '../statistics.ts';
import { type RunningSystem, replicatorAndReplica, type System } from '../system.ts';

const PUBLICATION = 'rivulet';

interface Load {
  readonly name: string;
  readonly perSecond: number;
  readonly sessions: number;
  readonly targets: { readonly p50: Target; readonly p99: Target; readonly cpu?: Target };
}

const LOADS: readonly Load[] = [
  {
    name: '200 tx/s',
    perSecond: 200,
    sessions: 2,
    targets: { p50: { atMost: 1.5 }, p99: { atMost: 5 }, cpu: { atMost: 4 } },
  },
  // Enough sessions that a commit's wait for the disk does not hold the rate down.
  { name: '1,000 tx/s', perSecond: 1000, sessions: 8, targets: { p50: { atMost: 1.5 }, p99: { atMost: 5 } } },
  // Last: a few hundred transactions are too few for a new process's code to be compiled, and what is meant is one that runs.
  { name: 'idle (20 tx/s)', perSecond: 20, sessions: 1, targets: { p50: { atMost: 1 }, p99: { atMost: 3 } } },
];

/** CPU time is given for so many seconds of load, however long the load was. */
const CPU_SECONDS_OF = 30;

const SESSIONS = Math.max(...LOADS.map((load) => load.sessions));

export const lag: BenchCase = {
  name: 'lag',
  title:
    'lag: commit returned to visible in the file of another process, through replicator, log and replica process',
  async prepare(context) {
    const server = await startBenchServer(context.postgresMajor);
    try {
      await createPacedTables(server, SESSIONS);
    } catch (error) {
      await server[Symbol.asyncDispose]();
      throw error;
    }
    const options = {
      ...context,
      url: server.url,
      slot: 'bench_lag',
      directory: join(context.directory, 'lag'),
    };
    const systems = [replicatorAndReplica(options), ...peers(options)];
    return {
      run: () => runRepetition(context, server, systems),
      [Symbol.asyncDispose]: () => server[Symbol.asyncDispose](),
    };
  },
};

async function runRepetition(
  context: BenchContext,
  server: BenchServer,
  [ours, ...others]: readonly System[],
): Promise<Sample[]> {
  const samples: Sample[] = [];
  const seconds = context.sizes.lagSeconds;
  for (const system of [ours!, ...others]) {
    await using running = await system.start();
    await running.reached(await server.markWalEnd());
    for (const load of LOADS) {
      if (system === ours) {
        context.say(`${load.name}: delivery alone`);
        samples.push(...(await measureDelivery(server, load, Math.max(1, seconds / 3))));
      }
      context.say(`${load.name}: ${system.name}`);
      const measured = await measureReplica({ server, system, running, load, seconds });
      samples.push(...(system === ours ? measured : measured.map((sample) => asPeer(sample, system.name))));
    }
    await running.stop();
  }
  return samples;
}

/** A peer has figures, and no targets of ours. */
function asPeer({ target: _target, ...sample }: Sample, name: string): Sample {
  return { ...sample, metric: `${name}, ${sample.metric}` };
}

/**
 * When the commit arrives at a client that does nothing with it: about when its own session hears of it, often
 * before. No ratio is made of it, because it lies around zero.
 */
async function measureDelivery(server: BenchServer, load: Load, seconds: number): Promise<Sample[]> {
  const slot = 'bench_delivery';
  await server.sql.query(`select pg_create_logical_replication_slot($1, 'pgoutput')`, [slot]);
  try {
    const source = { url: server.url, slot, publication: PUBLICATION };
    await using watcher = await startWatcher(
      new URL('../load/delivery-watcher.ts', import.meta.url),
      source,
      SESSIONS,
    );
    const commits = await commitAtRate({ url: server.url, seconds, ...load });
    const lags = lagsMs(commits, await settle(watcher));
    return [
      {
        metric: `${load.name}: delivery by the server, p50`,
        unit: 'ms',
        value: percentile(lags, 0.5),
        note: commitNote(commits),
      },
      { metric: `${load.name}: delivery by the server, p99`, unit: 'ms', value: percentile(lags, 0.99) },
    ];
  } finally {
    await dropSlot(server.sql, slot, true);
  }
}

async function measureReplica(options: {
  readonly server: BenchServer;
  readonly system: System;
  readonly running: RunningSystem;
  readonly load: Load;
  readonly seconds: number;
}): Promise<Sample[]> {
  const { server, system, running, load, seconds } = options;
  await using watcher = await startWatcher(
    new URL('../load/replica-watcher.ts', import.meta.url),
    system.file,
    SESSIONS,
  );
  const before = { ours: running.usage(), server: [server.usage()] };
  const commits = await commitAtRate({ url: server.url, seconds, ...load });
  await running.reached(await server.markWalEnd());
  const ours = usageSince(before.ours, running.usage());
  const used: ProcessUsage[] = [...ours, ...usageSince(before.server, [server.usage()])];
  const cpuSeconds = ours.reduce((sum, each) => sum + each.cpuSeconds, 0);
  const lags = lagsMs(commits, await settle(watcher));
  return [
    {
      metric: `${load.name}: p50`,
      unit: 'ms',
      value: percentile(lags, 0.5),
      target: load.targets.p50,
      usage: used,
    },
    {
      metric: `${load.name}: p99`,
      unit: 'ms',
      value: percentile(lags, 0.99),
      target: load.targets.p99,
    },
    { metric: `${load.name}: longest`, unit: 'ms', value: Math.max(...lags) },
    {
      metric: `${load.name}: CPU of all of it in ${CPU_SECONDS_OF} s`,
      unit: 'CPU s',
      value: (cpuSeconds * CPU_SECONDS_OF) / seconds,
      ...(load.targets.cpu === undefined ? {} : { target: load.targets.cpu }),
    },
  ];
}

/** The last commits are on their way when the load ends; none of them takes longer than this, or it is missing. */
const SETTLE_MS = 500;

export async function settle(watcher: Watcher): Promise<SeenMs> {
  await new Promise((resolve) => setTimeout(resolve, SETTLE_MS));
  return watcher.stop();
}

/** Below zero where a commit was visible before its own session had heard of it. */
export function lagsMs({ committedMs }: PacedCommits, seen: SeenMs): number[] {
  return committedMs.flatMap((commits, session) =>
    commits.slice(1).map((committed, index) => {
      const visible = seen[session]![index + 1];
      if (visible === undefined)
        throw new Error(`commit ${index + 1} of session ${session} never became visible`);
      return visible - committed;
    }),
  );
}

function commitNote({ durationsMs }: PacedCommits): string {
  return `a commit itself took ${percentile(durationsMs, 0.5).toFixed(2)} / ${percentile(durationsMs, 0.99).toFixed(2)} ms (p50 / p99)`;
}
