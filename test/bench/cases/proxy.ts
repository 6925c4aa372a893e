import { Agent, request } from 'node:http';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { DEFAULT_TOKEN_COOKIE } from '../../../src/read/middleware/token-headers.ts';
import { nodeProgram, type RivuletProcess } from '../../helpers/processes.ts';
import { createTpcb } from '../../helpers/tpcb.ts';
import type { BenchCase, BenchContext, Sample } from '../bench-case.ts';
import { startBenchServer } from '../bench-server.ts';
import { processUsage } from '../process-usage.ts';
import { percentile } from '../statistics.ts';
import { replicatorAndReplica } from '../system.ts';

const APP = fileURLToPath(new URL('../limits/app-program.ts', import.meta.url));
const WARM_UP_SHARE = 0.2;
/** Requests at once, for requests per second. */
const CONNECTIONS = 32;

export const proxy: BenchCase = {
  name: 'proxy',
  title:
    'one request to the quickest app there is (node:http), directly and through rivulet proxy beside a replica',
  async prepare(context) {
    const server = await startBenchServer(context.postgresMajor);
    const stack = new AsyncDisposableStack();
    stack.use(server);
    try {
      await createTpcb(server.url, 1, 100);
      const system = replicatorAndReplica({
        program: context.program,
        url: server.url,
        slot: 'bench_proxy',
        directory: join(context.directory, 'proxy'),
        profile: undefined,
      });
      const running = stack.use(await system.start());
      await running.reached(await server.markWalEnd());
      const app = stack.use(nodeProgram(APP, []));
      const direct = await app.ready;
      const args = ['proxy', '--target', direct, '--listen', '0', '--file', system.file];
      const proxied = stack.use(nodeProgram(context.program, args, { RIVULET_POSTGRES: server.url }));
      const url = await proxied.ready;
      return {
        run: () => runRepetition(context, { direct, url, proxied }),
        [Symbol.asyncDispose]: () => stack.disposeAsync(),
      };
    } catch (error) {
      await stack.disposeAsync();
      throw error;
    }
  },
};

interface Parts {
  readonly direct: string;
  readonly url: string;
  readonly proxied: RivuletProcess;
}

async function runRepetition(context: BenchContext, { direct, url, proxied }: Parts): Promise<Sample[]> {
  const { requests } = context.sizes;
  const samples: Sample[] = [];
  const written = await load(url, { method: 'POST', requests: 1, connections: 1 });
  const cookie = `${DEFAULT_TOKEN_COOKIE}=${written.token}`;
  const cases = [
    { name: 'directly', to: direct, method: 'GET' },
    { name: 'through the proxy, a read that carries a token', to: url, method: 'GET', cookie },
    { name: 'through the proxy, a write that gets a token from Postgres', to: url, method: 'POST' },
  ];
  for (const { name, to, method, ...rest } of cases) {
    context.say(name);
    const isLimit = to === direct;
    const one = await load(to, { method, requests, connections: 1, ...rest });
    for (const share of [50, 99]) {
      samples.push({
        metric: `${name}, p${share}`,
        value: percentile(one.timesMs, share / 100) * 1000,
        unit: 'µs',
        ...(isLimit ? {} : { limit: `directly, p${share}` }),
      });
    }
    const before = processUsage('proxy', proxied.pid);
    const many = await load(to, { method, requests: requests * 2, connections: CONNECTIONS, ...rest });
    const after = processUsage('proxy', proxied.pid);
    samples.push({
      metric: `${name}, ${CONNECTIONS} at a time`,
      value: many.perSecond,
      unit: 'requests/s',
      ...(isLimit ? {} : { limit: `directly, ${CONNECTIONS} at a time` }),
      ...(isLimit || before === null || after === null
        ? {}
        : {
            note: `${Math.round(((after.cpuSeconds - before.cpuSeconds) * 1e6) / (requests * 2))} µs of CPU each`,
          }),
    });
  }
  return samples;
}

interface Load {
  readonly timesMs: readonly number[];
  readonly perSecond: number;
  /** Of the last answer. */
  readonly token: string;
}

/** So many requests, one after the other on each connection. */
async function load(
  url: string,
  options: {
    readonly method: string;
    readonly requests: number;
    readonly connections: number;
    readonly cookie?: string;
  },
): Promise<Load> {
  const { method, requests, connections, cookie } = options;
  const agent = new Agent({ keepAlive: true, maxSockets: connections });
  const timesMs: number[] = [];
  let token = '';
  const send = (): Promise<void> =>
    new Promise((resolve, reject) => {
      const headers = cookie === undefined ? {} : { cookie };
      const outgoing = request(url, { method, agent, headers }, (response) => {
        token = String(response.headers['rivulet-token'] ?? '');
        if (response.statusCode !== 200) reject(new Error(`status ${response.statusCode}`));
        response.resume().on('end', resolve).on('error', reject);
      });
      outgoing.on('error', reject).end();
    });
  let sent = 0;
  const startedMs = performance.now();
  await Promise.all(
    Array.from({ length: connections }, async () => {
      while (sent++ < requests) {
        const sentMs = performance.now();
        await send();
        timesMs.push(performance.now() - sentMs);
      }
    }),
  );
  const perSecond = (requests * 1000) / (performance.now() - startedMs);
  agent.destroy();
  return { timesMs: timesMs.slice(timesMs.length * WARM_UP_SHARE), perSecond, token };
}
