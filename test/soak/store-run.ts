import { existsSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { pathToFileURL } from 'node:url';
import { parseLsn } from '../../src/lsn.ts';
import type { ReplicatorStatus } from '../../src/replicator/status.ts';
import { openStore } from '../../src/store/open-store.ts';
import { filePosition, TestCluster } from '../helpers/cluster.ts';
import { compareWithPostgres } from '../helpers/compare.ts';
import type { Major } from '../helpers/postgres.ts';
import { rivulet, runRivulet } from '../helpers/processes.ts';
import { S3_ENVIRONMENT, S3Server } from '../helpers/s3-server.ts';
import { checkStore, contentHash } from '../helpers/store-check.ts';
import { createTpcb, startTpcbLoad } from '../helpers/tpcb.ts';
import { waitUntil } from '../helpers/wait-until.ts';

export interface StoreRunReport {
  readonly committed: number;
  readonly kills: Readonly<Record<string, number>>;
  readonly restores: number;
  readonly snapshots: number;
  readonly problems: readonly string[];
}

const ACCOUNTS = 2_000;

/**
 * An object store through everything: TPC-B while replicas start from it, snapshotter and bootstrapping replicas
 * killed at moments that nobody chose, content recorded at moments and restored afterwards, and at last a replica
 * that comes up without its replicator.
 */
export async function storeRun(options: {
  readonly major: Major;
  readonly kind: 'file' | 's3';
  readonly kills: number;
  readonly moments: number;
  readonly log?: (line: string) => void;
}): Promise<StoreRunReport> {
  const { major, kind, log = () => undefined } = options;
  await using cluster = await TestCluster.start({ major });
  await using s3 = kind === 's3' ? await S3Server.start() : null;
  const { postgres } = cluster;
  const { url } = postgres;
  const place =
    s3 === null
      ? { RIVULET_STORE: pathToFileURL(join(cluster.dir, 'store')).href }
      : { ...S3_ENVIRONMENT, RIVULET_STORE: `s3://${s3.bucket}/r`, RIVULET_STORE_ENDPOINT: s3.endpoint };
  Object.assign(process.env, s3 === null ? {} : S3_ENVIRONMENT);
  const environment = { ...place, RIVULET_SEGMENT_AGE: '150ms', RIVULET_SNAPSHOT_INTERVAL: '700ms' };
  await using store = await openStore({ url: place.RIVULET_STORE, endpoint: s3?.endpoint });
  const seen = new Set<string>();
  const problems: string[] = [];
  const status = async (): Promise<NonNullable<ReplicatorStatus['store']>> => {
    const answer = await fetch(`${cluster.replicatorUrl}/v1/status`);
    return ((await answer.json()) as ReplicatorStatus).store!;
  };
  const flushed = async (): Promise<string> => {
    const [row] = await postgres.sql<{ lsn: string }>('select pg_current_wal_insert_lsn()::text as lsn');
    return row!.lsn;
  };
  const archived = async (): Promise<void> => {
    const target = parseLsn(await flushed());
    await waitUntil('everything to be in the store', async () => {
      const { archivedPosition, newestSnapshot } = await status();
      return newestSnapshot !== null && archivedPosition !== null && parseLsn(archivedPosition) >= target;
    });
  };

  await createTpcb(url, 1, ACCOUNTS);
  await cluster.startReplicator(environment);
  await waitUntil('the first snapshot', async () => (await status()).newestSnapshot);
  let committed = 0;
  const load = () => startTpcbLoad({ url, scale: 1, accountsPerBranch: ACCOUNTS, clients: 2, rate: 400 });

  // A replica starts while the load runs, and is equal once it stops.
  {
    await using running = load();
    await cluster.startReplica('one', place);
    await delay(300);
    await running.stop();
    committed += running.committed;
    problems.push(...running.errors, ...(await cluster.differences()));
  }

  const kills: Record<string, number> = {};
  for (let kill = 0; kill < options.kills; kill++) {
    await using running = load();
    const victim = ['snapshotter', 'bootstrap'][kill % 2]!;
    kills[victim] = (kills[victim] ?? 0) + 1;
    if (victim === 'snapshotter') {
      await delay(Math.random() * 1500);
      await cluster.replicator!.kill('SIGKILL');
      problems.push(...(await checkStore(store, seen)));
      await cluster.startReplicator(environment);
    } else {
      const file = cluster.file('killed');
      await using bootstrapping = rivulet(
        ['replica', '--file', file, '--replicator', cluster.replicatorUrl, '--name', 'killed'],
        place,
      );
      await delay(200 + Math.random() * 1200);
      await bootstrapping.kill('SIGKILL');
      if (existsSync(file)) {
        // Whatever is in place is a whole replica.
        if (filePosition(file) === null) problems.push('a half file is in place');
        else contentHash(file);
        for (const suffix of ['', '-wal', '-shm', '.store-download'])
          rmSync(`${file}${suffix}`, { force: true });
      }
    }
    await running.stop();
    committed += running.committed;
    log(`kill ${kill + 1} of ${options.kills}: ${victim}; ${committed} transactions`);
  }
  problems.push(...(await cluster.differences()));

  // Moments, with their content as a replica that equals Postgres has it.
  const moments: { lsn: string; time: string; hash: string }[] = [];
  for (let moment = 0; moment < options.moments; moment++) {
    const running = load();
    await delay(100 + Math.random() * 300);
    await running.stop();
    committed += running.committed;
    const lsn = await flushed();
    const [row] = await postgres.sql<{ time: string }>(
      "select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || 'Z' as time",
    );
    await cluster.caughtUp();
    if (moment % 5 === 0) problems.push(...(await compareWithPostgres(url, cluster.file('one'))));
    moments.push({ lsn, time: row!.time, hash: contentHash(cluster.file('one')) });
  }
  // A commit behind them all: until then nobody can know that nothing else was committed before the last time.
  await postgres.sql('update pgbench_branches set bbalance = bbalance');
  await archived();
  problems.push(...(await checkStore(store, seen)));
  let restores = 0;
  for (const [index, moment] of moments.entries()) {
    const file = join(cluster.dir, `restored-${index}.db`);
    const to = index % 2 === 0 ? ['--to-lsn', moment.lsn] : ['--to-time', moment.time];
    const { code, stderr: err } = await runRivulet(['restore', '--file', file, ...to], place);
    if (code !== 0) problems.push(`restore ${to.join(' ')} ended with ${code}: ${err}`);
    else if (contentHash(file) !== moment.hash) problems.push(`restore ${to.join(' ')} gave other content`);
    restores++;
  }
  const listed = await runRivulet(['snapshot', 'list', '--json'], place);
  const { snapshots } = JSON.parse(listed.stdout) as { snapshots: unknown[] };

  // The replicator's machine is gone: a new node comes up from the store alone, with everything.
  await cluster.replicator!.kill('SIGKILL');
  await using alone = rivulet(
    ['replica', '--file', cluster.file('alone'), '--replicator', cluster.replicatorUrl, '--name', 'alone'],
    place,
  );
  await alone.ready;
  problems.push(...(await compareWithPostgres(url, cluster.file('alone'))));
  if (!/object store is followed/.test(alone.stderr))
    problems.push('it does not say that it follows the store');
  return { committed, kills, restores, snapshots: snapshots.length, problems };
}
