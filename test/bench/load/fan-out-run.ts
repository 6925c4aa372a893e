import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { parseLsn } from '../../../src/lsn.ts';
import { nodeProgram } from '../../helpers/processes.ts';
import { waitUntil } from '../../helpers/wait-until.ts';
import type { BenchServer } from '../bench-server.ts';
import { type ProcessUsage, processUsage, usageSince } from '../process-usage.ts';
import { Crowd, type CrowdReport } from './crowd.ts';
import { commitAtRate, createPacedTables } from './paced-commits.ts';

const SESSIONS = 8;

export interface FanOutOptions {
  readonly server: BenchServer;
  /** The `rivulet` command. */
  readonly program: string;
  readonly directory: string;
  readonly followers: number;
  readonly perSecond: number;
  readonly seconds: number;
  /** Bytes of text in each row that is inserted. */
  readonly rowBytes?: number;
  /** Of the followers: so many stop reading their sockets in the first tenth of the load. */
  readonly stalled?: number;
  /** Beside the followers: so many are on a machine that stops, and so many begin where the history does, half way. */
  readonly dead?: number;
  readonly late?: number;
  /** So many relays, one behind the other, between the replicator and everybody. */
  readonly relays?: number;
  /** Of the replicator. */
  readonly environment?: Readonly<Record<string, string>>;
  readonly log?: (line: string) => void;
}

export interface FanOutReport extends CrowdReport {
  readonly committed: number;
  readonly perSecond: number;
  /** During the load. */
  readonly replicator: ProcessUsage & { readonly cpuShare: number };
  /** What the replicator called those that read nothing, at the end of the load. */
  readonly statesOfStalled: Readonly<Record<string, number>>;
  readonly statesOfDead: Readonly<Record<string, number>>;
}

interface Status {
  readonly epoch: string;
  readonly position: string;
  readonly followers: readonly { readonly id: string; readonly state: string }[];
}

/** One replicator, a crowd that follows it, and an even load. */
export async function fanOutRun(options: FanOutOptions): Promise<FanOutReport> {
  const { server, program, directory, followers, perSecond, seconds } = options;
  const { stalled = 0, dead = 0, late = 0, relays = 0, rowBytes = 0, log = () => undefined } = options;
  mkdirSync(directory, { recursive: true });
  const slot = `fan_out_${followers}_${perSecond}_${rowBytes}`;
  await server.sql.query('drop table if exists bench_session, bench_event');
  await createPacedTables(server, SESSIONS);
  await using replicator = nodeProgram(
    program,
    [
      'replicator',
      '--postgres',
      server.url,
      '--slot',
      slot,
      '--data',
      join(directory, 'data'),
      '--listen',
      '127.0.0.1:0',
      '--log-level',
      'warn',
    ],
    options.environment ?? {},
  );
  try {
    const url = await replicator.ready;
    const status = async (): Promise<Status> => (await (await fetch(`${url}/v1/status`)).json()) as Status;
    await using chain = new AsyncDisposableStack();
    let followed = url;
    for (let number = 0; number < relays; number++) {
      const args = ['relay', '--replicator', followed, '--data', join(directory, `relay-${number}`)];
      const relay = chain.use(
        nodeProgram(program, [...args, '--listen', '127.0.0.1:0', '--log-level', 'warn']),
      );
      followed = await relay.ready;
    }
    const { epoch, position: start } = await status();
    // A relay begins at a base file, which may be a little younger than the one before it.
    await waitUntil('the relays', async () => {
      const { position } = (await (await fetch(`${followed}/v1/status`)).json()) as Status;
      return parseLsn(position) >= parseLsn(start);
    });
    await using crowd = new Crowd({ url: followed, epoch, start });
    await using graveyard = new Crowd({ url: followed, epoch, start });
    await crowd.join('crowd', followers);
    await graveyard.join('dead', dead);
    log(`${followers} followers are connected`);
    // The reports of so many must have found their pace.
    await delay(Math.min(3000, seconds * 100));
    await crowd.measure();
    const usage = (): ProcessUsage[] => [processUsage('replicator', replicator.pid)!];
    const before = usage();
    const startedMs = performance.now();
    const load = commitAtRate({ url: server.url, perSecond, seconds, sessions: SESSIONS, rowBytes });
    await delay(seconds * 100);
    await crowd.stall(stalled);
    graveyard.freeze();
    await delay(seconds * 400);
    await crowd.join('late', late);
    const { durationsMs } = await load;
    const tookMs = performance.now() - startedMs;
    const [used] = usageSince(before, usage());
    const states = (await status()).followers;
    // Half of those that read nothing come back: they, too, get everything.
    await crowd.resume(Math.floor(stalled / 2));
    const { lsn: end } = await server.markWalEnd();
    const { problems, ...rest } = await crowd.finish(end);
    const count = (isMeant: (id: string) => boolean): Record<string, number> => {
      const counts: Record<string, number> = {};
      for (const { id, state } of states) if (isMeant(id)) counts[state] = (counts[state] ?? 0) + 1;
      return counts;
    };
    return {
      ...rest,
      committed: durationsMs.length,
      perSecond: Math.round(durationsMs.length / (tookMs / 1000)),
      replicator: { ...used!, cpuShare: used!.cpuSeconds / (tookMs / 1000) },
      statesOfStalled: count((id) => id.startsWith('crowd-') && Number(id.slice(6)) < stalled),
      statesOfDead: count((id) => id.startsWith('dead-')),
      problems: [
        ...problems,
        // The reset of the sessions, and marks of the log's end.
        ...(rest.transactions < durationsMs.length
          ? [`the crowd has ${rest.transactions} transactions of ${durationsMs.length} that were committed`]
          : []),
      ],
    };
  } finally {
    await replicator.kill('SIGTERM');
    await waitUntil('the slot is free', async () => {
      const { rows } = await server.sql.query(
        'select active from pg_replication_slots where slot_name = $1',
        [slot],
      );
      return rows[0]?.active !== true;
    });
    await server.sql.query(
      'select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = $1',
      [slot],
    );
  }
}
