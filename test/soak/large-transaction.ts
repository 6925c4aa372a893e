import { readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import Database from 'better-sqlite3';
import { TestCluster } from '../helpers/cluster.ts';
import type { Major } from '../helpers/postgres.ts';
import type { RivuletProcess } from '../helpers/processes.ts';
import { waitUntil } from '../helpers/wait-until.ts';

const MIB = 1024 * 1024;
/** Far into the transaction, and far from its end. */
const KILL_AT_BYTES = 20 * MIB;

export interface LargeTransactionReport {
  /** Most memory that each process has ever held (VmHWM), MiB; the killed ones up to their death. */
  readonly peakMiB: Readonly<
    Record<'replicator' | 'replica' | 'killed replicator' | 'killed replica' | 'new replica', number>
  >;
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
 * One transaction of `rows` rows, in the middle of which first the replicator and then the replica are killed
 * with SIGKILL; a reader looks at the file all the while. At its end a new replica starts from the replicator's
 * base file, which has to take the transaction in for it.
 */
export async function largeTransaction(options: {
  readonly major: Major;
  readonly rows: number;
}): Promise<LargeTransactionReport> {
  const { major, rows } = options;
  await using cluster = await TestCluster.start({ major });
  const { postgres } = cluster;
  await postgres.sql('create table large (id bigint primary key, n int not null, payload text not null)');
  const firstReplicator = await cluster.startReplicator();
  const firstReplica = await cluster.startReplica('one');
  const file = cluster.file('one');

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

  const peaks = { killedReplicator: 0, killedReplica: 0 };
  await grown(join(cluster.dir, 'data', 'log.db-wal'), KILL_AT_BYTES);
  peaks.killedReplicator = peakMiB(firstReplicator);
  await firstReplicator.kill('SIGKILL');
  const before = size(`${file}-wal`);
  const replicator = await cluster.startReplicator();
  await grown(`${file}-wal`, Math.max(before, KILL_AT_BYTES));
  peaks.killedReplica = peakMiB(firstReplica);
  await firstReplica.kill('SIGKILL');
  const replica = await cluster.startReplica('one');
  await writing;
  await waitUntil('the rows in the file', () => counts.has(rows), { timeoutMs: 300_000 });
  const visibleMs = Math.round(performance.now() - committedMs);
  await cluster.caughtUp();
  const newReplica = await cluster.startReplica('two');
  await cluster.caughtUp();
  isReading = false;
  await reading;
  const [expected] = await postgres.sql(
    'select count(*)::float8 as rows, sum(id)::float8 as ids, sum(n)::float8 as n, min(payload) as min, max(payload) as max from large',
  );
  return {
    peakMiB: {
      replicator: peakMiB(replicator),
      replica: peakMiB(replica),
      'killed replicator': peaks.killedReplicator,
      'killed replica': peaks.killedReplica,
      'new replica': peakMiB(newReplica),
    },
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

async function grown(file: string, bytes: number): Promise<void> {
  await waitUntil(`${file} above ${bytes} bytes`, () => size(file) > bytes, {
    timeoutMs: 120_000,
    intervalMs: 5,
  });
}
