import Database from 'better-sqlite3';
import { expect, test } from 'vitest';
import { TestCluster } from '../helpers/cluster.ts';
import { UNPRINTABLE, UNPRINTABLE_TYPE, UNPRINTABLE_TYPES } from '../helpers/unprintable.ts';

test('a change that is longer than the server can send holds up nothing', async () => {
  await using cluster = await TestCluster.start();
  const { postgres } = cluster;
  await postgres.sql(`${UNPRINTABLE_TYPES};
      create table deep (id int primary key, v ${UNPRINTABLE_TYPE});
      create table beside (id int primary key, v int);
      create table untouched (id int primary key)`);
  const replicator = await cluster.startReplicator();
  await cluster.startReplica('one');
  await postgres.sql('insert into untouched values (1)');
  await postgres.sql(`
      insert into beside values (1, 1), (2, 1);
      insert into deep values (1, ${UNPRINTABLE}), (2, null);
      delete from beside where id = 2;
      update beside set v = 3`);
  await postgres.sql('insert into untouched values (2); insert into beside values (3, 3)');
  await cluster.caughtUp(60_000);
  const db = new Database(cluster.file('one'), { readonly: true });
  expect(db.prepare('SELECT id, v FROM deep ORDER BY id').all()).toEqual([
    { id: 1, v: null },
    { id: 2, v: null },
  ]);
  expect(db.prepare('SELECT row, column_name, bytes FROM _rivulet_left_out').all()).toEqual([
    { row: 'id = 1', column_name: 'v', bytes: 1024 ** 3 },
  ]);
  db.close();
  await postgres.sql('update beside set v = v + 1; delete from deep where id = 1');
  expect(await cluster.differences()).toEqual([]);
  const { stderr } = replicator;
  expect(stderr).toContain('"code":"CHANGE_TOO_LONG"');
  // In one history, and with no other tables than those of its transaction.
  expect(stderr.split('a new history begins')).toHaveLength(2);
  expect(
    [...stderr.matchAll(/"table":"public\.(\w+)"[^\n]*were read again/g)].map(([, name]) => name).sort(),
  ).toEqual(['beside', 'deep']);
});
