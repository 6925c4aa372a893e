import { chmodSync, readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { TestCluster } from '../helpers/cluster.ts';
import { runAsStranger } from './run-as.ts';

test('a replica that was stopped can be read by who may only read', async (context) => {
  await using cluster = await TestCluster.start();
  await cluster.postgres.sql('create table t (id int primary key); insert into t values (1)');
  await cluster.startReplicator();
  const replica = await cluster.startReplica('one');
  await cluster.postgres.sql('insert into t values (2)');
  await cluster.caughtUp();
  await replica.kill('SIGTERM');
  const files = readdirSync(cluster.dir)
    .filter((name) => name.startsWith('one.db'))
    .map((name) => join(cluster.dir, name));
  // Whoever copies the file alone has all of it.
  expect(statSync(`${cluster.file('one')}-wal`).size).toBe(0);
  for (const file of files) chmodSync(file, 0o444);
  chmodSync(cluster.dir, 0o555);
  try {
    const args = ['status', '--file', cluster.file('one'), '--json'];
    const outcomes = await runAsStranger([{ args, env: {} }]);
    if (outcomes === null) return context.skip('the sources are not for others to read');
    expect(outcomes).toMatchObject([{ code: 0, err: '' }]);
  } finally {
    chmodSync(cluster.dir, 0o755);
    for (const file of files) chmodSync(file, 0o644);
  }
  await cluster.startReplica('one');
  await cluster.postgres.sql('insert into t values (3)');
  expect(await cluster.differences()).toEqual([]);
});
