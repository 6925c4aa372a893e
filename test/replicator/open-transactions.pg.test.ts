import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import Database from 'better-sqlite3';
import type pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { ReplicatorStatus } from '../../src/replicator/status.ts';
import { TestCluster } from '../helpers/cluster.ts';
import { crashAt } from '../helpers/crash-point.ts';
import { MAJORS } from '../helpers/postgres.ts';
import { TcpProxy } from '../helpers/tcp-proxy.ts';
import { waitUntil } from '../helpers/wait-until.ts';

/** So that every transaction of some rows is streamed before its commit. */
const SETTINGS = { logical_decoding_work_mem: '64kB', max_prepared_transactions: 10 };

describe.each(MAJORS)('Postgres %i', (major) => {
  let cluster: TestCluster;

  beforeAll(async () => {
    cluster = await TestCluster.start({ major, settings: SETTINGS });
    await cluster.postgres.sql(`
      create table item (id int primary key, note text, filler text);
      create table quiet (id int primary key, note text);
      create table bag (id int, note text);
      create table late (id int primary key, note text);
      create table wide (id int primary key, n int, body text);
      alter table wide alter column body set storage external;
      insert into wide select i, 0, repeat('body ' || i, 2000) from generate_series(1, 200) i;
    `);
    await cluster.startReplicator();
    await cluster.startReplica('one');
  });

  afterAll(async () => {
    await cluster[Symbol.asyncDispose]();
  });

  async function status(): Promise<ReplicatorStatus> {
    return (await (await fetch(`${cluster.replicatorUrl}/v1/status`)).json()) as ReplicatorStatus;
  }

  /** Streamed transactions as the server counts them, and what it kept on its own disk instead. */
  async function streamed(): Promise<{ count: number; spilled: number }> {
    const [row] = await cluster.postgres.sql<{ count: string; spilled: string }>(
      'select stream_count::text as count, spill_bytes::text as spilled from pg_stat_replication_slots',
    );
    return { count: Number(row!.count), spilled: Number(row!.spilled) };
  }

  /** Names of the tables in the file. */
  function tables(): unknown[] {
    const file = new Database(cluster.file('one'), { readonly: true });
    try {
      return file.prepare('select sqlite_name from _rivulet_table').pluck().all();
    } finally {
      file.close();
    }
  }

  /** `work` streams something, and leaves the replica equal to Postgres in the same history. */
  async function expectEqual(work: () => Promise<void>): Promise<void> {
    const before = await status();
    const { count } = await streamed();
    await work();
    expect(await cluster.differences()).toEqual([]);
    const after = await status();
    expect(after.epoch).toBe(before.epoch);
    expect(after.openTransactions).toEqual({ count: 0, bytes: 0 });
    await waitUntil('the server to have counted', async () => (await streamed()).count > count);
  }

  async function session(): Promise<{ run: (...statements: string[]) => Promise<void> }> {
    const client: pg.Client = await cluster.postgres.client();
    return {
      run: async (...statements) => {
        for (const statement of statements) await client.query(statement);
      },
    };
  }

  const rows = (table: string, from: number, count: number, note: string): string =>
    `insert into ${table} (id, note) select i, '${note} ' || repeat('x', 100) from generate_series(${from}, ${from + count - 1}) i`;

  test('transactions that run beside each other come whole, in the order of their commits', async () => {
    await expectEqual(async () => {
      const [a, b, c] = await Promise.all([session(), session(), session()]);
      await a.run('begin', rows('item', 1, 2000, 'a'));
      await b.run('begin', rows('item', 10_001, 2000, 'b'));
      await waitUntil('both to be on their way', async () => (await status()).openTransactions!.count === 2);
      await c.run("insert into quiet values (1, 'between')");
      await a.run(
        "update item set note = note || '!' where id < 1000",
        "insert into bag select 1, 'a' from generate_series(1, 3000)",
      );
      await b.run('update item set id = id + 100000 where id > 10001');
      await c.run("update quiet set note = 'again'");
      // In the file before the others are over.
      await cluster.caughtUp();
      await b.run('commit');
      await c.run("update item set note = 'of c' where id > 11000");
      await a.run("update item set note = note || '?'", 'commit');
      await c.run('delete from item where id % 3 = 0');
    });
    expect((await streamed()).spilled).toBe(0);
  });

  test('what is rolled back to savepoints, at several depths, is not there', async () => {
    await expectEqual(async () => {
      const { run } = await session();
      await run(
        'begin',
        rows('item', 200_000, 1000, 'kept'),
        'savepoint one',
        rows('item', 201_000, 1000, 'gone'),
        'savepoint two',
        rows('item', 202_000, 1000, 'gone'),
        // First seen in a part that is rolled back.
        rows('late', 1, 1000, 'gone'),
        'release two',
        rows('late', 2001, 1000, 'gone'),
        'rollback to one',
        rows('late', 4001, 1000, 'kept'),
        'savepoint three',
        rows('item', 203_000, 1000, 'kept'),
        'savepoint four',
        "delete from item where note like 'kept%'",
        'truncate late',
        'savepoint five',
        rows('late', 1, 1000, 'gone'),
        'rollback to four',
        rows('item', 204_000, 1000, 'kept'),
        'release three',
        'savepoint six',
        rows('quiet', 1000, 1000, 'gone'),
        'rollback to six',
        'commit',
      );
      // The server takes its descriptions for known by now.
      await run("insert into quiet values (5000, 'after')", "insert into late values (9000, 'after')");
    });
  });

  test('a transaction that is rolled back leaves nothing, on the disk neither', async () => {
    await expectEqual(async () => {
      const { run } = await session();
      await run('begin', rows('item', 300_000, 3000, 'gone'), 'alter table item add column gone int');
      await waitUntil('it to be on its way', async () => (await status()).openTransactions!.bytes > 100_000);
      expect(readdirSync(join(cluster.dir, 'data', 'open')).length).toBe(1);
      await run('rollback', "insert into item (id, note) values (400000, 'after')");
    });
    expect(readdirSync(join(cluster.dir, 'data', 'open'))).toEqual([]);
  });

  test('schema changes within, kept and rolled back', async () => {
    await expectEqual(async () => {
      const { run } = await session();
      await run(
        'create table shape (id int primary key, note text)',
        'begin',
        rows('shape', 1, 1000, 'two columns'),
        'alter table shape add column n int default 7',
        "insert into shape select i, 'three', i from generate_series(2001, 3000) i",
        'savepoint one',
        // Nobody can say from the stream whether these are behind the savepoint.
        'alter table shape add column gone text',
        "insert into shape select i, 'four', i, 'gone' from generate_series(3001, 4000) i",
        'create table never (id int primary key, note text)',
        rows('never', 1, 1000, 'never'),
        'rollback to one',
        "insert into shape select i, 'three', i from generate_series(3001, 4000) i",
        'alter table shape rename column note to remark',
        'create table fresh (id int primary key, note text)',
        'savepoint two',
        rows('fresh', 1, 1000, 'kept'),
        'release two',
        'savepoint three',
        rows('fresh', 2001, 1000, 'gone'),
        'rollback to three',
        'alter table shape alter column n type bigint',
        'update shape set n = 3000000000 where id < 10',
        'commit',
        "insert into shape values (9000, 'after', 9)",
      );
    });
    expect(tables()).not.toContain('never');
    expect(tables()).toContain('fresh');
  });

  test('TRUNCATE, and values that were not touched', async () => {
    await expectEqual(async () => {
      const { run } = await session();
      await run(
        'begin',
        'truncate item, late',
        rows('item', 1, 2000, 'new'),
        'update wide set n = n + 1',
        'update wide set id = id + 1000 where id <= 100',
        'savepoint one',
        "update wide set body = 'short'",
        'rollback to one',
        "update wide set body = repeat('other ' || id, 2000) where id % 2 = 0",
        'commit',
      );
    });
  });

  test('a schema that is renamed while rows of its tables are on their way', async () => {
    const [a, b] = await Promise.all([session(), session()]);
    await a.run('create schema one', 'create table one.t (id int primary key, note text)');
    await expectEqual(async () => {
      await a.run('begin', rows('one.t', 1, 2000, 'under the old name'));
      await waitUntil('it to be on its way', async () => (await status()).openTransactions!.count === 1);
      await b.run('alter schema one rename to two');
      // Nothing of the transaction's own tells of the new name.
      await a.run('commit');
    });
    await expectEqual(async () => {
      await a.run('begin', rows('two.t', 3000, 2000, 'under the second name'));
      await waitUntil('it to be on its way', async () => (await status()).openTransactions!.count === 1);
      await b.run('alter schema two rename to three', rows('three.t', 10_000, 10, 'under the third name'));
      await a.run(rows('three.t', 6000, 2000, 'under the third name'), 'commit');
      await b.run('update three.t set id = id + 100000 where id > 7000');
    });
  });

  test('prepared transactions come with COMMIT PREPARED', async () => {
    await expectEqual(async () => {
      const { run } = await session();
      await run('begin', rows('item', 500_000, 2000, 'prepared'), "prepare transaction 'kept'");
      await run('begin', rows('item', 510_000, 2000, 'never'), "prepare transaction 'gone'");
      await run("insert into quiet values (6000, 'between')");
      await cluster.caughtUp();
      await run("commit prepared 'kept'", "rollback prepared 'gone'");
    });
  });

  test('the process killed in mid-stream, and in the middle of the replay: nothing is lost, and nothing comes twice', async () => {
    await expectEqual(async () => {
      const { run } = await session();
      await run(
        'begin',
        rows('item', 600_000, 5000, 'kept'),
        "insert into bag select i, 'kept' from generate_series(1, 5000) i",
      );
      await waitUntil('it to be on its way', async () => (await status()).openTransactions!.bytes > 500_000);
      await cluster.replicator!.kill('SIGKILL');
      const killed = await cluster.startReplicator(
        crashAt({ at: 'statement', when: 'after', sql: '^INSERT INTO batch ', file: 'log\\.db$', nth: 2 }),
      );
      await waitUntil('it to come again', async () => (await status()).openTransactions!.bytes > 500_000);
      await run("insert into bag select i, repeat('more ', 50) from generate_series(1, 10000) i", 'commit');
      expect(await killed.exited).toBe('SIGKILL');
      await cluster.startReplicator();
    });
  });

  test('the connection cut in mid-stream', async () => {
    await expectEqual(async () => {
      const { run } = await session();
      await run(
        'begin',
        rows('item', 700_000, 5000, 'kept'),
        'savepoint one',
        rows('late', 700_000, 5000, 'gone'),
      );
      await waitUntil('it to be on its way', async () => (await status()).openTransactions!.bytes > 500_000);
      await cluster.postgres.sql(
        'select pg_terminate_backend(active_pid) from pg_replication_slots where active',
      );
      await run('rollback to one', rows('late', 700_000, 1000, 'kept'), 'commit');
    });
  });
});

