import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { PostgresMajor } from '../bench/bench-case.ts';
import { startBenchServer } from '../bench/bench-server.ts';
import { type FanOutReport, fanOutRun } from '../bench/load/fan-out-run.ts';

const PROGRAM = fileURLToPath(new URL('../../src/cli/main.ts', import.meta.url));

/**
 * Many followers of one replicator at an even load: a twentieth of them stop reading in the first tenth of it, some
 * more are on a machine that stops then, and a tenth more come half way, from where the history begins.
 */
export async function manyFollowers(options: {
  readonly major: PostgresMajor;
  readonly followers: number;
  readonly perSecond: number;
  readonly seconds: number;
  readonly log?: (line: string) => void;
}): Promise<FanOutReport> {
  const { major, followers, perSecond, seconds, log } = options;
  const directory = mkdtempSync(join(tmpdir(), 'rivulet-test-'));
  try {
    await using server = await startBenchServer(major);
    const report = await fanOutRun({
      server,
      program: PROGRAM,
      directory,
      followers,
      perSecond,
      seconds,
      stalled: Math.ceil(followers / 20),
      dead: Math.ceil(followers / 100),
      late: Math.ceil(followers / 10),
      ...(log === undefined ? {} : { log }),
    });
    const problems = [...report.problems];
    const expected = followers - Math.ceil(followers / 20);
    if (report.whole < expected)
      problems.push(`${report.whole} followers have everything, of ${expected} that never stalled`);
    return { ...report, problems };
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}
