import { join } from 'node:path';
import Database from 'better-sqlite3';
import type { BenchContext, PreparedCase, Sample, Target, Unit } from '../bench-case.ts';
import { type BenchServer, startBenchServer } from '../bench-server.ts';
import { measureDrains } from '../limits/drain.ts';
import { peers } from '../peer.ts';
import { usageSince } from '../process-usage.ts';
import { oneProcess, replicatorAndReplica, type System, type SystemOptions } from '../system.ts';

const PUBLICATION = 'rivulet';

interface Contender {
  readonly system: System;
  readonly target?: Target;
}

export interface BacklogOptions {
  readonly context: BenchContext;
  /** Makes what is there before the initial copy. */
  readonly prepare: (server: BenchServer) => Promise<void>;
  /** Writes the backlog of a repetition; what it gives back is how much there was of it. */
  readonly load: (server: BenchServer, repetition: number) => Promise<number>;
  readonly unit: Unit;
  readonly targets: { readonly oneProcess: Target; readonly replicatorAndReplica: Target };
  /** A query that gives the same single number on both sides once they are equal. */
  readonly checkSql: (repetition: number) => string;
}

/**
 * The system makes its initial copy and is stopped; a backlog is written; then it is read by those who throw it
 * away, and by the system, from the start of its processes until its file has all of it.
 */
export async function prepareBacklogCase(options: BacklogOptions): Promise<PreparedCase> {
  const { context } = options;
  const server = await startBenchServer(context.postgresMajor);
  try {
    await options.prepare(server);
    const { url } = server;
    const of = (name: string): SystemOptions & BenchContext => ({
      ...context,
      url,
      slot: `bench_${name}`,
      directory: join(context.directory, name),
    });
    const systems: Contender[] = [
      { system: oneProcess(of('one')), target: options.targets.oneProcess },
      { system: replicatorAndReplica(of('two')), target: options.targets.replicatorAndReplica },
      ...peers(of('peer')).map((system) => ({ system })),
    ];
    for (const { system } of systems) {
      context.say(`initial copy, ${system.name}`);
      await using running = await system.start();
      await running.reached(await server.markWalEnd());
      await running.stop();
    }
    return {
      run: (repetition) => runRepetition(options, server, systems, repetition),
      [Symbol.asyncDispose]: () => server[Symbol.asyncDispose](),
    };
  } catch (error) {
    await server[Symbol.asyncDispose]();
    throw error;
  }
}

async function runRepetition(
  options: BacklogOptions,
  server: BenchServer,
  systems: readonly Contender[],
  repetition: number,
): Promise<Sample[]> {
  const { context, unit } = options;
  context.say('writing the backlog');
  const amount = await options.load(server, repetition);
  const until = await server.markWalEnd();
  await server.sql.query('checkpoint');
  const rate = (ms: number): number => amount / (ms / 1000);

  context.say('raw drains');
  const drains = await measureDrains({
    server,
    slot: systems[0]!.system.slot,
    publication: PUBLICATION,
    until: until.lsn,
  });
  const limit = drains[0]!.metric;
  const samples: Sample[] = drains.map(({ metric, ms, usage }) => ({
    metric,
    unit,
    value: rate(ms),
    usage: [usage],
    ...(metric === limit ? {} : { limit }),
  }));
  for (const { system, target } of systems) {
    context.say(system.name);
    const before = [server.usage()];
    await using running = await system.start();
    const ms = await running.reached(until);
    const postgres = usageSince(before, [server.usage()]);
    const used = await running.stop();
    samples.push({
      metric: system.name,
      unit,
      value: rate(ms),
      limit,
      ...(target === undefined ? {} : { target }),
      usage: [...used, ...postgres],
    });
    await checkEqual(server, system.file, options.checkSql(repetition));
  }
  return samples;
}

/** Fast but wrong would be no result. */
async function checkEqual(server: BenchServer, file: string, sql: string): Promise<void> {
  const { rows } = await server.sql.query<{ value: string }>(`select (${sql})::text as value`);
  using db = disposable(new Database(file, { readonly: true }));
  const value = String(db.prepare(`select (${sql})`).pluck().safeIntegers().get());
  if (value !== rows[0]!.value)
    throw new Error(`${sql} is ${value} in the replica and ${rows[0]!.value} in Postgres`);
}

function disposable(db: Database.Database): Database.Database & Disposable {
  return Object.assign(db, { [Symbol.dispose]: () => void db.close() });
}
