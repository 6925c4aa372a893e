import { readFileSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { TestCluster } from '../helpers/cluster.ts';
import type { Major } from '../helpers/postgres.ts';
import { createTpcb, startTpcbLoad } from '../helpers/tpcb.ts';

export interface TpcbRunReport {
  readonly committed: number;
  readonly transactionsPerSecond: number;
  /** From the end of the load until every replica had everything. */
  readonly catchUpMs: number;
  /** Lag in ms at the end of the load, by replica, as the replicator knows it. */
  readonly lagMs: Readonly<Record<string, unknown>>;
  /** Memory in use by each process every tenth of the run, MiB: it must not climb. */
  readonly residentMiB: Readonly<Record<string, readonly number[]>>;
  readonly problems: readonly string[];
}

/** TPC-B as fast as it goes, before, during and after the initial copy, with three replicas. */
export async function tpcbRun(options: {
  readonly major: Major;
  readonly scale: number;
  readonly runMs: number;
  readonly log?: (line: string) => void;
}): Promise<TpcbRunReport> {
  const { major, scale, runMs, log = () => undefined } = options;
  await using cluster = await TestCluster.start({ major });
  const { url } = cluster.postgres;
  await createTpcb(url, scale);
  await using load = startTpcbLoad({ url, scale, clients: 4 });
  await cluster.startReplicator();
  for (const name of ['one', 'two', 'three']) await cluster.startReplica(name);
  const processes = { replicator: cluster.replicator!, ...Object.fromEntries(cluster.replicas) };
  const residentMiB = Object.fromEntries(Object.keys(processes).map((name) => [name, [] as number[]]));
  const [committedBefore, startedMs] = [load.committed, performance.now()];
  for (let tenth = 0; tenth < 10; tenth++) {
    await delay(runMs / 10);
    for (const [name, { pid }] of Object.entries(processes)) residentMiB[name]!.push(resident(pid));
    log(`${load.committed} transactions`);
  }
  const seconds = (performance.now() - startedMs) / 1000;
  const committed = load.committed - committedBefore;
  const status = (await (await fetch(`${cluster.replicatorUrl}/v1/status`)).json()) as {
    followers: { name: string; lagMs: unknown }[];
  };
  await load.stop();
  const stoppedMs = performance.now();
  await cluster.caughtUp(300_000);
  const catchUpMs = Math.round(performance.now() - stoppedMs);
  return {
    committed: load.committed,
    transactionsPerSecond: Math.round(committed / seconds),
    catchUpMs,
    lagMs: Object.fromEntries(status.followers.map(({ name, lagMs }) => [name, lagMs])),
    residentMiB,
    problems: [...load.errors, ...(await cluster.differences())],
  };
}

function resident(pid: number): number {
  const match = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'));
  return Math.round(Number(match?.[1] ?? 0) / 1024);
}
