import { readFileSync } from 'node:fs';
import type { VerifyReport } from '../../src/verify/verifier.ts';
import { TestCluster } from '../helpers/cluster.ts';
import { plant } from '../helpers/plant.ts';
import type { Major } from '../helpers/postgres.ts';
import { rivulet } from '../helpers/processes.ts';
import { createTpcb, startTpcbLoad } from '../helpers/tpcb.ts';

export interface VerifyProcess {
  readonly code: number | string;
  readonly report: VerifyReport;
  readonly peakMiB: number;
}

export interface VerifyRunReport {
  readonly rows: number;
  readonly runs: readonly {
    readonly rowsPerSecond: number;
    readonly seconds: number;
    readonly peakMiB: number;
  }[];
  readonly committed: number;
  readonly problems: string[];
}

/** Under TPC-B load: an honest file is equal each time; one changed byte in a million rows is named, and mended. */
export async function verifyRun(options: {
  readonly major: Major;
  readonly scale: number;
  readonly times: number;
  readonly rate?: number;
  readonly log?: (line: string) => void;
}): Promise<VerifyRunReport> {
  const { major, scale, times, rate = 300, log = () => undefined } = options;
  await using cluster = await TestCluster.start({ major });
  const { url } = cluster.postgres;
  await createTpcb(url, scale);
  await cluster.startReplicator();
  await cluster.startReplica('one');
  await cluster.caughtUp(300_000);
  await using load = startTpcbLoad({ url, scale, clients: 2, rate });
  const problems: string[] = [];
  const runs: VerifyProcess[] = [];
  const expectRun = async (code: number, args: readonly string[] = []): Promise<VerifyReport> => {
    const run = await verify(cluster, args);
    runs.push(run);
    log(`exit ${run.code}, ${run.report.rows} rows in ${run.report.elapsedMs} ms, ${run.peakMiB} MiB`);
    if (run.code !== code) problems.push(`exit ${run.code}: ${JSON.stringify(run.report.tables)}`);
    return run.report;
  };
  for (let time = 0; time < times; time++) await expectRun(0);
  const aid = Math.round(scale * 100_000 * 0.567);
  plant(cluster.file('one'), [
    `update pgbench_accounts set filler = substr(filler, 1, 41) || 'x' || substr(filler, 43) where aid = ${aid}`,
  ]);
  const { tables } = await expectRun(4);
  const wrong = tables.filter(({ verdict }) => verdict !== 'equal');
  const [difference] = wrong[0]?.differences ?? [];
  if (wrong.length !== 1 || wrong[0]!.different !== 1 || difference?.key.aid !== `${aid}`)
    problems.push(`the planted byte in ${aid} was not named: ${JSON.stringify(wrong)}`);
  log(JSON.stringify(difference));
  await expectRun(0, ['--repair']);
  await expectRun(0);
  await load.stop();
  problems.push(...load.errors, ...(await cluster.differences()));
  return {
    rows: runs[0]!.report.rows,
    runs: runs.map(({ report, peakMiB }) => ({
      rowsPerSecond: Math.round((report.rows / report.elapsedMs) * 1000),
      seconds: Math.round(report.elapsedMs / 100) / 10,
      peakMiB,
    })),
    committed: load.committed,
    problems,
  };
}

/** `rivulet verify` of the replica `one`, in a process of its own. */
export async function verify(cluster: TestCluster, args: readonly string[] = []): Promise<VerifyProcess> {
  await using run = rivulet([
    ...['verify', '--postgres', cluster.postgres.url, '--file', cluster.file('one'), '--json'],
    ...args,
  ]);
  let peakMiB = 0;
  const timer = setInterval(() => {
    peakMiB = Math.max(peakMiB, peakOf(run.pid));
  }, 50);
  const code = await run.exited;
  clearInterval(timer);
  if (run.stdout === '') throw new Error(`verify ended with ${code}: ${run.stderr}`);
  return { code, report: JSON.parse(run.stdout) as VerifyReport, peakMiB };
}

function peakOf(pid: number): number {
  try {
    const match = /^VmHWM:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'));
    return Math.round(Number(match?.[1] ?? 0) / 1024);
  } catch {
    return 0;
  }
}
