import { filePosition, TestCluster } from '../helpers/cluster.ts';
import type { Major } from '../helpers/postgres.ts';
import { createTpcb, startTpcbLoad } from '../helpers/tpcb.ts';
import { waitUntil } from '../helpers/wait-until.ts';
import { Canary, type PhaseReport } from './canary.ts';

export interface StoppedReplicaReport {
  readonly before: PhaseReport;
  readonly stopped: PhaseReport;
  /** WAL that the slot held back when the stopped replica was continued. */
  readonly slotBehindBytes: number;
  /** Bytes of LSN that the stopped replica lacked when it was continued, and how long it took to make up for them. */
  readonly behindBytes: number;
  readonly catchUpMs: number;
  readonly differences: readonly string[];
}

/** Stops one of two replicas with SIGSTOP while rows and fat values are written; watches the server and the other one. */
export async function stoppedReplica(options: {
  readonly major: Major;
  readonly stopMs: number;
  readonly rate: number;
}): Promise<StoppedReplicaReport> {
  await using cluster = await TestCluster.start({ major: options.major });
  const { postgres } = cluster;
  await createTpcb(postgres.url, 1, 10_000);
  await postgres.sql(`
    create table fat (id bigint generated always as identity primary key, body text);
    alter table fat alter body set storage external`);
  const client = await postgres.client();
  await Canary.createTable(client);
  await cluster.startReplicator();
  const running = await cluster.startReplica('running');
  const stopped = await cluster.startReplica('stopped');
  await using load = startTpcbLoad({
    url: postgres.url,
    scale: 1,
    accountsPerBranch: 10_000,
    rate: options.rate,
  });

  const writer = await postgres.client();
  const canary = new Canary(client, cluster.file('running'));
  const phase = (ms: number): Promise<PhaseReport> => {
    const end = performance.now() + ms;
    // More than the replicator, the sockets and the follower would ever buffer, over the whole phase.
    return canary.watch(
      () => performance.now() >= end,
      () => writer.query("insert into fat (body) values (repeat('0123456789abcdef', 8192))"),
    );
  };

  const before = await phase(options.stopMs / 3);
  const heldAt = await (async () => {
    await stopped.kill('SIGSTOP');
    return filePosition(cluster.file('stopped'))!;
  })();
  const during = await phase(options.stopMs);
  const [slot] = await postgres.sql<{ behind: string }>(
    'select pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::text as behind from pg_replication_slots',
  );
  const reached = filePosition(cluster.file('running'))!;
  const behindBytes = Number(reached - filePosition(cluster.file('stopped'))!);
  if (filePosition(cluster.file('stopped'))! > heldAt) throw new Error('the stopped replica moved');
  const continuedMs = performance.now();
  await stopped.kill('SIGCONT');
  await waitUntil(
    'the continued replica where the other one was',
    () => filePosition(cluster.file('stopped'))! >= reached,
    {
      timeoutMs: 120_000,
    },
  );
  const catchUpMs = performance.now() - continuedMs;
  await load.stop();
  canary.close();
  const differences = [...load.errors, ...(await cluster.differences())];
  if (running.child.exitCode !== null) differences.push('the running replica ended');
  return {
    before,
    stopped: during,
    slotBehindBytes: Number(slot!.behind),
    behindBytes,
    catchUpMs: Math.round(catchUpMs),
    differences,
  };
}
