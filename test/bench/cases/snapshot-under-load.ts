import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { pathToFileURL } from 'node:url';
import type { ReplicatorStatus } from '../../../src/replicator/status.ts';
import { dropSlot } from '../../../src/source/slot.ts';
import { createTpcb } from '../../helpers/tpcb.ts';
import type { BenchCase, BenchContext, Sample } from '../bench-case.ts';
import { type BenchServer, startBenchServer } from '../bench-server.ts';
import { commitAtRate, createPacedTables } from '../load/paced-commits.ts';
import { startWatcher } from '../load/watcher.ts';
import { percentile } from '../statistics.ts';
import { type RunningSystem, replicatorAndReplica } from '../system.ts';
import { lagsMs, settle } from './lag.ts';

const SESSIONS = 2;
const PER_SECOND = 200;
const SLOT = 'bench_snapshot';
const POLL_MS = 20;

export const snapshotUnderLoad: BenchCase = {
  name: 'snapshot-under-load',
  title: `lag at ${PER_SECOND} tx/s while snapshots are taken, one after the other, the first of the whole file`,
  async prepare(context) {
    const server = await startBenchServer(context.postgresMajor);
    try {
      await createPacedTables(server, SESSIONS);
      await createTpcb(server.url, context.sizes.scale, context.sizes.accountsPerBranch);
    } catch (error) {
      await server[Symbol.asyncDispose]();
      throw error;
    }
    return {
      run: (repetition) => runRepetition(context, server, repetition),
      async [Symbol.asyncDispose]() {
        await dropSlot(server.sql, SLOT, true);
        await server[Symbol.asyncDispose]();
      },
    };
  },
};

async function runRepetition(
  context: BenchContext,
  server: BenchServer,
  repetition: number,
): Promise<Sample[]> {
  const system = (store: string): ReturnType<typeof replicatorAndReplica> =>
    replicatorAndReplica({
      program: context.program,
      url: server.url,
      slot: SLOT,
      directory: join(context.directory, 'system'),
      profile: context.profile,
      store: pathToFileURL(join(context.directory, `${store}-${repetition}`)).href,
    });
  context.say('without a snapshot');
  const without = await during(system('before'), server, context.sizes.lagSeconds, async (running) => {
    while ((await store(running)).newestSnapshot === null) await delay(POLL_MS);
  });
  context.say('with snapshots');
  let snapshots = 0;
  // Into a store with nothing in it, so that the first one, which begins at once, sends the whole file.
  const taken = await during(
    system('meanwhile'),
    server,
    context.sizes.lagSeconds,
    async (running, isOver) => {
      const taking = (async () => {
        while (!isOver()) {
          const { ok } = await fetch(`${running.replicatorUrl!}/v1/snapshots`, { method: 'POST' });
          if (ok) snapshots++;
          await delay(POLL_MS);
        }
      })();
      return () => taking;
    },
  );
  if (snapshots === 0) throw new Error('no snapshot was taken');
  const [before, meanwhile] = [percentile(without, 0.99), percentile(taken, 0.99)];
  return [
    { metric: 'p50 without', unit: 'ms', value: percentile(without, 0.5) },
    { metric: 'p50 meanwhile', unit: 'ms', value: percentile(taken, 0.5) },
    { metric: 'p99 without', unit: 'ms', value: before },
    { metric: 'p99 meanwhile', unit: 'ms', value: meanwhile },
    { metric: 'longest meanwhile', unit: 'ms', value: Math.max(...taken) },
    {
      metric: 'p99: moved by',
      unit: 'ms',
      value: meanwhile - before,
      target: { atMost: 20 },
      note: `${snapshots} snapshots were taken`,
    },
  ];
}

/** Starts the system and gives the lags of all commits of so many seconds; `prepare` runs before them. */
async function during(
  system: ReturnType<typeof replicatorAndReplica>,
  server: BenchServer,
  seconds: number,
  prepare: (running: RunningSystem, isOver: () => boolean) => Promise<void | (() => Promise<void>)>,
): Promise<number[]> {
  await using running = await system.start();
  await running.reached(await server.markWalEnd());
  let isOver = false;
  const end = await prepare(running, () => isOver);
  await using watcher = await startWatcher(
    new URL('../load/replica-watcher.ts', import.meta.url),
    system.file,
    SESSIONS,
  );
  const commits = await commitAtRate({ url: server.url, seconds, perSecond: PER_SECOND, sessions: SESSIONS });
  await running.reached(await server.markWalEnd());
  const lags = lagsMs(commits, await settle(watcher));
  isOver = true;
  await end?.();
  await running.stop();
  return lags;
}

async function store({ replicatorUrl }: RunningSystem): Promise<NonNullable<ReplicatorStatus['store']>> {
  const answer = await fetch(`${replicatorUrl!}/v1/status`);
  return ((await answer.json()) as ReplicatorStatus).store!;
}
