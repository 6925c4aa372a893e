import { readFileSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import Database from 'better-sqlite3';
import { expect, test } from 'vitest';
import { formatChecksum } from '../../src/replica/page-checksum.ts';
import { currentTarget } from '../../src/replica/replica-file.ts';
import { checksumOf, writeChecksum } from '../../src/snapshot/file-checksum.ts';
import { TestCluster } from '../helpers/cluster.ts';
import { crashAt } from '../helpers/crash-point.ts';
import { dropSlot } from '../helpers/postgres.ts';
import { rivulet } from '../helpers/processes.ts';
import { waitUntil } from '../helpers/wait-until.ts';

async function epochOf(cluster: TestCluster): Promise<string | null> {
  const response = await fetch(`${cluster.replicatorUrl}/v1/status`);
  return ((await response.json()) as { epoch: string | null }).epoch;
}

function epochIn(file: string): string | null {
  const db = new Database(file, { readonly: true });
  try {
    return db.prepare<[], string>('select epoch from _rivulet_position').pluck().get() ?? null;
  } finally {
    db.close();
  }
}

function rowsIn(db: Database.Database): number[] {
  return db.prepare<[], number>('select id from t order by id').pluck().all();
}

async function start(): Promise<TestCluster> {
  const cluster = await TestCluster.start();
  await cluster.postgres.sql('create table t (id int primary key); insert into t values (1), (2), (3)');
  await cluster.startReplicator();
  await cluster.startReplica('one');
  await cluster.caughtUp();
  return cluster;
}

/** A reader that opened the file before goes on reading what it had; whoever opens it now finds what Postgres has. */
async function expectNewHistory(
  cluster: TestCluster,
  before: string,
  reader: Database.Database,
): Promise<void> {
  const file = cluster.file('one');
  await waitUntil('a file of the new history', () => epochIn(file) !== before);
  expect(rowsIn(reader)).toEqual([1, 2, 3]);
  expect(reader.pragma('integrity_check', { simple: true })).toBe('ok');
  expect(await epochOf(cluster)).toBe(epochIn(file));
  await cluster.postgres.sql('insert into t values (100)');
  expect(await cluster.differences()).toEqual([]);
  expect(rowsIn(reader)).toEqual([1, 2, 3]);
  reader.close();
}

test('the slot is dropped while the replicator is down', async () => {
  await using cluster = await start();
  const before = (await epochOf(cluster))!;
  const reader = new Database(cluster.file('one'), { readonly: true });
  await cluster.replicator!.kill('SIGKILL');
  await dropSlot(cluster.postgres);
  // A delete shows whether the old rows were merely added to.
  await cluster.postgres.sql('insert into t values (4); delete from t where id = 1');
  await cluster.startReplicator();
  await expectNewHistory(cluster, before, reader);
});

test('the slot is dropped, and made again, while the replicator is running', async () => {
  await using cluster = await start();
  const before = (await epochOf(cluster))!;
  const reader = new Database(cluster.file('one'), { readonly: true });
  await cluster.postgres.sql(`do $$ begin
      perform pg_terminate_backend(active_pid, 5000) from pg_replication_slots;
      perform pg_drop_replication_slot('rivulet');
    end $$`);
  await cluster.postgres.sql('insert into t values (4); delete from t where id = 1');
  await cluster.postgres
    .sql("select pg_create_logical_replication_slot('rivulet', 'pgoutput')")
    .catch(() => undefined);
  await expectNewHistory(cluster, before, reader);
});

test("a stopped replicator's slot is left alone, unless the taking over is meant", async () => {
  await using cluster = await start();
  const { postgres } = cluster;
  const before = (await epochOf(cluster))!;
  await cluster.replicator!.kill('SIGTERM');
  const slot = () =>
    postgres.sql('select confirmed_flush_lsn::text, catalog_xmin::text from pg_replication_slots');
  const was = await slot();
  const replicator = (data: string, ...more: string[]) =>
    rivulet(['replicator', '--postgres', postgres.url, '--data', join(cluster.dir, data), ...more]);
  for (const [args, message, hint] of [
    [['other'], /rivulet is there already/, /--takeover/],
    // Names that do not go with the directory would be a history with a gap.
    [['data', '--slot', 'another'], /belongs to slot rivulet/, /--slot/],
    [['data', '--publication', 'another'], /and publication rivulet/, /--publication/],
  ] as const) {
    const [data, ...more] = args;
    const refused = replicator(data, ...more);
    expect(await refused.exited).toBe(1);
    expect(refused.stderr).toMatch(message);
    expect(refused.stderr).toMatch(hint);
    expect(await slot()).toEqual(was);
  }
  await cluster.startReplicator();
  await cluster.caughtUp();
  expect(await epochOf(cluster)).toBe(before);
  await cluster.replicator!.kill('SIGTERM');
  await postgres.sql('insert into t values (4); delete from t where id = 1');
  const reader = new Database(cluster.file('one'), { readonly: true });
  await using next = replicator('other', '--takeover', '--listen', new URL(cluster.replicatorUrl).host);
  await next.ready;
  await expectNewHistory(cluster, before, reader);
  // The slot is the other one's now, also while that is stopped and the first one comes back.
  const taken = await epochOf(cluster);
  await next.kill('SIGTERM');
  await using stale = replicator('data', '--listen', '127.0.0.1:0');
  await waitUntil('the refusal', () => /rivulet is there already/.test(stale.stderr));
  await stale.kill('SIGTERM');
  await using again = replicator('other', '--listen', new URL(cluster.replicatorUrl).host);
  await again.ready;
  expect(await epochOf(cluster)).toBe(taken);
  await cluster.caughtUp();
  expect(await epochOf(cluster)).toBe(taken);
});

test('the slot is invalidated, since more was written than the server may keep for it', async () => {
  await using cluster = await start();
  const { postgres } = cluster;
  const before = (await epochOf(cluster))!;
  const reader = new Database(cluster.file('one'), { readonly: true });
  await cluster.replicator!.kill('SIGKILL');
  await postgres.sql("alter system set max_slot_wal_keep_size = '1MB'");
  await postgres.sql('select pg_reload_conf()');
  await waitUntil('the slot to be lost', async () => {
    await postgres.sql("select pg_logical_emit_message(false, 'filler', repeat('x', 1000000))");
    await postgres.sql('select pg_switch_wal()');
    await postgres.sql('checkpoint');
    const [slot] = await postgres.sql<{ status: string }>(
      'select wal_status as status from pg_replication_slots',
    );
    return slot!.status === 'lost';
  });
  await postgres.sql('insert into t values (4); delete from t where id = 1');
  await cluster.startReplicator();
  await expectNewHistory(cluster, before, reader);
});

test('a byte of the base file is flipped while the replicator is down', async () => {
  await using cluster = await start();
  const before = (await epochOf(cluster))!;
  const reader = new Database(cluster.file('one'), { readonly: true });
  await cluster.replicator!.kill('SIGTERM');
  const base = join(cluster.dir, 'data', 'base.db');
  const bytes = readFileSync(base);
  bytes[bytes.length - 100]! ^= 4;
  writeFileSync(base, bytes);
  await cluster.startReplicator();
  await cluster.startReplica('two');
  expect(cluster.replicator!.stderr).toContain(`the base file ${base} is damaged`);
  await expectNewHistory(cluster, before, reader);
});

test('the log does not go with the base file: nobody could start from it any more', async () => {
  await using cluster = await start();
  const before = (await epochOf(cluster))!;
  await cluster.replicator!.kill('SIGTERM');
  // As if a change had been lost on its way: the bytes are those that the checksum is of.
  const base = join(cluster.dir, 'data', 'base.db');
  const db = new Database(base);
  db.exec('delete from t where id = 2');
  db.close();
  writeChecksum(base, formatChecksum(checksumOf(base)));
  await cluster.startReplicator();
  await cluster.postgres.sql('delete from t where id = 2');
  await cluster.caughtUp();
  expect(await epochOf(cluster)).toBe(before);
  await cluster.startReplica('two');
  expect(cluster.replicator!.stderr).toContain(`${base} is damaged: it cannot be brought forward`);
  await waitUntil('a file of the new history', () => epochIn(cluster.file('one')) !== before);
  await cluster.postgres.sql('insert into t values (100)');
  expect(await cluster.differences()).toEqual([]);
});

test('the replica is killed while the new file takes the place of the old one', async () => {
  await using cluster = await start();
  const { postgres } = cluster;
  const file = cluster.file('one');
  await cluster.replicator!.kill('SIGTERM');
  await cluster.replicas.get('one')!.kill('SIGTERM');
  await dropSlot(postgres);
  await postgres.sql('insert into t values (4); delete from t where id = 1');
  await cluster.startReplicator();
  for (const point of [
    { at: 'rename', when: 'before', file: 'one\\.db\\.download$' },
    { at: 'rename', when: 'after', file: 'one\\.db\\.download$' },
    { at: 'rename', when: 'before', file: 'one\\.db\\.link$' },
  ] as const) {
    const replica = await cluster
      .startReplica('one', crashAt(point))
      .catch(() => cluster.replicas.get('one')!);
    expect(await replica.exited).toBe('SIGKILL');
    const reader = new Database(file, { readonly: true });
    expect(rowsIn(reader)).toEqual([1, 2, 3]);
    reader.close();
  }
  const replica = await cluster
    .startReplica('one', crashAt({ at: 'rename', when: 'after', file: 'one\\.db\\.link$' }))
    .catch(() => cluster.replicas.get('one')!);
  expect(await replica.exited).toBe('SIGKILL');
  const reader = new Database(file, { readonly: true });
  expect(rowsIn(reader)).toEqual([2, 3, 4]);
  reader.close();
  await cluster.startReplica('one');
  expect(await cluster.differences()).toEqual([]);
});

test('the log no longer reaches back to a replica that was away', async () => {
  const cluster = await TestCluster.start();
  await using _ = cluster;
  const { postgres } = cluster;
  await postgres.sql('create table t (id int primary key, body text); insert into t values (1), (2), (3)');
  await cluster.startReplicator({ RIVULET_RETAIN_SIZE: '64kB' });
  await cluster.startReplica('one');
  await cluster.caughtUp();
  const file = cluster.file('one');
  const epoch = await epochOf(cluster);
  const reader = new Database(file, { readonly: true });
  const old = currentTarget(file);
  await cluster.replicas.get('one')!.kill('SIGTERM');
  cluster.replicas.delete('one');
  // Enough for the base file to be brought forward for the next new replica; the log is never pruned past it.
  for (let round = 0; round < 20; round++) {
    await postgres.sql(
      "insert into t select $1 * 1000 + i, repeat('x', 1000) from generate_series(1, 1000) i",
      [round + 1],
    );
  }
  await cluster.startReplica('two');
  await cluster.caughtUp();
  await waitUntil('the log to be pruned', async () => {
    const status = (await (await fetch(`${cluster.replicatorUrl}/v1/status`)).json()) as {
      log: { bytes: number };
    };
    return status.log.bytes < 4 * 1024 * 1024;
  });
  await cluster.startReplica('one');
  await waitUntil('another file', () => currentTarget(file) !== old);
  expect(basename(currentTarget(file)!)).toContain(epoch);
  expect(rowsIn(reader)).toEqual([1, 2, 3]);
  reader.close();
  expect(await epochOf(cluster)).toBe(epoch);
  await postgres.sql('delete from t where id < 2000');
  expect(await cluster.differences()).toEqual([]);
});
