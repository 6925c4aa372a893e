import Database from 'better-sqlite3';
import { filePosition, TestCluster } from '../helpers/cluster.ts';
import type { Major } from '../helpers/postgres.ts';
import { createTpcb, startTpcbLoad } from '../helpers/tpcb.ts';
import { waitUntil } from '../helpers/wait-until.ts';

/** Milliseconds over one phase. */
export interface Delays {
  readonly p50: number;
  readonly p99: number;
  readonly max: number;
}

export interface PhaseReport {
  /** How long the application's COMMIT took. */
  readonly commitMs: Delays;
  /** From the return of COMMIT to the row in the file of a replica that runs; 0 if it was there already. */
  readonly visibleMs: Delays;
}

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

const CANARY_INTERVAL_MS = 25;

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
    create table canary (id int primary key);
    create table fat (id bigint generated always as identity primary key, body text);
    alter table fat alter body set storage external`);
  await cluster.startReplicator();
  const running = await cluster.startReplica('running');
  const stopped = await cluster.startReplica('stopped');
  await using load = startTpcbLoad({
    url: postgres.url,
    scale: 1,
    accountsPerBranch: 10_000,
    rate: options.rate,
  });

  const client = await postgres.client();
  const writer = await postgres.client();
  const file = new Database(cluster.file('running'), { readonly: true });
  const seen = file.prepare<[], number | null>('select max(id) from canary').pluck();
  let canary = 0;
  async function phase(ms: number): Promise<PhaseReport> {
    const commitMs: number[] = [];
    const visibleMs: number[] = [];
    const end = performance.now() + ms;
    while (performance.now() < end) {
      canary++;
      // More than the replicator, the sockets and the follower would ever buffer, over the whole phase.
      const fat = writer.query("insert into fat (body) values (repeat('0123456789abcdef', 8192))");
      const startedMs = performance.now();
      await client.query('insert into canary values ($1)', [canary]);
      const committedMs = performance.now();
      commitMs.push(committedMs - startedMs);
      await waitUntil(`row ${canary} in the other replica`, () => (seen.get() ?? 0) >= canary, {
        intervalMs: 1,
      });
      visibleMs.push(performance.now() - committedMs);
      await fat;
      await waitUntil('the next round', () => performance.now() - startedMs >= CANARY_INTERVAL_MS, {
        intervalMs: 5,
      });
    }
    return { commitMs: delays(commitMs), visibleMs: delays(visibleMs) };
  }

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
  file.close();
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

function delays(values: number[]): Delays {
  const sorted = values.toSorted((a, b) => a - b);
  const at = (part: number): number =>
    Math.round(10 * sorted[Math.min(sorted.length - 1, Math.floor(part * sorted.length))]!) / 10;
  return { p50: at(0.5), p99: at(0.99), max: at(1) };
}
