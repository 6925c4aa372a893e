import { join } from 'node:path';
import type { BenchCase, BenchContext, Sample } from '../bench-case.ts';
import { type BenchServer, startBenchServer } from '../bench-server.ts';
import { fanOutRun } from '../load/fan-out-run.ts';
import { profiling } from '../profile.ts';

/** CPU time is given for so many seconds of load, however long the load was. */
const CPU_SECONDS_OF = 60;

interface Step {
  readonly followers: number;
  readonly perSecond: number;
  readonly rowBytes: number;
  readonly relays?: number;
}

/** How cost grows with followers, then with the rate, then with the size of a row. */
function steps({ sizes }: BenchContext): Step[] {
  const { fanOutFollowers: counts, fanOutPerSecond: perSecond } = sizes;
  const most = counts.at(-1)!;
  return [
    ...counts.map((followers) => ({ followers, perSecond, rowBytes: 0 })),
    { followers: most, perSecond: perSecond / 10, rowBytes: 0 },
    { followers: most, perSecond: perSecond / 2, rowBytes: 0 },
    { followers: most, perSecond: perSecond / 10, rowBytes: 1000 },
    { followers: most, perSecond: perSecond / 10, rowBytes: 5000 },
    { followers: 10, perSecond, rowBytes: 0, relays: 1 },
    { followers: 10, perSecond, rowBytes: 0, relays: 2 },
  ];
}

export const fanOut: BenchCase = {
  name: 'fan-out',
  title:
    'fan-out: commit to received by followers that apply nothing, all in one process beside the replicator, the server and the load',
  async prepare(context) {
    const server = await startBenchServer(context.postgresMajor);
    return {
      run: (repetition) => runRepetition(context, server, repetition),
      [Symbol.asyncDispose]: () => server[Symbol.asyncDispose](),
    };
  },
};

async function runRepetition(
  context: BenchContext,
  server: BenchServer,
  repetition: number,
): Promise<Sample[]> {
  const samples: Sample[] = [];
  const seconds = context.sizes.fanOutSeconds;
  for (const [index, step] of steps(context).entries()) {
    const { followers, perSecond, rowBytes, relays = 0 } = step;
    const way = relays === 0 ? '' : relays === 1 ? ' through a relay' : ` through ${relays} relays`;
    const name = `${followers.toLocaleString('en-US')} followers, ${perSecond.toLocaleString('en-US')} tx/s${rowBytes === 0 ? '' : ` of ${rowBytes.toLocaleString('en-US')} B`}${way}`;
    context.say(name);
    const report = await fanOutRun({
      ...step,
      server,
      program: context.program,
      directory: join(context.directory, `fan-out-${repetition}-${index}`),
      seconds,
      environment: profiling(`replicator-${followers}`, context.profile),
    });
    if (report.problems.length > 0) throw new Error(`${name}: ${report.problems.join('; ')}`);
    const { replicator, lagMs, reads, deliveries } = report;
    const isAim = followers === 1000 && perSecond === 1000;
    samples.push(
      { metric: `${name}: p50`, unit: 'ms', value: lagMs.p50, usage: [replicator] },
      {
        metric: `${name}: p99`,
        unit: 'ms',
        value: lagMs.p99,
        ...(isAim ? { target: { atMost: 100 } } : {}),
        note: `${(deliveries / Math.max(1, reads)).toFixed(1)} transactions in each read of a follower`,
      },
      {
        metric: `${name}: CPU of the replicator in ${CPU_SECONDS_OF} s`,
        unit: 'CPU s',
        value: replicator.cpuShare * CPU_SECONDS_OF,
        ...(isAim ? { target: { atMost: CPU_SECONDS_OF } } : {}),
      },
    );
  }
  return samples;
}
