import fc from 'fast-check';
import type { Major } from '../helpers/postgres.ts';
import { LiveSystem } from './live-system.ts';
import { programs } from './program.ts';

export interface CheckOptions {
  readonly major: Major;
  /** Of the first program; the next ones have the next numbers. */
  readonly seed: number;
  readonly limitMs: number;
  readonly log?: (line: string) => void;
}

export interface CheckReport {
  readonly seed: number;
  readonly programs: number;
  /** Empty if nothing was found; else the smallest program that shows it, and its seed. */
  readonly problems: readonly string[];
}

/** Once something is found, this long is spent on making it smaller. */
const SHRINK_MS = 240_000;

/** Runs random programs against a live system, one at least, until `limitMs` are over or something is found. */
export async function checkPrograms(options: CheckOptions): Promise<CheckReport> {
  const { major, seed, limitMs, log = () => undefined } = options;
  await using system = new LiveSystem(major);
  const startedMs = performance.now();
  let problems: readonly string[] = [];
  const property = fc.asyncProperty(programs, async (program) => {
    const found = await system.run(program);
    log(`${program.length} statements: ${found[0] ?? 'equal'}`);
    if (found.length === 0) return;
    problems = found;
    throw new Error(found[0]);
  });
  let count = 0;
  do {
    const own = seed + count++;
    log(`Postgres ${major}, seed ${own}`);
    const result = await fc.check(property, {
      seed: own,
      numRuns: 1,
      unbiased: true,
      interruptAfterTimeLimit: SHRINK_MS,
    });
    if (result.counterexample !== null) {
      const statements = result.counterexample[0].map(({ session, sql }) => `${session}: ${sql};`);
      return {
        seed,
        programs: count,
        problems: [`seed ${own}, Postgres ${major}`, ...statements, ...problems],
      };
    }
  } while (performance.now() - startedMs < limitMs);
  return { seed, programs: count, problems: [] };
}
