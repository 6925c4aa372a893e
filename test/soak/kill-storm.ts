import { setTimeout as delay } from 'node:timers/promises';
import type pg from 'pg';
import { TestCluster } from '../helpers/cluster.ts';
import type { Major, TestPostgres } from '../helpers/postgres.ts';
import { createTpcb, startTpcbLoad } from '../helpers/tpcb.ts';
import { waitUntil } from '../helpers/wait-until.ts';

export interface StormReport {
  readonly kills: Readonly<Record<string, number>>;
  readonly committed: number;
  readonly differences: readonly string[];
  readonly applicationErrors: readonly string[];
}

/**
 * Kills replicator, replicas and Postgres's backends, without warning, at moments that nobody chose, while
 * TPC-B and large transactions run; nobody but the supervisor's part (starting a process again) lends a hand.
 */
export async function killStorm(options: {
  readonly major: Major;
  readonly kills: number;
  readonly log?: (line: string) => void;
}): Promise<StormReport> {
  const { major, log = () => undefined } = options;
  // So that the large transactions are streamed before their commits.
  const settings = { logical_decoding_work_mem: '64kB' };
  await using cluster = await TestCluster.start({ major, settings });
  const { postgres } = cluster;
  const { url } = postgres;
  await createTpcb(url, 1, 20_000);
  await postgres.sql(
    'create table big (id bigint generated always as identity primary key, batch int, filler text)',
  );
  await cluster.startReplicator();
  await cluster.startReplica('one');
  await cluster.startReplica('two');
  const big = reconnecting(() => postgres.client());
  await using load = startTpcbLoad({ url, scale: 1, accountsPerBranch: 20_000, clients: 3 });
  let stopBig = false;
  const bigLoad = (async () => {
    for (let batch = 0; !stopBig; batch++) {
      try {
        // Some 6 MB: many parts, so that kills fall into the middle of them.
        await big(
          "insert into big (batch, filler) select $1, repeat('x', 100) from generate_series(1, 40000)",
          [batch],
        );
        await big('delete from big where batch < $1', [batch - 2]);
      } catch {
        // The server was killed and is still recovering.
        await delay(50);
      }
    }
  })();
  const kills: Record<string, number> = {};
  for (let kill = 0; kill < options.kills; kill++) {
    const goal = load.committed + Math.floor(Math.random() * 300);
    await waitUntil('the load to go on', () => load.committed >= goal, { intervalMs: 1 });
    const victim = ['replicator', 'one', 'two', 'walsender', 'backend'][Math.floor(Math.random() * 5)]!;
    kills[victim] = (kills[victim] ?? 0) + 1;
    log(`kill ${kill + 1}: ${victim} after ${load.committed} transactions`);
    if (victim === 'replicator') {
      await cluster.replicator!.kill('SIGKILL');
      await cluster.startReplicator();
    } else if (victim === 'walsender') {
      await postgres.sql('select pg_terminate_backend(active_pid) from pg_replication_slots where active');
    } else if (victim === 'backend') {
      // A backend that dies makes the postmaster crash and recover the whole server.
      const before = await checkpointer(postgres);
      const [row] = await postgres.sql<{ pid: number }>(
        `select pid from pg_stat_activity where backend_type in ('client backend', 'walsender') and pid <> pg_backend_pid()
          order by random() limit 1`,
      );
      if (row !== undefined) {
        process.kill(row.pid, 'SIGKILL');
        await waitUntil('the server to have recovered', async () => {
          const now = await checkpointer(postgres).catch(() => null);
          return now !== null && now !== before;
        });
      }
    } else {
      await cluster.replicas.get(victim)!.kill('SIGKILL');
      await cluster.startReplica(victim);
    }
  }
  stopBig = true;
  await bigLoad;
  await load.stop();
  log('the load has ended');
  await cluster.caughtUp();
  log('everything has arrived');
  return {
    kills,
    committed: load.committed,
    differences: await cluster.differences(),
    applicationErrors: load.errors,
  };
}

/** Runs statements on one connection, which is made anew after it broke. */
function reconnecting(
  connect: () => Promise<pg.Client>,
): (text: string, values: unknown[]) => Promise<unknown> {
  let client: pg.Client | null = null;
  return async (text, values) => {
    client ??= await connect();
    try {
      return await client.query(text, values);
    } catch (error) {
      client = null;
      throw error;
    }
  };
}

/** Another one after every recovery. */
async function checkpointer(postgres: TestPostgres): Promise<number> {
  const [row] = await postgres.sql<{ pid: number }>(
    "select pid from pg_stat_activity where backend_type = 'checkpointer'",
  );
  return row!.pid;
}
