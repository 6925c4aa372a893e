import { expect, test } from 'vitest';
import { TestCluster } from '../helpers/cluster.ts';
import { waitUntil } from '../helpers/wait-until.ts';

// https://www.postgresql.org/docs/current/sql-altertable.html#SQL-ALTERTABLE-DETACH-PARTITION: between its two
// transactions pgoutput cannot tell whose rows those of the partition are, and takes the server down.
test('a change that the server crashes on each time it decodes it is left behind by a new copy', async () => {
  await using cluster = await TestCluster.start({ major: 15 });
  const { postgres } = cluster;
  await postgres.sql(`
    create table root (id int primary key, v text) partition by range (id);
    create table leaf partition of root for values from (0) to (100);
    create table rest partition of root for values from (100) to (300);
    insert into root values (1, 'one'), (200, 'two hundred')`);
  await cluster.startReplicator();
  await cluster.startReplica('one');
  const reader = await postgres.client();
  await reader.query('begin');
  await reader.query('select * from root');
  const detaching = await postgres.client();
  const detached = detaching
    .query('alter table root detach partition leaf concurrently')
    .catch(() => undefined);
  await waitUntil('the first half of the detaching', async () => {
    const rows = await postgres.sql('select from pg_inherits where inhdetachpending');
    return rows.length > 0;
  });
  const writer = await postgres.client();
  // Committed and decoded, it may take the server down before that has answered.
  await writer.query("insert into leaf values (5, 'direct')").catch(() => undefined);
  await detached;
  const status = async (): Promise<string> =>
    fetch(`${cluster.replicatorUrl}/healthz`).then((response) => response.text(), String);
  await waitUntil('the replicator to leave it behind', () =>
    /crashed 3 times in a row/.test(cluster.replicator!.stderr),
  );
  await waitUntil('a new copy', async () => /"healthy":true/.test(await status()));
  const finalize = (): Promise<unknown> =>
    postgres.sql('alter table root detach partition leaf finalize').catch(() => undefined);
  await waitUntil('the second half', async () => {
    await finalize();
    return (await postgres.sql('select from pg_inherits where inhdetachpending')).length === 0;
  });
  await postgres.sql("insert into leaf values (6, 'alone')");
  await waitUntil('equality', async () => (await cluster.differences()).length === 0, { intervalMs: 200 });
  expect(cluster.replicator!.stderr.match(/a new history begins/g)).toHaveLength(2);
});