test('a server that does not know the protocol sends its transactions whole', async () => {
  await using cluster = await TestCluster.start({ settings: SETTINGS });
  const { postgres } = cluster;
  await postgres.sql('create table item (id int primary key, note text)');
  // So that the server refuses: there is no version 9.
  await using proxy = await TcpProxy.start({
    port: postgres.port,
    onChunk: (chunk, direction) =>
      direction === 'to server'
        ? Buffer.from(chunk.toString('latin1').replace("proto_version '2'", "proto_version '9'"), 'latin1')
        : chunk,
  });
  cluster.sourceUrl = proxy.through(postgres.url);
  await cluster.startReplicator();
  await cluster.startReplica('one');
  await postgres.sql("insert into item select i, repeat('x', 100) from generate_series(1, 5000) i");
  expect(await cluster.differences()).toEqual([]);
  const [counted] = await postgres.sql('select stream_count::int as streamed from pg_stat_replication_slots');
  expect(counted).toEqual({ streamed: 0 });
});

test('of a transaction the server keeps a few megabytes, where it would keep 64', async () => {
  await using cluster = await TestCluster.start({ settings: { logical_decoding_work_mem: '64MB' } });
  await cluster.postgres.sql('create table item (id int primary key, note text)');
  await cluster.startReplicator();
  const client = await cluster.postgres.client();
  await client.query('begin');
  // In the server's memory a row of this kind takes some 200 bytes.
  await client.query("insert into item select i, 'note ' || i from generate_series(1, 80000) i");
  await waitUntil('a part of it to be sent', async () => {
    const { openTransactions } = (await (
      await fetch(`${cluster.replicatorUrl}/v1/status`)
    ).json()) as ReplicatorStatus;
    return openTransactions !== null && openTransactions.bytes > 0;
  });
  await client.query('commit');
});
