import { readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import Database from 'better-sqlite3';
import { TestCluster } from '../helpers/cluster.ts';
import type { Major } from '../helpers/postgres.ts';
import type { RivuletProcess } from '../helpers/processes.ts';
import { waitUntil } from '../helpers/wait-until.ts';
import { Canary, type PhaseReport } from './canary.ts';

const MIB = 1024 * 1024;
/** Far into the transaction, and far from its end. */
const KILL_AT_BYTES = 20 * MIB;
/** How long another table is watched before and after. */
const WATCH_MS = 3_000;

export interface LargeTransactionReport {
  /** Most memory that each process has ever held (VmHWM), MiB; the killed ones up to their death. */
  readonly peakMiB: Readonly<
    Record<
      | 'replicator'
      | 'replicator with its base file'
      | 'replica'
      | 'replicator killed before the commit'
      | 'replicator killed behind it'
      | 'killed replica'
      | 'new replica',
      number
    >
  >;
  /** Rows of another table, before the transaction and after it. */
  readonly lag: { readonly before: PhaseReport; readonly after: PhaseReport };
  /** What the server kept of it on its own disk, before the first kill. */
  readonly spilledBytes: number;
  /** Every number of rows that a reader of the file has seen. */
  readonly countsSeen: readonly number[];
  readonly reads: number;
  /** From the COMMIT to the rows in the file, with both processes killed on the way. */
  readonly visibleMs: number;
  /** Expected and found: count and sums. */
  readonly postgres: unknown;
  readonly replica: unknown;
  readonly newReplica: unknown;
}

/**
 * One transaction of `rows` rows, in the middle of which the replicator is killed with SIGKILL: while it is streamed
 * before its commit, and again while it goes into the log behind it; then the replica. A reader looks at the file all
 * the while. At its end a new replica starts from the replicator's base file, which has to take the transaction in
 * for it.
 */
export async function largeTransaction(options: {
  readonly major: Major;
  readonly rows: number;
}): Promise<LargeTransactionReport> {
  const { major, rows } = options;
  await using cluster = await TestCluster.start({ major });
  const { postgres } = cluster;
  await postgres.sql('create table large (id bigint primary key, n int not null, payload text not null)');
  const client = await postgres.client();
  await Canary.createTable(client);
  const firstReplicator = await cluster.startReplicator();
  const firstReplica = await cluster.startReplica('one');
  const file = cluster.file('one');

  const canary = new Canary(client, file);
  const watch = (): Promise<PhaseReport> => {
    const until = performance.now() + WATCH_MS;
    return canary.watch(() => performance.now() > until);
  };
  const before = await watch();

  const counts = new Set<number>();
  let reads = 0;
  let isReading = true;
  const reading = (async () => {
    const db = new Database(file, { readonly: true });
    const count = db.prepare<[], number>('select count(*) from large').pluck();
    while (isReading) {
      counts.add(count.get()!);
      reads++;
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    db.close();
  })();

  let committedMs = 0;
  const writing = postgres
    .sql('insert into large select i, i % 1000, md5(i::text) from generate_series(1, $1::int) i', [rows])
    .then(() => {
      committedMs = performance.now();
    });
  writing.catch(() => undefined);

  const peaks = { beforeCommit: 0, behindCommit: 0, replicator: 0, killedReplica: 0 };
  const data = join(cluster.dir, 'data');
  await waitUntil('a good part of it to be streamed', () => sizeOfAll(join(data, 'open')) > KILL_AT_BYTES, {
    timeoutMs: 120_000,
    intervalMs: 5,
  });
  const [spilled] = await postgres.sql<{ bytes: string }>(
    'select spill_bytes::text as bytes from pg_stat_replication_slots',
  );
  peaks.beforeCommit = peakMiB(firstReplicator);
  await firstReplicator.kill('SIGKILL');
  const secondReplicator = await cluster.startReplicator();
  await grown(join(data, 'log.db-wal'), KILL_AT_BYTES);
  peaks.behindCommit = peakMiB(secondReplicator);
  await secondReplicator.kill('SIGKILL');
  const sizeBefore = size(`${file}-wal`);
  const replicator = await cluster.startReplicator();
  await grown(`${file}-wal`, Math.max(sizeBefore, KILL_AT_BYTES));
  peaks.killedReplica = peakMiB(firstReplica);
  await firstReplica.kill('SIGKILL');
  const replica = await cluster.startReplica('one');
  await writing;
  await waitUntil('the rows in the file', () => counts.has(rows), { timeoutMs: 300_000 });
  const visibleMs = Math.round(performance.now() - committedMs);
  await cluster.caughtUp();
  const after = await watch();
  canary.close();
  peaks.replicator = peakMiB(replicator);
  const newReplica = await cluster.startReplica('two');
  await cluster.caughtUp();
  isReading = false;
  await reading;
  const [expected] = await postgres.sql(
    'select count(*)::float8 as rows, sum(id)::float8 as ids, sum(n)::float8 as n, min(payload) as min, max(payload) as max from large',
  );
  return {
    peakMiB: {
      replicator: peaks.replicator,
      'replicator with its base file': peakMiB(replicator),
      replica: peakMiB(replica),
      'replicator killed before the commit': peaks.beforeCommit,
      'replicator killed behind it': peaks.behindCommit,
      'killed replica': peaks.killedReplica,
      'new replica': peakMiB(newReplica),
    },
    lag: { before, after },
    spilledBytes: Number(spilled!.bytes),
    countsSeen: [...counts].toSorted((a, b) => a - b),
    reads,
    visibleMs,
    postgres: expected,
    replica: summary(file),
    newReplica: summary(cluster.file('two')),
  };
}

function summary(file: string): unknown {
  const db = new Database(file, { readonly: true });
  try {
    return db
      .prepare(
        'select count(*) as rows, sum(id) as ids, sum(n) as n, min(payload) as min, max(payload) as max from large',
      )
      .get();
  } finally {
    db.close();
  }
}

function peakMiB(rivulet: RivuletProcess): number {
  const match = /^VmHWM:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${rivulet.pid}/status`, 'utf8'));
  return Math.round(Number(match![1]) / 1024);
}

function size(file: string): number {
  return statSync(file, { throwIfNoEntry: false })?.size ?? 0;
}

function sizeOfAll(dir: string): number {
  try {
    return readdirSync(dir).reduce((sum, file) => sum + size(join(dir, file)), 0);
  } catch {
    return 0; // there is none while nothing is open
  }
}

async function grown(file: string, bytes: number): Promise<void> {
  await waitUntil(`${file} above ${bytes} bytes`, () => size(file) > bytes, {
    timeoutMs: 120_000,
    intervalMs: 5,
  });
}
