import { once } from 'node:events';
import { mkdirSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { formatLsn } from '../../src/lsn.ts';
import { ReplicaPositionReader } from '../../src/read/position-reader.ts';
import { nodeProgram } from '../helpers/processes.ts';
import type { Goal } from './bench-server.ts';
import { monotonicMs } from './monotonic-clock.ts';
import { type ProcessUsage, processUsage } from './process-usage.ts';
import { type Profile, profiling } from './profile.ts';

/** How often the replica's file is looked at: short beside what is measured, and cheap beside what works. */
const POLL_INTERVAL_MS = 5;

/** Longer than the slowest case on a slow machine; a run that hangs should still end. */
const DEADLINE_MS = 600_000;

/** Of what a process said, when it ended by itself. */
const SHOWN_STDERR_LENGTH = 8000;

/** A way of running Rivulet that can be started, stopped, and started again on the same files. */
export interface System {
  readonly name: string;
  /** Its replication slot. */
  readonly slot: string;
  /** The replica. */
  readonly file: string;
  start(): Promise<RunningSystem>;
}

export interface RunningSystem extends AsyncDisposable {
  /** Where its replicator listens, if it has one of its own. */
  readonly replicatorUrl: string | null;
  /** Milliseconds from the first process's start until the file was there and had got to the goal. */
  reached(goal: Goal): Promise<number>;
  usage(): ProcessUsage[];
  /** SIGTERM, and the end of all processes. Gives what they had used by then. */
  stop(): Promise<ProcessUsage[]>;
}

export interface SystemOptions {
  /** The `rivulet` command. */
  readonly program: string;
  readonly url: string;
  readonly directory: string;
  readonly slot: string;
  readonly profile: Profile | undefined;
  /** URL of an object store for the replicator; it takes one snapshot at its start. */
  readonly store?: string;
}

/** `rivulet replica --postgres`: everything in one process. */
export function oneProcess(options: SystemOptions): System {
  const { url, directory, slot } = options;
  const file = join(directory, 'replica.db');
  return {
    name: 'one process',
    slot,
    file,
    async start() {
      mkdirSync(directory, { recursive: true });
      const args = [
        'replica',
        '--postgres',
        url,
        '--slot',
        slot,
        '--file',
        file,
        '--data',
        join(directory, 'data'),
      ];
      return run(options, file, null, { 'replica (all in one)': args });
    },
  };
}

/** A replicator process and one replica process, started at the same moment. */
export function replicatorAndReplica(options: SystemOptions): System {
  const { url, directory, slot, store } = options;
  const file = join(directory, 'replica.db');
  return {
    name: 'replicator + replica',
    slot,
    file,
    async start() {
      mkdirSync(directory, { recursive: true });
      const address = `127.0.0.1:${await freePort()}`;
      return run(options, file, `http://${address}`, {
        replicator: [
          'replicator',
          '--postgres',
          url,
          '--slot',
          slot,
          '--data',
          join(directory, 'data'),
          '--listen',
          address,
          ...(store === undefined ? [] : ['--store', store, '--snapshot-interval', '24h']),
        ],
        replica: ['replica', '--replicator', `http://${address}`, '--file', file],
      });
    },
  };
}

function run(
  { program, profile }: SystemOptions,
  file: string,
  replicatorUrl: string | null,
  commandLines: Readonly<Record<string, readonly string[]>>,
): RunningSystem {
  const startedMs = monotonicMs();
  const processes = Object.entries(commandLines).map(([name, args]) => ({
    name,
    process: nodeProgram(program, [...args, '--log-level', 'warn'], profiling(name, profile)),
  }));
  let isStopping = false;
  const died = Promise.race(
    processes.map(async ({ name, process }) => {
      const code = await process.exited;
      if (!isStopping) throw new Error(`the ${name} process ended by itself with ${code}:\n${said()}`);
    }),
  );
  died.catch(() => undefined);

  const said = (): string =>
    processes.map(({ name, process }) => `${name}: ${process.stderr.slice(-SHOWN_STDERR_LENGTH)}`).join('\n');
  const usage = (): ProcessUsage[] =>
    processes.flatMap(({ name, process }) => processUsage(name, process.pid) ?? []);

  async function stop(): Promise<ProcessUsage[]> {
    isStopping = true;
    const used = usage();
    // The replica first: one whose replicator ends would begin to look for it.
    for (const { process } of processes.toReversed()) await process.kill('SIGTERM');
    return used;
  }

  async function reached({ lsn: position }: Goal): Promise<number> {
    const deadlineMs = monotonicMs() + DEADLINE_MS;
    let reader: ReplicaPositionReader | null = null;
    let last = 'there is no file yet';
    try {
      while (monotonicMs() < deadlineMs) {
        reader ??= tryToOpen(file);
        if (reader !== null) {
          const { lsn } = reader.read();
          if (lsn >= position) return monotonicMs() - startedMs;
          last = `it is at ${formatLsn(lsn)}`;
        }
        await Promise.race([delay(POLL_INTERVAL_MS), died]);
      }
    } finally {
      reader?.close();
    }
    throw new Error(`the replica did not reach ${formatLsn(position)}: ${last}\n${said()}`);
  }

  return {
    replicatorUrl,
    reached,
    usage,
    stop,
    async [Symbol.asyncDispose]() {
      isStopping = true;
      await Promise.all(processes.map(({ process }) => process[Symbol.asyncDispose]()));
    },
  };
}

function tryToOpen(file: string): ReplicaPositionReader | null {
  try {
    return new ReplicaPositionReader(file);
  } catch {
    return null;
  }
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const address = server.address();
  server.close();
  await once(server, 'close');
  if (address === null || typeof address === 'string') throw new Error('no TCP port was given');
  return address.port;
}
