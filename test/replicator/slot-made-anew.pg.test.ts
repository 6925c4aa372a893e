import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { TestCluster } from '../helpers/cluster.ts';
import { HeldBack } from '../helpers/held-back.ts';
import { dropSlot } from '../helpers/postgres.ts';
import { TcpProxy } from '../helpers/tcp-proxy.ts';
import { waitUntil } from '../helpers/wait-until.ts';

// A slot that was dropped, and made again under its name, looks like the one that the log was read from, and the
// server streams from it without a word about what it has never seen. Whenever that happens between two
// connections, or within the steps of one, nothing may be missing in the end.

interface Slot {
  readonly active: boolean;
  readonly activePid: number | null;
  readonly flushed: string | null;
}

let cluster: TestCluster;
let proxy: TcpProxy;
let rows = 0;
const held = new HeldBack();

async function slot(): Promise<Slot | null> {
  const [row] = await cluster.postgres.sql<Slot & Record<string, unknown>>(
    `select active, active_pid as "activePid", confirmed_flush_lsn::text as flushed from pg_replication_slots where slot_name = 'rivulet'`,
  );
  return row ?? null;
}

const create = "select pg_create_logical_replication_slot('rivulet', 'pgoutput')";

/** The delete shows whether old rows were merely added to. */
async function write(): Promise<void> {
  rows++;
  await cluster.postgres.sql('insert into t values ($1)', [rows]);
  await cluster.postgres.sql('delete from t where id = $1', [rows - 1]);
}

async function makeAnew(writing: () => Promise<void>): Promise<void> {
  await dropSlot(cluster.postgres);
  await writing();
  await cluster.postgres.sql(create);
}

async function epoch(): Promise<string> {
  return ((await (await fetch(`${cluster.replicatorUrl}/v1/status`)).json()) as { epoch: string }).epoch;
}

async function expectNothingMissing(before: string): Promise<void> {
  await waitUntil('a new history', async () => {
    const now = await epoch();
    return now !== null && now !== before;
  });
  expect(await cluster.differences()).toEqual([]);
}

const nothing = (): Promise<void> => Promise.resolve();

describe('of a history that is there', () => {
  beforeAll(async () => {
    cluster = await TestCluster.start();
    const { postgres } = cluster;
    proxy = await TcpProxy.start({ port: postgres.port, onChunk: held.onChunk });
    cluster.sourceUrl = proxy.through(postgres.url);
    await postgres.sql('create table t (id int primary key)');
  });

  beforeEach(async () => {
    await cluster.startReplicator();
    if (cluster.replicas.size === 0) await cluster.startReplica('one');
    await write();
    await cluster.caughtUp();
  });

  afterEach(async () => {
    held.release();
    proxy.refuse(false);
    await cluster.replicator?.kill('SIGTERM');
  });

  afterAll(async () => {
    await proxy?.[Symbol.asyncDispose]();
    await cluster?.[Symbol.asyncDispose]();
  });

  test.each([
    ['with writes in between', write],
    ['with nothing in between', nothing],
  ])('before the reconnect, %s', async (_, writing) => {
    const before = await epoch();
    proxy.refuse(true);
    proxy.cutAll();
    await makeAnew(writing);
    await write();
    proxy.refuse(false);
    await expectNothingMissing(before);
  });

  test.each([
    ['with writes in between', write],
    ['with nothing in between', nothing],
  ])('when all was looked at and nothing streams yet, %s', async (_, writing) => {
    const before = await epoch();
    held.arm('START_REPLICATION');
    proxy.cutAll();
    await waitUntil('the stream to be about to begin', () => held.isHolding);
    await makeAnew(writing);
    held.release();
    await write();
    await expectNothingMissing(before);
  });

  test('while it is looked at which slot the stream comes from', async () => {
    const before = await epoch();
    held.arm('rivulet check');
    proxy.cutAll();
    await waitUntil('the check to be about to begin', () => held.isHolding);
    const pid = await waitUntil('the stream', async () => (await slot())?.activePid);
    await cluster.postgres.sql('select pg_terminate_backend($1, 5000)', [pid]);
    await makeAnew(write);
    held.release();
    await expectNothingMissing(before);
  });

  test('while the new one is being made', async () => {
    const before = await epoch();
    proxy.refuse(true);
    proxy.cutAll();
    await dropSlot(cluster.postgres);
    await write();
    // A slot is there, but without a position, for as long as transactions from before it are open.
    const writer = await cluster.postgres.client();
    await writer.query('begin; create temporary table held_up ()');
    const creation = (await cluster.postgres.client()).query(create);
    await waitUntil('half a slot', async () => (await slot())?.flushed === null);
    proxy.refuse(false);
    await waitUntil('the replicator to wait for it', () =>
      cluster.replicator!.stderr.includes('the slot is still in use'),
    );
    await writer.query('commit');
    await creation;
    await expectNothingMissing(before);
  });
});

test('before the first stream, while the tables are copied', async () => {
  await using fresh = await TestCluster.start();
  cluster = fresh;
  await using through = await TcpProxy.start({ port: fresh.postgres.port, onChunk: held.onChunk });
  fresh.sourceUrl = through.through(fresh.postgres.url);
  await fresh.postgres.sql('create table t (id int primary key)');
  held.arm('START_REPLICATION');
  const started = fresh.startReplicator();
  await waitUntil('the stream to be about to begin', () => held.isHolding);
  await makeAnew(write);
  held.release();
  await started;
  await fresh.startReplica('one');
  await write();
  expect(await fresh.differences()).toEqual([]);
});
