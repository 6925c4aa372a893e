import { join } from 'node:path';
import Database from 'better-sqlite3';
import pg from 'pg';
import { openReplica } from '../../../src/replica/replica.ts';
import { createTpcb } from '../../helpers/tpcb.ts';
import type { BenchCase, BenchContext, Sample, Target } from '../bench-case.ts';
import { type BenchServer, startBenchServer } from '../bench-server.ts';
import { percentile } from '../statistics.ts';
import { type RunningSystem, replicatorAndReplica } from '../system.ts';

/** Reads before the clock runs: prepared plans, warm caches, compiled code. */
const WARM_UP_SHARE = 0.1;
/** Postgres is slower by so much that fewer reads give as steady a percentile. */
const POSTGRES_SHARE = 0.2;

export const pointReads: BenchCase = {
  name: 'point-reads',
  title: 'one row by its key, in process through openReplica, and from Postgres over loopback',
  async prepare(context) {
    const { scale, accountsPerBranch } = context.sizes;
    const server = await startBenchServer(context.postgresMajor);
    try {
      await createTpcb(server.url, scale, accountsPerBranch);
      const system = replicatorAndReplica({
        program: context.program,
        url: server.url,
        slot: 'bench_reads',
        profile: undefined,
        directory: join(context.directory, 'reads'),
      });
      const running = await system.start();
      await running.reached(await server.markWalEnd());
      return {
        run: (repetition) => runRepetition(context, server, running, repetition),
        async [Symbol.asyncDispose]() {
          await running.stop();
          await server[Symbol.asyncDispose]();
        },
      };
    } catch (error) {
      await server[Symbol.asyncDispose]();
      throw error;
    }
  },
};

async function runRepetition(
  context: BenchContext,
  server: BenchServer,
  running: RunningSystem,
  repetition: number,
): Promise<Sample[]> {
  const { scale, accountsPerBranch, pointReads: reads } = context.sizes;
  const keys = Array.from({ length: reads }, () => 1 + Math.floor(Math.random() * scale * accountsPerBranch));
  const file = join(context.directory, `reads-${repetition}.db`);
  const samples: Sample[] = [];

  context.say('Postgres');
  const client = new pg.Client({ connectionString: server.url });
  await client.connect();
  try {
    const query = { name: 'read', text: 'select * from pgbench_accounts where aid = $1' };
    const times: number[] = [];
    for (const key of keys.slice(0, reads * POSTGRES_SHARE)) {
      const started = performance.now();
      await client.query({ ...query, values: [key] });
      times.push(performance.now() - started);
    }
    samples.push(...percentiles('Postgres, prepared, loopback', times));
  } finally {
    await client.end();
  }

  context.say('openReplica');
  await using replica = await openReplica({ file, replicator: running.replicatorUrl! });
  const raw = new Database(file, { readonly: true });
  try {
    const limit = 'raw better-sqlite3';
    samples.push(...percentiles(limit, readAll(raw, keys)));
    samples.push(
      ...percentiles('openReplica', readAll(replica.db, keys), limit, {
        p50: { atMost: 4 },
        p99: { atMost: 6 },
      }),
    );
  } finally {
    raw.close();
  }
  return samples;
}

function readAll(db: Database.Database, keys: readonly number[]): number[] {
  const read = db.prepare('select * from pgbench_accounts where aid = ?');
  return keys.map((key) => {
    const started = performance.now();
    read.get(key);
    return performance.now() - started;
  });
}

function percentiles(
  metric: string,
  timesMs: readonly number[],
  limit?: string,
  targets?: { readonly p50: Target; readonly p99: Target },
): Sample[] {
  const warm = timesMs.slice(timesMs.length * WARM_UP_SHARE);
  return ([50, 99] as const).map((share) => ({
    metric: `${metric}, p${share}`,
    unit: 'µs',
    value: percentile(warm, share / 100) * 1000,
    ...(limit === undefined ? {} : { limit: `${limit}, p${share}` }),
    ...(targets === undefined ? {} : { target: targets[`p${share}`] }),
  }));
}
