import { describe, expect, test } from 'vitest';
import { type Lsn, parseLsn } from '../../src/lsn.ts';
import { ReplicationStream } from '../../src/source/replication-stream.ts';
import { TestCluster } from '../helpers/cluster.ts';
import { MAJORS, startPostgres } from '../helpers/postgres.ts';
import { waitUntil } from '../helpers/wait-until.ts';

/** A server with a walsender that is not satisfied waits for ever. */
const LONGEST_STOP_MS = 15_000;

function stopped(stop: Promise<void>): Promise<'stopped' | 'still running'> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<'still running'>((resolve) => {
    timer = setTimeout(() => resolve('still running'), LONGEST_STOP_MS);
  });
  return Promise.race([stop.then(() => 'stopped' as const), late]).finally(() => clearTimeout(timer));
}

describe.each(MAJORS)('shutting down Postgres %i', (major) => {
  test('does not wait for a replicator that is connected, and loses nothing', async () => {
    await using cluster = await TestCluster.start({ major });
    const { postgres } = cluster;
    await postgres.sql('create table t (id int primary key)');
    await cluster.startReplicator();
    await cluster.startReplica('one');
    for (let round = 0; round < 3; round++) {
      await postgres.sql(`insert into t select ${round} * 1000 + i from generate_series(1, 1000) i`);
      expect(await stopped(postgres.stopServer('fast'))).toBe('stopped');
      await postgres.startServer();
    }
    expect(await cluster.differences()).toEqual([]);
  });

  test('does not wait for one whose log has nowhere to go', async () => {
    await using postgres = await startPostgres({ major });
    await postgres.sql('create table t (id int primary key); create publication p for table t');
    await postgres.sql("select pg_create_logical_replication_slot('s', 'pgoutput')");
    const [row] = await postgres.sql<{ lsn: string }>(
      "select confirmed_flush_lsn::text as lsn from pg_replication_slots where slot_name = 's'",
    );
    let heard: Lsn = 0n;
    const stream = new ReplicationStream({
      url: postgres.url,
      slot: 's',
      publication: 'p',
      from: 0n,
      onBegun: async () => undefined,
      onMessage: () => true,
      onKeepalive: (position) => {
        heard = position;
      },
      onChunk: () => undefined,
      // Never a byte more than the slot has.
      durablePosition: () => parseLsn(row!.lsn),
    });
    const running = stream.run(new AbortController().signal);
    const ended = expect(running).rejects.toMatchObject({ code: 'POSTGRES_UNREACHABLE' });
    await postgres.sql('insert into t values (1)');
    await waitUntil('the stream to be there', () => heard > parseLsn(row!.lsn));
    expect(await stopped(postgres.stopServer('fast'))).toBe('stopped');
    await ended;
  });
});
