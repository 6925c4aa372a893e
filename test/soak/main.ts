import { type ParseArgsOptionsConfig, parseArgs } from 'node:util';
import { checkPrograms } from '../generator/check.ts';
import { MAJORS, type Major } from '../helpers/postgres.ts';
import { killStorm } from './kill-storm.ts';
import { largeTransaction } from './large-transaction.ts';
import { largeValues } from './large-values.ts';
import { leftOutTables } from './left-out-tables.ts';
import { longReaders } from './long-readers.ts';
import { manyFollowers } from './many-followers.ts';
import { readYourWrites } from './read-your-writes.ts';
import { rewrittenTable } from './rewritten-table.ts';
import { stoppedReplica } from './stopped-replica.ts';
import { storeRun } from './store-run.ts';
import { tpcbRun } from './tpcb-run.ts';
import { verifyRun } from './verify-run.ts';

/** What a case measured, and what of it is wrong. */
interface Outcome {
  readonly facts: unknown;
  readonly problems: readonly string[];
}

interface SoakCase {
  readonly name: string;
  readonly run: (log: (line: string) => void) => Promise<Outcome>;
}

const LARGE_ROWS = 1_000_000;
const MEMORY_LIMIT_MIB = 300;
const MANY_FOLLOWERS_LAG_MS = 100;
/** What a busy machine may add to a median, and to a p99. */
const MEDIAN_NOISE_MS = 5;
const NOISE_MS = 50;

const OPTIONS = {
  only: { type: 'string', multiple: true },
  kills: { type: 'string', default: '100' },
  'stop-seconds': { type: 'string', default: '60' },
  'tpcb-seconds': { type: 'string', default: '180' },
  operations: { type: 'string', default: '1000000' },
  'large-rows': { type: 'string', default: '5000000' },
  followers: { type: 'string', default: '1000' },
  'reader-seconds': { type: 'string', default: '600' },
  'follow-seconds': { type: 'string', default: '60' },
  minutes: { type: 'string', default: '10' },
  seed: { type: 'string', default: String(Math.trunc(Math.random() * 2 ** 30)) },
  verbose: { type: 'boolean', default: false },
  help: { type: 'boolean', default: false },
} as const satisfies ParseArgsOptionsConfig;

