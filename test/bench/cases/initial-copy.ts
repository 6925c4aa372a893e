import { rmSync } from 'node:fs';
import { dirname, join } from 'node:path';
import Database from 'better-sqlite3';
import { dropSlot } from '../../../src/source/slot.ts';
import { createTpcb } from '../../helpers/tpcb.ts';
import type { BenchCase, BenchContext, PreparedCase, Sample, Target } from '../bench-case.ts';
import { type BenchServer, startBenchServer } from '../bench-server.ts';
import type { CopyOutput } from '../limits/copy-program.ts';
import type { InsertOutput } from '../limits/insert-program.ts';
import { peers } from '../peer.ts';
import { usageSince } from '../process-usage.ts';
import { runProgram } from '../program.ts';
import { NORMAL_SIZES } from '../sizes.ts';
import { oneProcess, replicatorAndReplica, type System } from '../system.ts';

const LIMIT = 'binary COPY to nowhere';
const COUNT_SQL = 'select count(*) from pgbench_accounts';

export const initialCopy = copyCase('initial-copy', 'copyRows');
export const largeInitialCopy = copyCase('initial-copy-large', 'largeCopyRows');

function copyCase(name: string, size: 'copyRows' | 'largeCopyRows'): BenchCase {
  return {
    name,
    title: `initial copy of ${NORMAL_SIZES[size] / 1e6}M rows of pgbench_accounts, process start to all rows readable`,
    prepare: (context) => prepare(context, context.sizes[size]),
  };
}

async function prepare(context: BenchContext, rows: number): Promise<PreparedCase> {
  const server = await startBenchServer(context.postgresMajor);
  try {
    await createTpcb(server.url, 1, rows);
    // Settled pages and hint bits: otherwise the first reader of the table pays for all that follow.
    await server.sql.query('vacuum freeze');
    await server.sql.query('checkpoint');
  } catch (error) {
    await server[Symbol.asyncDispose]();
    throw error;
  }
  return {
    run: () => runRepetition(context, server, rows),
    [Symbol.asyncDispose]: () => server[Symbol.asyncDispose](),
  };
}

async function runRepetition(context: BenchContext, server: BenchServer, rows: number): Promise<Sample[]> {
  const rate = (ms: number): number => rows / (ms / 1000);
  context.say('COPY to nowhere, raw inserts');
  const binary = await runCopy(server, 'copy public.pgbench_accounts to stdout (format binary)');
  const text = await runCopy(server, 'copy public.pgbench_accounts to stdout');
  const file = join(context.directory, 'raw-inserts.db');
  const inserts = await runProgram<InsertOutput>(
    'raw inserts',
    new URL('../limits/insert-program.ts', import.meta.url),
    { url: server.url, rows, file },
  );
  const samples: Sample[] = [
    { metric: LIMIT, unit: 'rows/s', value: rate(binary.output.ms), usage: [binary.usage] },
    {
      metric: 'text COPY to nowhere',
      unit: 'rows/s',
      value: rate(text.output.ms),
      limit: LIMIT,
      usage: [text.usage],
    },
    {
      metric: 'raw better-sqlite3 inserts',
      unit: 'rows/s',
      value: rate(inserts.output.ms),
      limit: LIMIT,
      usage: [inserts.usage],
    },
  ];
  const directory = join(context.directory, 'copy');
  const options = { ...context, url: server.url, slot: 'bench_copy', directory };
  const systems: readonly [System, Target | undefined][] = [
    [oneProcess(options), { ofLimit: 0.3 }],
    [replicatorAndReplica(options), undefined],
    ...peers(options).map((peer): [System, undefined] => [peer, undefined]),
  ];
  for (const [system, target] of systems) {
    context.say(system.name);
    const before = [server.usage()];
    await using running = await system.start();
    const ms = await running.reached({ lsn: 0n, content: { sql: COUNT_SQL, atLeast: rows } });
    const postgres = usageSince(before, [server.usage()]);
    checkRows(system.file, rows);
    const used = await running.stop();
    samples.push({
      metric: system.name,
      unit: 'rows/s',
      value: rate(ms),
      limit: LIMIT,
      usage: [...used, ...postgres],
      ...(target === undefined ? {} : { target }),
    });
    await dropSlot(server.sql, system.slot, true);
    rmSync(dirname(system.file), { recursive: true });
  }
  return samples;
}

async function runCopy(server: BenchServer, sql: string): ReturnType<typeof runProgram<CopyOutput>> {
  return runProgram<CopyOutput>('copy', new URL('../limits/copy-program.ts', import.meta.url), {
    url: server.url,
    sql,
  });
}

function checkRows(file: string, expected: number): void {
  const db = new Database(file, { readonly: true });
  const rows = db.prepare(COUNT_SQL).pluck().get();
  db.close();
  if (rows !== expected) throw new Error(`the replica has ${rows} rows where Postgres has ${expected}`);
}
