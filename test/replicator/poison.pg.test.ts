import Database from 'better-sqlite3';
import pg from 'pg';
import { expect, test } from 'vitest';
import { TestCluster } from '../helpers/cluster.ts';
import { MAJORS } from '../helpers/postgres.ts';
import { UNPRINTABLE, UNPRINTABLE_TYPE, UNPRINTABLE_TYPES } from '../helpers/unprintable.ts';
import { waitUntil } from '../helpers/wait-until.ts';

// A change that the server fails on comes again with each attempt, whatever is done to what it is of.

const WITH_ROW_FILTERS = MAJORS.filter((major) => major >= 15);

test.each(WITH_ROW_FILTERS)(
  'Postgres %i: what a row filter of the user fails on is left behind with a new copy',
  async (major) => {
    await using cluster = await TestCluster.start({ major });
    const { postgres } = cluster;
    await postgres.sql(`
      create table t (id int primary key); insert into t values (1);
      create table beside (id int primary key);
      create publication rivulet for table t where (10 / id > 0), beside with (publish_via_partition_root = true)`);
    const replicator = await cluster.startReplicator();
    await cluster.startReplica('one');
    await postgres.sql('insert into t values (0); insert into beside values (1)');
    await waitUntil('the server to fail', () => replicator.stderr.includes('division by zero'));
    await postgres.sql('delete from t where id = 0');
    await waitUntil('a new copy', () => replicator.stderr.split('a new history begins').length === 3);
    await postgres.sql('insert into beside values (2)');
    expect(await cluster.differences()).toEqual([]);
    expect(replicator.stderr).toContain('failed 5 times in a row to send what follows');
  },
);

test('a type that has no binary form, beside a change that is too long, is left behind with a new copy', async () => {
  await using cluster = await TestCluster.start();
  const { postgres } = cluster;
  await postgres.sql(`
    ${UNPRINTABLE_TYPES};
    create table t (id int primary key, v ${UNPRINTABLE_TYPE}, acl aclitem[])`);
  const replicator = await cluster.startReplicator();
  await cluster.startReplica('one');
  await postgres.sql(`
    insert into t values (1, ${UNPRINTABLE}, array[makeaclitem(10, 10, 'SELECT', false)]);
    update t set v = null`);
  await waitUntil('a new copy', () => replicator.stderr.split('a new history begins').length === 3, {
    timeoutMs: 60_000,
  });
  expect(await cluster.differences()).toEqual([]);
  expect(replicator.stderr).toContain('no binary output function');
});

test('what is no UTF-8 in a database of SQL_ASCII holds up nothing: the file has U+FFFD in its place', async () => {
  await using cluster = await TestCluster.start();
  const client = new pg.Client(await cluster.useDatabase('SQL_ASCII'));
  await client.connect();
  try {
    await client.query('create table t (id int primary key, v text); insert into t values (1, chr(233))');
    await cluster.startReplicator();
    await cluster.startReplica('one');
    await client.query(`insert into t values (2, 'caf' || chr(233)), (3, chr(129) || chr(10))`);
  } finally {
    await client.end();
  }
  await cluster.caughtUp();
  const db = new Database(cluster.file('one'), { readonly: true });
  expect(db.prepare('SELECT id, hex(CAST(v AS BLOB)) AS v FROM t ORDER BY id').all()).toEqual([
    { id: 1, v: 'EFBFBD' },
    { id: 2, v: '636166EFBFBD' },
    { id: 3, v: 'EFBFBD0A' },
  ]);
  db.close();
});