function soakCases(size: {
  readonly kills: number;
  readonly stopMs: number;
  readonly tpcbMs: number;
  readonly operations: number;
  readonly largeRows: number;
  readonly followers: number;
  readonly followSeconds: number;
  readonly readerSeconds: number;
  readonly generatorMs: number;
  readonly seed: number;
}): SoakCase[] {
  const onBoth = (make: (major: Major) => SoakCase): SoakCase[] => MAJORS.toReversed().map(make);
  return [
    ...onBoth((major) => ({
      name: `kill-storm-${major}`,
      run: async (log) => {
        const { differences, applicationErrors, ...facts } = await killStorm({
          major,
          kills: size.kills,
          log,
        });
        return { facts, problems: [...differences, ...applicationErrors] };
      },
    })),
    ...onBoth((major) => ({
      name: `tpcb-${major}`,
      run: async (log) => {
        const { problems, ...facts } = await tpcbRun({ major, scale: 10, runMs: size.tpcbMs, log });
        return { facts, problems };
      },
    })),
    ...onBoth((major) => ({
      name: `verify-${major}`,
      run: async (log) => {
        const { problems, ...facts } = await verifyRun({ major, scale: 10, times: 10, log });
        for (const { peakMiB } of facts.runs) {
          if (peakMiB >= MEMORY_LIMIT_MIB) problems.push(`verify took ${peakMiB} MiB`);
        }
        return { facts, problems };
      },
    })),
    ...(
      [
        [18, 'file'],
        [15, 's3'],
      ] as const
    ).map(
      ([major, kind]): SoakCase => ({
        name: `store-${kind}-${major}`,
        run: async (log) => {
          const { problems, ...facts } = await storeRun({ major, kind, kills: size.kills, moments: 20, log });
          return { facts, problems };
        },
      }),
    ),
    ...onBoth((major) => ({
      name: `generator-${major}`,
      run: async (log) => {
        const { problems, ...facts } = await checkPrograms({
          major,
          seed: size.seed,
          limitMs: size.generatorMs,
          log,
        });
        return { facts, problems };
      },
    })),
    {
      name: 'read-your-writes',
      run: async (log) => {
        const { violations, examples, ...facts } = await readYourWrites({
          major: 18,
          operations: size.operations,
          log,
        });
        const problems = Object.entries(violations)
          .filter(([, count]) => count > 0)
          .map(([kind, count]) => `${count} violations of ${kind}`);
        return {
          facts,
          problems: [...problems, ...examples.map(({ kind, detail }) => `${kind}: ${detail}`)],
        };
      },
    },
    {
      name: 'many-followers',
      run: async (log) => {
        const { problems, ...facts } = await manyFollowers({
          major: 18,
          followers: size.followers,
          perSecond: 1000,
          seconds: size.followSeconds,
          log,
        });
        const { cpuShare, peakRssBytes } = facts.replicator;
        const peakMiB = Math.round((peakRssBytes ?? 0) / 2 ** 20);
        return {
          facts,
          problems: [
            ...problems,
            ...(facts.lagMs.p99 < MANY_FOLLOWERS_LAG_MS ? [] : [`lag p99 is ${facts.lagMs.p99} ms`]),
            ...(cpuShare < 1 ? [] : [`the replicator took ${cpuShare.toFixed(2)} of a core`]),
            ...(peakMiB < MEMORY_LIMIT_MIB ? [] : [`the replicator took ${peakMiB} MiB`]),
          ],
        };
      },
    },
    {
      name: 'left-out-tables',
      run: async () => {
        const { problems, ...facts } = await leftOutTables({ schemas: 20 });
        return { facts, problems };
      },
    },
    {
      name: 'long-readers',
      run: async (log) => {
        const { problems, verdict, worstSeconds, ...facts } = await longReaders({
          major: 18,
          seconds: size.readerSeconds,
          perSecond: 2000,
          holdSeconds: 45,
          log,
        });
        console.log('longest lag of the worst seconds, and what was there beside it:');
        for (const { atSecond, ms, toLogMs, beside } of worstSeconds)
          console.log(`  ${atSecond} s: ${ms} ms, ${toLogMs} of it up to the log; ${beside.join('; ')}`);
        console.log(verdict);
        return { facts, problems };
      },
    },
    {
      name: 'large-values',
      run: async (log) => {
        const { problems, ...facts } = await largeValues({ major: 18, log });
        return { facts, problems };
      },
    },
    {
      name: 'stopped-replica',
      run: async () => {
        const { differences, ...facts } = await stoppedReplica({ major: 18, stopMs: size.stopMs, rate: 300 });
        const problems = [...differences];
        const isDelayed = (before: number, stopped: number): boolean => stopped > 2 * before + 500;
        if (isDelayed(facts.before.commitMs.p99, facts.stopped.commitMs.p99))
          problems.push('the application waited for the stopped replica');
        if (isDelayed(facts.before.visibleMs.p99, facts.stopped.visibleMs.p99))
          problems.push('the other replica waited for the stopped one');
        return { facts, problems };
      },
    },
    ...onBoth((major) => ({
      name: `rewritten-table-${major}`,
      run: async () => {
        const { problems, ...facts } = await rewrittenTable({
          major,
          rows: LARGE_ROWS,
          beforeMs: 25_000,
          rate: 300,
        });
        const { before, rewriting, rereading } = facts;
        const late = (phase: string, ms: number, beforeMs: number, noiseMs: number): string[] =>
          ms <= 2 * beforeMs + noiseMs
            ? []
            : [`${phase}: behind the server's sending others' rows took ${ms} ms, and ${beforeMs} ms before`];
        return {
          facts,
          problems: [
            ...problems,
            // Of the few rows of two seconds a p99 is the worst one.
            ...late('rewriting', rewriting.behindSentMs.p50, before.behindSentMs.p50, MEDIAN_NOISE_MS),
            ...late('rereading', rereading.behindSentMs.p99, before.behindSentMs.p99, NOISE_MS),
            ...facts.typesSeen
              .filter((types) => types !== 'integer' && types !== 'text')
              .map((types) => `the table was seen half converted: ${types}`),
          ],
        };
      },
    })),
    {
      name: 'large-transaction',
      run: async () => {
        const rows = size.largeRows;
        const report = await largeTransaction({ major: 18, rows });
        const problems = report.countsSeen
          .filter((count) => count !== 0 && count !== rows)
          .map((count) => `a reader saw ${count} rows of ${rows}`);
        for (const [process, peakMiB] of Object.entries(report.peakMiB)) {
          if (peakMiB >= MEMORY_LIMIT_MIB) problems.push(`the ${process} took ${peakMiB} MiB`);
        }
        for (const each of [report.replica, report.newReplica]) {
          if (JSON.stringify(each) !== JSON.stringify(report.postgres))
            problems.push(`expected ${JSON.stringify(report.postgres)}, found ${JSON.stringify(each)}`);
        }
        const { peakMiB, reads, visibleMs, lag, spilledBytes } = report;
        const [before, after] = [lag.before.visibleMs.p50, lag.after.visibleMs.p50];
        if (after > 2 * before + 5)
          problems.push(`another table's rows took ${before} ms before, and ${after} ms after`);
        if (spilledBytes > 0) problems.push(`the server kept ${spilledBytes} bytes on its own disk`);
        return {
          facts: { peakMiB, reads, visibleMs, lag, spilledBytes },
          problems,
        };
      },
    },
  ];
}

