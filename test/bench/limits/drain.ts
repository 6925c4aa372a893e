import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readdirSync } from 'node:fs';
import { delimiter, join } from 'node:path';
import { formatLsn, type Lsn } from '../../../src/lsn.ts';
import { dropSlot } from '../../../src/source/slot.ts';
import type { BenchServer } from '../bench-server.ts';
import { monotonicMs } from '../monotonic-clock.ts';
import { type ProcessUsage, processUsage } from '../process-usage.ts';
import { runProgram } from '../program.ts';
import type { DrainOutput } from './drain-program.ts';

export interface Drain {
  /** What read the slot. */
  readonly metric: string;
  readonly ms: number;
  readonly usage: ProcessUsage;
}

export interface DrainOptions {
  readonly server: BenchServer;
  /** The slot that stands before the backlog; it stays as it is. */
  readonly slot: string;
  readonly publication: string;
  readonly until: Lsn;
}

/**
 * How fast the server gives out a backlog when nothing is done with it: to pg_recvlogical, where the machine has
 * it, and to our own client (without the start of its process). The first one is the limit.
 */
export async function measureDrains(options: DrainOptions): Promise<Drain[]> {
  const receiver = findReceiver();
  const drains: Drain[] = [];
  if (receiver !== null)
    drains.push(await withCopiedSlot(options, (copy) => drainByReceiver(options, copy, receiver)));
  drains.push(await withCopiedSlot(options, (copy) => drainByOurClient(options, copy)));
  return drains;
}

/** Reading a copy leaves the original where it is. https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-REPLICATION */
async function withCopiedSlot<T>(
  { server, slot }: DrainOptions,
  use: (copy: string) => Promise<T>,
): Promise<T> {
  const copy = `${slot}_copy`;
  await server.sql.query('select pg_copy_logical_replication_slot($1, $2)', [slot, copy]);
  try {
    return await use(copy);
  } finally {
    await dropSlot(server.sql, copy, true);
  }
}

async function drainByOurClient({ server, publication, until }: DrainOptions, slot: string): Promise<Drain> {
  const { workMs, usage } = await runProgram<DrainOutput>(
    'drain',
    new URL('./drain-program.ts', import.meta.url),
    {
      url: server.url,
      slot,
      publication,
      until: formatLsn(until),
    },
  );
  return { metric: 'raw drain, our client', ms: workMs, usage };
}

async function drainByReceiver(
  { server, publication, until }: DrainOptions,
  slot: string,
  receiver: string,
): Promise<Drain> {
  const { hostname, port, username, password, pathname } = new URL(server.url);
  const startedMs = monotonicMs();
  const child = spawn(
    receiver,
    [
      ...[
        '--host',
        hostname,
        '--port',
        port,
        '--username',
        username,
        '--dbname',
        pathname.slice(1),
        '--no-password',
      ],
      ...[
        '--slot',
        slot,
        '--start',
        '--no-loop',
        '--endpos',
        formatLsn(until),
        '--file',
        '/dev/null',
        '--fsync-interval',
        '0',
      ],
      ...[
        '--option',
        'proto_version=1',
        '--option',
        `publication_names=${publication}`,
        '--option',
        'messages=true',
      ],
    ],
    { stdio: ['ignore', 'ignore', 'pipe'], env: { ...process.env, PGPASSWORD: password } },
  );
  const end = (): unknown => child.kill('SIGKILL');
  process.once('exit', end);
  let stderr = '';
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    stderr += text;
  });
  // A process that has ended has no /proc entry to read its times from, so the last look before it counts.
  let usage: ProcessUsage = { name: 'pg_recvlogical', cpuSeconds: 0, peakRssBytes: null };
  const timer = setInterval(() => {
    usage = processUsage('pg_recvlogical', child.pid!) ?? usage;
  }, 20);
  const [code] = (await once(child, 'close')) as [number | null];
  const ms = monotonicMs() - startedMs;
  clearInterval(timer);
  process.off('exit', end);
  if (code !== 0) throw new Error(`pg_recvlogical ended with ${code}: ${stderr}`);
  return { metric: 'raw drain, pg_recvlogical', ms, usage };
}

/** Debian's /usr/bin/pg_recvlogical is a script that chooses a version, slowly: the program itself comes first. */
function findReceiver(): string | null {
  const debian = '/usr/lib/postgresql';
  const versions = existsSync(debian) ? readdirSync(debian).sort((a, b) => Number(b) - Number(a)) : [];
  const directories = [
    ...versions.map((version) => join(debian, version, 'bin')),
    ...(process.env.PATH ?? '').split(delimiter),
  ];
  for (const directory of directories) {
    const path = join(directory, 'pg_recvlogical');
    if (existsSync(path)) return path;
  }
  return null;
}
