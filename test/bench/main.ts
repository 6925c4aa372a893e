import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { BenchCase, BenchContext, Sample } from './bench-case.ts';
import { buildPackage } from './built-package.ts';
import { bootstrap } from './cases/bootstrap.ts';
import { catchUp } from './cases/catch-up.ts';
import { fanOut } from './cases/fan-out.ts';
import { initialCopy, largeInitialCopy } from './cases/initial-copy.ts';
import { lag } from './cases/lag.ts';
import { largeTransaction } from './cases/large-transaction.ts';
import { pointReads } from './cases/point-reads.ts';
import { proxy } from './cases/proxy.ts';
import { readYourWrites } from './cases/read-your-writes.ts';
import { snapshotAgain } from './cases/snapshot-again.ts';
import { snapshotUnderLoad } from './cases/snapshot-under-load.ts';
import { type BenchOptions, parseOptions, USAGE } from './options.ts';
import { summariseProfiles } from './profile-summary.ts';
import { markdownReport, surroundings, textReport } from './report.ts';
import { NORMAL_SIZES, SHORT_SIZES } from './sizes.ts';
import { type CaseSummary, summarise } from './summary.ts';

const CASES: readonly BenchCase[] = [
  catchUp,
  largeTransaction,
  initialCopy,
  largeInitialCopy,
  lag,
  fanOut,
  readYourWrites,
  pointReads,
  proxy,
  bootstrap,
  snapshotAgain,
  snapshotUnderLoad,
];

const EXIT_USAGE = 2;

async function main(options: BenchOptions): Promise<void> {
  const where = surroundings(options);
  const directory = mkdtempSync(join(tmpdir(), 'rivulet-bench-'));
  const remove = (): void => rmSync(directory, { recursive: true, force: true });
  process.once('exit', remove);
  try {
    const chosen = CASES.filter(({ name }) => options.cases.length === 0 || options.cases.includes(name));
    const program = buildPackage(join(directory, 'package'));
    const cases: CaseSummary[] = [];
    for (const each of chosen) cases.push(await runCase(each, options, { program, parent: directory }));
    if (options.output === 'json') console.log(JSON.stringify({ where, cases }, null, 2));
    else console.log(options.output === 'markdown' ? markdownReport(cases, where) : textReport(cases, where));
    if (options.profile !== undefined) console.error(summariseProfiles(options.profile));
  } finally {
    process.off('exit', remove);
    remove();
  }
}

async function runCase(
  benchCase: BenchCase,
  options: BenchOptions,
  where: { readonly program: string; readonly parent: string },
): Promise<CaseSummary> {
  const { name, title } = benchCase;
  const directory = join(where.parent, name);
  mkdirSync(directory);
  const context: BenchContext = {
    sizes: options.isShort ? SHORT_SIZES : NORMAL_SIZES,
    postgresMajor: options.postgresMajor,
    program: where.program,
    directory,
    peerScripts: options.peerScripts,
    profile: options.profile,
    // Results go to stdout alone, so that they can be redirected.
    say: (text) => console.error(`${name}: ${text}`),
  };
  context.say('preparing');
  const repetitions: Sample[][] = [];
  {
    await using prepared = await benchCase.prepare(context);
    for (let repetition = 0; repetition < options.runs; repetition++) {
      context.say(`repetition ${repetition + 1} of ${options.runs}`);
      repetitions.push(await prepared.run(repetition));
    }
  }
  rmSync(directory, { recursive: true, force: true });
  return { name, title, rows: summarise(repetitions) };
}

function readOptions(): BenchOptions {
  try {
    return parseOptions(
      process.argv.slice(2),
      CASES.map(({ name }) => name),
    );
  } catch (error) {
    console.error(
      `${(error as Error).message}\n\n${USAGE}\n  cases: ${CASES.map(({ name }) => name).join(', ')}`,
    );
    process.exit(EXIT_USAGE);
  }
}

// An interrupted run cleans up as well: the exit listeners of server, processes and directory do it.
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(1));

await main(readOptions());