async function main(): Promise<number> {
  const { values } = parseArgs({ options: OPTIONS });
  const cases = soakCases({
    kills: Number(values.kills),
    stopMs: Number(values['stop-seconds']) * 1000,
    tpcbMs: Number(values['tpcb-seconds']) * 1000,
    operations: Number(values.operations),
    largeRows: Number(values['large-rows']),
    followers: Number(values.followers),
    followSeconds: Number(values['follow-seconds']),
    readerSeconds: Number(values['reader-seconds']),
    generatorMs: Number(values.minutes) * 60_000,
    seed: Number(values.seed),
  });
  if (values.help) {
    console.log(
      'npm run soak -- [--only NAME]… [--kills N] [--stop-seconds N] [--tpcb-seconds N] [--operations N] [--followers N] [--follow-seconds N] [--reader-seconds N] [--large-rows N] [--minutes N] [--seed N] [--verbose]',
    );
    console.log(`names: ${cases.map(({ name }) => name).join(', ')}; the beginning of one is enough`);
    return 0;
  }
  const chosen = cases.filter(({ name }) => values.only?.some((only) => name.startsWith(only)) ?? true);
  if (chosen.length === 0) {
    console.error(
      `nothing is called ${values.only?.join(' or ')}; there are: ${cases.map(({ name }) => name).join(', ')}`,
    );
    return 2;
  }
  let failed = 0;
  for (const { name, run } of chosen) {
    const startedMs = performance.now();
    const log = (line: string): void => {
      if (values.verbose) console.log(`${new Date().toISOString()} ${name}: ${line}`);
    };
    const { facts, problems } = await run(log).catch(
      (error: unknown): Outcome => ({ facts: {}, problems: [(error as Error).stack ?? String(error)] }),
    );
    const seconds = Math.round((performance.now() - startedMs) / 1000);
    console.log(
      `${problems.length === 0 ? 'ok    ' : 'FAILED'} ${name} (${seconds} s) ${JSON.stringify(facts)}`,
    );
    for (const problem of problems) console.log(`       ${problem}`);
    if (problems.length > 0) failed++;
  }
  console.log(`${chosen.length - failed} of ${chosen.length} passed`);
  return failed === 0 ? 0 : 1;
}

process.exitCode = await main();
