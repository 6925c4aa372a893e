import { expect, test } from 'vitest';
import type { ReplicaStatus } from '../../src/replica/replica-status.ts';
import { TestCluster } from '../helpers/cluster.ts';
import { MAJORS } from '../helpers/postgres.ts';
import { rivulet } from '../helpers/processes.ts';
import { createTpcb, startTpcbLoad } from '../helpers/tpcb.ts';
import { waitUntil } from '../helpers/wait-until.ts';

/** Of pgbench's size, which is 100,000, the soak has ten times as many. */
const ACCOUNTS = 20_000;

test.each(MAJORS)(
  'Postgres %i: TPC-B runs all the while, and three replicas are equal once it stops',
  async (major) => {
    await using cluster = await TestCluster.start({ major });
    const { url } = cluster.postgres;
    await createTpcb(url, 1, ACCOUNTS);
    await using load = startTpcbLoad({ url, scale: 1, accountsPerBranch: ACCOUNTS, rate: 500 });
    await cluster.startReplicator();
    await Promise.all(['one', 'two'].map((name) => cluster.startReplica(name)));
    const before = load.committed;
    await waitUntil('1000 transactions with two replicas', () => load.committed > before + 1000);
    await cluster.startReplica('three');
    await waitUntil('1000 more with three', () => load.committed > before + 2000);
    await load.stop();
    expect(load.errors).toEqual([]);
    expect(await cluster.differences()).toEqual([]);
  },
);

test('an idle database: the position follows the WAL of others, and the slot keeps nothing', async () => {
  await using cluster = await TestCluster.start();
  const { postgres } = cluster;
  await postgres.sql('create table t (id int primary key)');
  await cluster.startReplicator();
  await cluster.startReplica('one');
  await postgres.sql('create unlogged table quiet (id int); create temp table temporary (id int)');
  for (let round = 0; round < 3; round++) {
    await postgres.sql("select pg_logical_emit_message(false, 'someone else', repeat('x', 1000000))");
    await postgres.sql('checkpoint');
    const started = performance.now();
    await cluster.caughtUp(5_000);
    expect(performance.now() - started).toBeLessThan(5_000);
  }
  await waitUntil('the slot lets go of the WAL', async () => {
    const [slot] = await postgres.sql<{ behind: string }>(
      'select pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::text as behind from pg_replication_slots',
    );
    return Number(slot!.behind) < 10_000;
  });
});

test('Postgres is gone: reads go on, and the replica says how old they are', async () => {
  await using cluster = await TestCluster.start();
  const { postgres } = cluster;
  await postgres.sql('create table t (id int primary key); insert into t values (1)');
  await cluster.startReplicator();
  await using replica = rivulet([
    ...['replica', '--file', cluster.file('one'), '--replicator', cluster.replicatorUrl],
    ...['--listen', '127.0.0.1:0'],
  ]);
  const url = await replica.ready;
  const status = async (): Promise<ReplicaStatus> =>
    (await fetch(`${url}/status`)).json() as Promise<ReplicaStatus>;
  await waitUntil('the replica to be live', async () => (await status()).state === 'live');
  expect((await status()).reasons).toEqual([]);
  await postgres.stopServer('immediate');
  const late = await waitUntil('the replica to notice', async () => {
    const now = await status();
    return (now.lag.ms ?? 0) > 3000 && now.reasons.length > 0 ? now : null;
  });
  expect(late.reasons.join()).toMatch(/not heard from Postgres/);
  await postgres.startServer();
  await waitUntil('all to be well again', async () => (await status()).reasons.length === 0);
  await postgres.sql('insert into t values (2)');
  cluster.replicas.set('one', replica);
  expect(await cluster.differences()).toEqual([]);
});
