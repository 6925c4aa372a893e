import { existsSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import Database from 'better-sqlite3';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { parseLsn } from '../../src/lsn.ts';
import { filePosition, TestCluster } from '../helpers/cluster.ts';
import { compareWithPostgres } from '../helpers/compare.ts';
import { type CrashPoint, crashAt, NO_SYNC_RETURNS } from '../helpers/crash-point.ts';
import { rivulet } from '../helpers/processes.ts';
import { waitUntil } from '../helpers/wait-until.ts';

const APPEND = '^INSERT INTO batch ';

/** What shows a transaction that is missing or there twice: rows without a key, and a sum. */
async function prepare(cluster: TestCluster): Promise<void> {
  await cluster.postgres.sql(`
    create table account (id int primary key, balance int not null);
    insert into account select i, 0 from generate_series(1, 10) i;
    create table entry (account int, amount int);
    create table large (id bigint generated always as identity, batch int, filler text);
  `);
}

/** Small transactions one after the other, until `isOver`, but at least ten. */
async function writeUntil(cluster: TestCluster, isOver: () => boolean): Promise<void> {
  for (let round = 0; round < 10 || !isOver(); round++) {
    const account = (round % 10) + 1;
    await cluster.postgres.sql(
      `begin; update account set balance = balance + ${round} where id = ${account}; insert into entry values (${account}, ${round}); commit`,
    );
  }
}

/** Some 5 MB in one transaction: about ten parts. */
async function writeLarge(cluster: TestCluster): Promise<void> {
  await cluster.postgres.sql(
    "insert into large (batch, filler) select 1, repeat('x', 500) from generate_series(1, 10000)",
  );
}

describe('with the initial copy done', () => {
  let cluster: TestCluster;

  beforeAll(async () => {
    cluster = await TestCluster.start();
    await prepare(cluster);
    // So that a new replica's download takes more than one write.
    await writeLarge(cluster);
    await cluster.startReplicator();
    await cluster.startReplica('one');
  });

  afterAll(async () => {
    await cluster[Symbol.asyncDispose]();
  });

  // A test that fails must leave the ones behind it what they need.
  afterEach(async () => {
    if (cluster.replicator!.hasEnded) await cluster.startReplicator();
    if (cluster.replicas.get('one')!.hasEnded) await cluster.startReplica('one');
  });

  /** Everything that runs goes on as it does after any crash: somebody starts the process again, no more. */
  async function expectNothingLost(): Promise<void> {
    await writeUntil(cluster, () => true);
    expect(await cluster.differences()).toEqual([]);
  }

  async function crashReplicator(
    point: CrashPoint,
    write: (isOver: () => boolean) => Promise<void>,
  ): Promise<void> {
    await cluster.replicator!.kill('SIGTERM');
    const replicator = await cluster.startReplicator(crashAt(point));
    const { epoch } = (await (await fetch(`${cluster.replicatorUrl}/v1/status`)).json()) as { epoch: string };
    await write(() => replicator.hasEnded);
    expect(await replicator.exited).toBe('SIGKILL');
    await cluster.startReplicator();
    await expectNothingLost();
    const after = (await (await fetch(`${cluster.replicatorUrl}/v1/status`)).json()) as { epoch: string };
    expect(after.epoch).toBe(epoch);
  }

  async function crashReplica(
    point: CrashPoint,
    write: (isOver: () => boolean) => Promise<void>,
  ): Promise<void> {
    await cluster.replicas.get('one')!.kill('SIGTERM');
    const replica = await cluster.startReplica('one', crashAt(point));
    await write(() => replica.hasEnded);
    expect(await replica.exited).toBe('SIGKILL');
    await cluster.startReplica('one');
    await expectNothingLost();
  }

  const write = (isOver: () => boolean): Promise<void> => writeUntil(cluster, isOver);

  test('replicator, between decode and log append', async () => {
    await crashReplicator({ at: 'statement', when: 'before', sql: APPEND, file: 'log\\.db$', nth: 3 }, write);
  });

  test('replicator, between log append and publication', async () => {
    await crashReplicator({ at: 'statement', when: 'after', sql: APPEND, file: 'log\\.db$', nth: 3 }, write);
  });

  test('replicator, a sync of the log that fails: the log is opened anew, and the process goes on', async () => {
    await cluster.replicator!.kill('SIGTERM');
    const replicator = await cluster.startReplicator(crashAt({ at: 'failed sync', nth: 3 }));
    await writeUntil(cluster, () => replicator.stderr.includes('syncing the change log failed'));
    await expectNothingLost();
    const durable = async (): Promise<boolean> => {
      const status = (await (await fetch(`${cluster.replicatorUrl}/v1/status`)).json()) as {
        position: string;
        durablePosition: string;
      };
      return parseLsn(status.durablePosition) === parseLsn(status.position);
    };
    await waitUntil('all of it to be durable', durable);
  });

  test('replicator, between append and acknowledgement', async () => {
    await crashReplicator({ at: 'acknowledgement', nth: 3 }, write);
  });

  test('replicator, between a schema change and its record in the log', async () => {
    await crashReplicator(
      { at: 'statement', when: 'before', sql: '^COMMIT$', file: 'log\\.db$' },
      async (isOver) => {
        await writeUntil(cluster, () => true);
        await cluster.postgres.sql("alter table entry add column note text default 'none'");
        await writeUntil(cluster, isOver);
      },
    );
  });

  test('replicator, in the middle of a large transaction', async () => {
    await crashReplicator({ at: 'statement', when: 'after', sql: APPEND, file: 'log\\.db$', nth: 3 }, () =>
      writeLarge(cluster),
    );
  });

  test('power cut on the replicator: replicas are ahead of its log, and skip what comes again', async () => {
    await cluster.replicator!.kill('SIGTERM');
    const cut = join(cluster.dir, 'power-cut');
    const replicator = await cluster.startReplicator(crashAt({ at: 'power cut', when: cut, nth: 5 }));
    const isAhead = async (): Promise<boolean> => {
      if (!replicator.stderr.includes(NO_SYNC_RETURNS)) return false;
      const [slot] = await cluster.postgres.sql<{ flushed: string }>(
        'select confirmed_flush_lsn::text as flushed from pg_replication_slots',
      );
      return filePosition(cluster.file('one'))! > parseLsn(slot!.flushed);
    };
    const toBeAhead = waitUntil('the replica to be ahead of what is synced', isAhead);
    void toBeAhead.then(() => writeFileSync(cut, ''));
    await Promise.all([toBeAhead, writeUntil(cluster, () => replicator.hasEnded)]);
    expect(await replicator.exited).toBe('SIGKILL');
    expect(await isAhead()).toBe(true);
    await cluster.startReplicator();
    await expectNothingLost();
  });

  test('replica, between apply and commit', async () => {
    await crashReplica(
      { at: 'statement', when: 'before', sql: '^COMMIT$', file: 'one\\.db$', nth: 3 },
      write,
    );
  });

  test('replica, behind commit', async () => {
    await crashReplica({ at: 'statement', when: 'after', sql: '^COMMIT$', file: 'one\\.db$', nth: 3 }, write);
  });

  test('replica, in the middle of a large transaction', async () => {
    await crashReplica(
      { at: 'statement', when: 'after', sql: '^INSERT INTO "large"', file: 'one\\.db$', nth: 20 },
      () => writeLarge(cluster),
    );
  });

  /** A replica that dies before it is ready, and leaves nothing that hinders the next one. */
  async function crashBootstrap(name: string, point: CrashPoint, leaves: boolean): Promise<void> {
    // The base file stands where it is, so there is something to catch up with.
    await writeUntil(cluster, () => true);
    await expect(cluster.startReplica(name, crashAt(point))).rejects.toThrow('SIGKILL');
    expect(existsSync(cluster.file(name))).toBe(leaves);
    await cluster.startReplica(name);
    await expectNothingLost();
    expect(readdirSync(cluster.dir).filter((file) => file.startsWith(`${name}.db.`))).toEqual([]);
    await cluster.replicas.get(name)!.kill('SIGTERM');
    cluster.replicas.delete(name);
  }

  test('replica, in the middle of its first download', async () => {
    await crashBootstrap('downloading', { at: 'file write', nth: 2 }, false);
  });

  test('replica, while the downloaded file is brought up to date', async () => {
    await crashBootstrap(
      'behind',
      { at: 'statement', when: 'before', sql: '^COMMIT$', file: 'download$' },
      false,
    );
  });

  test('replica, before its first file is put in place', async () => {
    await crashBootstrap('placing', { at: 'rename', when: 'before', file: 'download$' }, false);
  });

  test('replica, behind that', async () => {
    await crashBootstrap('placed', { at: 'rename', when: 'after', file: 'download$' }, true);
  });
});

describe('in the initial copy', () => {
  const BUILDING = 'base\\.db\\.building$';
  test.each<[string, CrashPoint]>([
    [
      'when there is a slot and no log yet',
      { at: 'statement', when: 'before', sql: 'CREATE TABLE batch', file: 'log\\.db\\.new$' },
    ],
    ['among the rows', { at: 'page write', nth: 10 }],
    ['before the file is put in place', { at: 'rename', when: 'before', file: BUILDING }],
    ['behind that', { at: 'rename', when: 'after', file: BUILDING }],
    [
      'with the first changes already in the log',
      { at: 'statement', when: 'after', sql: APPEND, file: 'log\\.db$', nth: 2 },
    ],
  ])('replicator, %s', async (_moment, point) => {
    await using cluster = await TestCluster.start();
    await prepare(cluster);
    await writeLarge(cluster);
    const starting = cluster.startReplicator(crashAt(point));
    starting.catch(() => undefined);
    await writeUntil(cluster, () => cluster.replicator!.hasEnded);
    expect(await cluster.replicator!.exited).toBe('SIGKILL');
    await cluster.startReplicator();
    await cluster.startReplica('one');
    await writeUntil(cluster, () => true);
    expect(await cluster.differences()).toEqual([]);
    const slots = await cluster.postgres.sql('select slot_name from pg_replication_slots');
    expect(slots).toEqual([{ slot_name: 'rivulet' }]);
    // Nothing of the first attempt is left.
    expect(await compareWithPostgres(cluster.postgres.url, cluster.file('one'))).toEqual([]);
    const db = new Database(cluster.file('one'), { readonly: true });
    expect(db.pragma('integrity_check', { simple: true })).toBe('ok');
    db.close();
  });

  test.each(['rivulet replicator', 'rivulet copy'])(
    'a broken connection of %s starts it again by itself',
    async (application) => {
      await using cluster = await TestCluster.start();
      await prepare(cluster);
      for (let batch = 0; batch < 8; batch++) await writeLarge(cluster);
      const starting = cluster.startReplicator();
      await waitUntil('the copy to run', async () => {
        const [row] = await cluster.postgres.sql<{ connections: number }>(
          `select count(*)::int as connections from pg_stat_activity
          where application_name = $1 and exists (select from pg_stat_progress_copy where bytes_processed > 0)`,
          [application],
        );
        return row!.connections > 0;
      });
      await cluster.postgres.sql(
        'select pg_terminate_backend(pid) from pg_stat_activity where application_name = $1',
        [application],
      );
      await starting;
      expect(cluster.replicator!.stderr).toContain('POSTGRES_UNREACHABLE');
      await cluster.startReplica('one');
      await writeUntil(cluster, () => true);
      expect(await cluster.differences()).toEqual([]);
    },
  );
});

describe('everything in one process', () => {
  test.each<[string, CrashPoint]>([
    ['among the rows of the copy', { at: 'page write', nth: 10 }],
    ['before the file is put in place', { at: 'rename', when: 'before', file: 'building$' }],
    ['between append and acknowledgement', { at: 'acknowledgement', nth: 3 }],
    [
      'between apply and commit',
      { at: 'statement', when: 'before', sql: '^COMMIT$', file: 'all\\.db$', nth: 3 },
    ],
  ])('%s', async (_moment, point) => {
    await using cluster = await TestCluster.start();
    await prepare(cluster);
    await writeLarge(cluster);
    const args = ['replica', '--file', cluster.file('all'), '--postgres', cluster.postgres.url];
    await using crashing = rivulet(args, crashAt(point));
    await writeUntil(cluster, () => crashing.hasEnded);
    expect(await crashing.exited).toBe('SIGKILL');
    await using restarted = await crashing.restart();
    cluster.replicas.set('all', restarted);
    await writeLarge(cluster);
    expect(await cluster.differences()).toEqual([]);
  });
});
