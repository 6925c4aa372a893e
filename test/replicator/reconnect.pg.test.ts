import { describe, expect, test } from 'vitest';
import { parseLsn } from '../../src/lsn.ts';
import { TestCluster } from '../helpers/cluster.ts';
import { MAJORS } from '../helpers/postgres.ts';
import { ReplicationTap } from '../helpers/replication-tap.ts';
import { TcpProxy } from '../helpers/tcp-proxy.ts';
import { createTpcb, startTpcbLoad } from '../helpers/tpcb.ts';
import { waitUntil } from '../helpers/wait-until.ts';

describe.each(MAJORS)('Postgres %i', (major) => {
  test('two transactions that commit back to back, and a reconnect between them', async () => {
    await using cluster = await TestCluster.start({ major });
    const { postgres } = cluster;
    const tap = new ReplicationTap();
    await using proxy = await TcpProxy.start({ port: postgres.port, onChunk: tap.onChunk });
    await postgres.sql('create table t (id int primary key)');
    cluster.sourceUrl = proxy.through(postgres.url);
    await cluster.startReplicator();
    await cluster.startReplica('one');
    const [first, second] = [await postgres.client(), await postgres.client()];
    let adjacent = 0;
    for (let round = 0; adjacent < 3 && round < 20; round++) {
      await first.query(`begin; insert into t values (${round * 2})`);
      await second.query(`begin; insert into t values (${round * 2 + 1})`);
      tap.arm();
      await Promise.all([first.query('commit'), second.query('commit')]);
      const { endLsn } = await waitUntil('the first commit', () => tap.held);
      await waitUntil('its acknowledgement to have arrived', async () => {
        const [slot] = await postgres.sql<{ flushed: string }>(
          'select confirmed_flush_lsn::text as flushed from pg_replication_slots',
        );
        return parseLsn(slot!.flushed) >= endLsn;
      });
      tap.cut();
      const next = await waitUntil('the second transaction', () => tap.firstBegin);
      if (next === endLsn) adjacent++;
      await cluster.caughtUp();
    }
    expect(adjacent).toBe(3);
    expect(await cluster.differences()).toEqual([]);
  });
});

test('any number of breaks anywhere, on both ways, under load', async () => {
  await using cluster = await TestCluster.start();
  const { url, port } = cluster.postgres;
  await createTpcb(url, 1, 1_000);
  await using source = await TcpProxy.start({ port });
  cluster.sourceUrl = source.through(url);
  await cluster.startReplicator();
  await using follow = await TcpProxy.start({ port: Number(new URL(cluster.replicatorUrl).port) });
  cluster.followUrl = follow.through(cluster.replicatorUrl);
  await cluster.startReplica('one');
  await using load = startTpcbLoad({ url, scale: 1, accountsPerBranch: 1_000, rate: 500 });
  for (let cut = 0; cut < 12; cut++) {
    const proxy = cut % 2 === 0 ? source : follow;
    const passed = (): number => proxy.connections.reduce((sum, { bytes }) => sum + bytes['to client'], 0);
    const goal = passed() + 1 + Math.floor(Math.random() * 50_000);
    await waitUntil('more to have passed', () => passed() >= goal, { intervalMs: 1 });
    proxy.cutAll();
    await waitUntil('a new connection', () => proxy.connections.length > 0);
  }
  await load.stop();
  expect(load.errors).toEqual([]);
  expect(await cluster.differences()).toEqual([]);
});

test('a replica notices within seconds that its replicator has gone without a word', async () => {
  await using cluster = await TestCluster.start();
  await cluster.postgres.sql('create table t (id int primary key)');
  await cluster.startReplicator();
  await using follow = await TcpProxy.start({ port: Number(new URL(cluster.replicatorUrl).port) });
  cluster.followUrl = follow.through(cluster.replicatorUrl);
  await cluster.startReplica('one');
  await cluster.caughtUp();
  const stalled = follow.connections;
  for (const connection of stalled) connection.stall('to client');
  const since = performance.now();
  await cluster.postgres.sql('insert into t select generate_series(1, 100)');
  await cluster.caughtUp(20_000);
  expect(performance.now() - since).toBeLessThan(12_000);
  expect(follow.connections.some((connection) => !stalled.includes(connection))).toBe(true);
  expect(await cluster.differences()).toEqual([]);
});

test('a replicator notices that Postgres has gone without a word, whatever it was asking', async () => {
  await using cluster = await TestCluster.start();
  const { postgres } = cluster;
  await using source = await TcpProxy.start({ port: postgres.port });
  cluster.sourceUrl = source.through(postgres.url);
  await postgres.sql('create table t (id int primary key)');
  await cluster.startReplicator();
  await cluster.startReplica('one');
  const names = async (): Promise<string[]> =>
    (await postgres.sql<{ name: string }>('select application_name as name from pg_stat_activity')).map(
      ({ name }) => name,
    );
  await waitUntil('it to look at the catalog', async () => (await names()).includes('rivulet schema'));
  for (const connection of source.connections) connection.stall('to client');
  await postgres.sql('insert into t select generate_series(1, 100)');
  await cluster.caughtUp(60_000);
  expect(await cluster.differences()).toEqual([]);
});
