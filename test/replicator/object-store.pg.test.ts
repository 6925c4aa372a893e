import { mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { expect, test } from 'vitest';
import { parseLsn } from '../../src/lsn.ts';
import type { ReplicatorStatus } from '../../src/replicator/status.ts';
import { restore } from '../../src/snapshot/restore.ts';
import { openStore } from '../../src/store/open-store.ts';
import { readManifest } from '../../src/store/read-manifest.ts';
import { segmentsBehind } from '../../src/store/segments.ts';
import { filePosition, TestCluster } from '../helpers/cluster.ts';
import { rivulet } from '../helpers/processes.ts';
import { S3_ENVIRONMENT, S3Server } from '../helpers/s3-server.ts';
import { stopUnlocked } from '../helpers/stop-unlocked.ts';
import { contentHash } from '../helpers/store-check.ts';
import { waitUntil } from '../helpers/wait-until.ts';

async function storeStatus(cluster: TestCluster): Promise<NonNullable<ReplicatorStatus['store']>> {
  const answer = await fetch(`${cluster.replicatorUrl}/v1/status`);
  return ((await answer.json()) as ReplicatorStatus).store!;
}

/** Everything that is committed now is in the store. */
async function archived(cluster: TestCluster): Promise<void> {
  const [row] = await cluster.postgres.sql<{ lsn: string }>(
    'select pg_current_wal_insert_lsn()::text as lsn',
  );
  const target = parseLsn(row!.lsn);
  await waitUntil('everything to be in the store', async () => {
    const { archivedPosition } = await storeStatus(cluster);
    return archivedPosition !== null && parseLsn(archivedPosition) >= target;
  });
}

async function confirmedFlush(cluster: TestCluster): Promise<bigint> {
  const [row] = await cluster.postgres.sql<{ lsn: string }>(
    'select confirmed_flush_lsn::text as lsn from pg_replication_slots',
  );
  return parseLsn(row!.lsn);
}

test('a replicator keeps a snapshot and everything behind it in the store, and takes more on demand', async () => {
  await using cluster = await TestCluster.start();
  const { postgres } = cluster;
  await postgres.sql('create table t (id int primary key, label text); insert into t values (1)');
  const url = pathToFileURL(join(cluster.dir, 'store')).href;
  await using store = await openStore({ url });
  await cluster.startReplicator({ RIVULET_STORE: url, RIVULET_SEGMENT_AGE: '200ms' });
  await waitUntil('the first snapshot', async () => (await storeStatus(cluster)).newestSnapshot);
  await postgres.sql('insert into t select i from generate_series(2, 5000) i');
  const [row] = await postgres.sql<{ lsn: string }>('select pg_current_wal_lsn()::text as lsn');
  const target = parseLsn(row!.lsn);
  await waitUntil('the change to be archived', async () => {
    const { archivedPosition } = await storeStatus(cluster);
    return archivedPosition !== null && parseLsn(archivedPosition) >= target;
  });
  const { manifest } = (await readManifest(store))!;
  const [first] = manifest.snapshots;
  const segments = await segmentsBehind(store, manifest, first!);
  expect(segments.length).toBeGreaterThan(0);
  expect(manifest.archived!.position).toBeGreaterThanOrEqual(target);
  expect(manifest.source.database).toBe('postgres');

  const answer = await fetch(`${cluster.replicatorUrl}/v1/snapshots`, { method: 'POST' });
  expect(answer.status).toBe(200);
  const report = (await answer.json()) as { isNew: boolean; position: string };
  expect(report.isNew).toBe(true);
  expect(parseLsn(report.position)).toBeGreaterThanOrEqual(target);
  const again = (await (await fetch(`${cluster.replicatorUrl}/v1/snapshots`, { method: 'POST' })).json()) as {
    position: string;
  };
  expect(parseLsn(again.position)).toBeGreaterThanOrEqual(parseLsn(report.position));
  expect((await readManifest(store))!.manifest.snapshots.length).toBeGreaterThanOrEqual(2);
});

test('with --durability store Postgres forgets nothing that is not in the store', async () => {
  await using server = await S3Server.start();
  await using cluster = await TestCluster.start({ major: 15 });
  const { postgres } = cluster;
  await postgres.sql('create table t (id int primary key); insert into t values (1)');
  const environment = {
    ...S3_ENVIRONMENT,
    RIVULET_STORE: `s3://${server.bucket}/rivulet`,
    RIVULET_STORE_ENDPOINT: server.endpoint,
    RIVULET_DURABILITY: 'store',
    RIVULET_SEGMENT_AGE: '100ms',
  };
  await cluster.startReplicator(environment);
  await waitUntil('the first snapshot', async () => (await storeStatus(cluster)).newestSnapshot);
  await cluster.startReplica('one');
  await postgres.sql('insert into t values (2)');
  await archived(cluster);
  // The store is gone: replicas go on, Postgres keeps the WAL, and the replicator says why.
  server.fault = () => ({ kind: 'cut', when: 'before' });
  await postgres.sql('insert into t select i from generate_series(3, 2000) i');
  const [row] = await postgres.sql<{ lsn: string }>('select pg_current_wal_lsn()::text as lsn');
  const target = parseLsn(row!.lsn);
  await cluster.caughtUp();
  await waitUntil('the failure to show', async () => (await storeStatus(cluster)).lastError);
  const { behindBytes } = await storeStatus(cluster);
  expect(behindBytes).toBeGreaterThan(0);
  expect(await confirmedFlush(cluster)).toBeLessThan(target);
  // A replicator that is killed meanwhile forgets nothing either.
  await cluster.replicator!.kill('SIGKILL');
  await cluster.startReplicator(environment);
  await postgres.sql('insert into t values (0)');
  await cluster.caughtUp();
  expect(await confirmedFlush(cluster)).toBeLessThan(target);
  server.fault = () => null;
  await waitUntil('the slot to move on', async () => (await confirmedFlush(cluster)) >= target);
  await archived(cluster);
  expect(await cluster.differences()).toEqual([]);
});

test('a replicator that was replaced stops writing, and the store stays right', async () => {
  await using cluster = await TestCluster.start();
  const { postgres } = cluster;
  await postgres.sql('create table t (id int primary key)');
  const url = pathToFileURL(join(cluster.dir, 'store')).href;
  const stale = await cluster.startReplicator({ RIVULET_STORE: url, RIVULET_SEGMENT_AGE: '5s' });
  await waitUntil('the first snapshot', async () => (await storeStatus(cluster)).newestSnapshot);
  const staleUrl = cluster.replicatorUrl;
  await postgres.sql('insert into t values (1)');
  await waitUntil('Postgres to forget what is not in the store', async () => {
    const { behindBytes, archivedPosition } = await storeStatus(cluster);
    return behindBytes! > 0 && (await confirmedFlush(cluster)) > parseLsn(archivedPosition!);
  });
  await stopUnlocked(stale, join(cluster.dir, 'store'));
  // Another one, with its own directory, takes slot and store over while the first sleeps with something to write.
  await postgres.sql('select pg_terminate_backend(active_pid) from pg_replication_slots where active');
  rmSync(join(cluster.dir, 'data'), { recursive: true });
  cluster.replicatorUrl = '';
  await cluster.startReplicator({
    RIVULET_STORE: url,
    RIVULET_SEGMENT_AGE: '50ms',
    RIVULET_SNAPSHOT_INTERVAL: '200ms',
    RIVULET_TAKEOVER: 'true',
  });
  const successor = await waitUntil('its snapshot', async () => (await storeStatus(cluster)).newestSnapshot);
  await stale.kill('SIGCONT');
  await waitUntil('the stale one to notice', async () => {
    const answer = await fetch(`${staleUrl}/v1/status`);
    return ((await answer.json()) as ReplicatorStatus).store!.state === 'fenced';
  });
  await stale[Symbol.asyncDispose]();
  await postgres.sql('insert into t values (2)');
  await archived(cluster);
  await waitUntil('another snapshot', async () => {
    const { newestSnapshot } = await storeStatus(cluster);
    return newestSnapshot!.position !== successor!.position;
  });
  await using store = await openStore({ url });
  const { manifest } = (await readManifest(store))!;
  expect(manifest.writer.generation).toBe(2);
  expect(new Set(manifest.snapshots.map(({ epoch }) => epoch)).size).toBe(2);
});

test('a replicator whose disk is lost goes on from the store, and its replicas do not notice', async () => {
  await using cluster = await TestCluster.start();
  const { postgres } = cluster;
  await postgres.sql('create table t (id int primary key, label text); insert into t values (1)');
  const url = pathToFileURL(join(cluster.dir, 'store')).href;
  const environment = { RIVULET_STORE: url, RIVULET_SEGMENT_AGE: '100ms', RIVULET_DURABILITY: 'store' };
  await cluster.startReplicator(environment);
  await waitUntil('the first snapshot', async () => (await storeStatus(cluster)).newestSnapshot);
  await cluster.startReplica('one');
  // The schema as of the store's position has to come back too.
  await postgres.sql('create table later (id int primary key); insert into later values (7)');
  await postgres.sql("insert into t select i, 'x' from generate_series(2, 500) i");
  await archived(cluster);
  const { epoch } = (await (await fetch(`${cluster.replicatorUrl}/v1/status`)).json()) as ReplicatorStatus;
  await cluster.replicator!.kill('SIGKILL');
  rmSync(join(cluster.dir, 'data'), { recursive: true });
  await postgres.sql("update t set label = 'y' where id < 100; insert into later values (8)");
  await cluster.startReplicator(environment);
  const after = (await (await fetch(`${cluster.replicatorUrl}/v1/status`)).json()) as ReplicatorStatus;
  expect(after.epoch, cluster.replicator!.stderr).toBe(epoch);
  await cluster.startReplica('two');
  await postgres.sql('alter table later add column more text; insert into later values (9, $$z$$)');
  expect(await cluster.differences()).toEqual([]);
  expect(cluster.replicas.get('one')!.stderr).not.toMatch(/made anew/);
});

test('one process: its snapshots are of a copy of its own file', async () => {
  await using cluster = await TestCluster.start();
  const { postgres } = cluster;
  await postgres.sql('create table t (id int primary key); insert into t values (1)');
  const url = pathToFileURL(join(cluster.dir, 'store')).href;
  // Before somebody has made it, it cannot be read.
  mkdirSync(join(cluster.dir, 'store'));
  await using store = await openStore({ url });
  await using replica = rivulet(
    ['replica', '--file', cluster.file('app'), '--postgres', postgres.url, '--store', url],
    { RIVULET_SEGMENT_AGE: '100ms' },
  );
  await replica.ready;
  cluster.replicas.set('app', replica);
  await waitUntil('the first snapshot', async () => (await readManifest(store))?.manifest.snapshots[0]);
  await postgres.sql('insert into t select i from generate_series(2, 1000) i');
  expect(await cluster.differences()).toEqual([]);
  const position = filePosition(cluster.file('app'))!;
  await waitUntil('the change to be archived', async () => {
    const { archived } = (await readManifest(store))!.manifest;
    return archived !== null && archived.position >= position;
  });
  const file = join(cluster.dir, 'restored.db');
  await restore({
    store,
    file,
    target: { lsn: position },
    signal: new AbortController().signal,
    onProgress: () => undefined,
    onWarning: () => undefined,
  });
  expect(contentHash(file)).toBe(contentHash(cluster.file('app')));
});
