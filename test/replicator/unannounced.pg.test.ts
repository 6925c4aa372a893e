import { execFileSync } from 'node:child_process';
import { describe, expect, test } from 'vitest';
import { TestCluster } from '../helpers/cluster.ts';
import { MAJORS } from '../helpers/postgres.ts';
import { rivulet } from '../helpers/processes.ts';
import { waitUntil } from '../helpers/wait-until.ts';

// What nobody tells of must not go unnoticed: hooks that are switched off, catalogs that somebody changes by hand, a
// server that was set back.

async function reasons(cluster: TestCluster): Promise<string> {
  return (await fetch(`${cluster.replicatorUrl}/healthz`)).text();
}

async function noticed(cluster: TestCluster): Promise<void> {
  await waitUntil('the change to be noticed', async () => (await cluster.differences()).length === 0, {
    intervalMs: 200,
  });
}

const switchHooks = (to: string): string =>
  ['ddl', 'drop', 'rewrite', 'alter'].map((name) => `alter event trigger _rivulet_${name} ${to}`).join(';');

describe.each(MAJORS)('Postgres %i', (major) => {
  test('hooks that are switched off while the replicator runs', async () => {
    await using cluster = await TestCluster.start({ major });
    await cluster.postgres.sql(
      'create table t (id int primary key, v text); insert into t values (1, $$one$$)',
    );
    await cluster.startReplicator();
    await cluster.startReplica('one');
    await cluster.postgres.sql(switchHooks('disable'));
    await waitUntil('the reason', async () => /event triggers .* switched off/.test(await reasons(cluster)));
    await cluster.postgres.sql(
      "alter table t alter v type text using v || '!'; alter table t add column w int default 7",
    );
    await noticed(cluster);
    await cluster.postgres.sql(switchHooks('enable always'));
    await waitUntil('no reason', async () => !/event triggers/.test(await reasons(cluster)));
    await cluster.postgres.sql('alter table t drop column w');
    expect(await cluster.differences()).toEqual([]);
    expect(cluster.replicator!.stderr.match(/a new history begins/g)).toHaveLength(1);
  });

  test('a table without a key that is made where no event trigger fires', async () => {
    await using cluster = await TestCluster.start({ major });
    const { postgres } = cluster;
    await cluster.startReplicator();
    await cluster.startReplica('one');
    await postgres.sql('explain analyze create table t as select generate_series(1, 3) as v');
    // Sooner than the next look at everything.
    await waitUntil(
      'its replica identity',
      () =>
        postgres.sql('update t set v = v + 1').then(
          () => true,
          () => false,
        ),
      { timeoutMs: 15_000 },
    );
    expect(await cluster.differences()).toEqual([]);
  });

  test('catalogs that somebody changes by hand', async () => {
    await using cluster = await TestCluster.start({ major });
    await cluster.postgres.sql(`
      create type mood as enum ('sad'); create view seen as select 1 as a;
      create table t (id int primary key, m mood, s seen); insert into t values (1, 'sad', row(1))`);
    await cluster.startReplicator();
    await cluster.startReplica('one');
    await cluster.replicator!.kill('SIGTERM');
    await cluster.postgres.sql("update pg_enum set enumlabel = 'blue' where enumlabel = 'sad'");
    await cluster.postgres.sql('create or replace view seen as select 1 as a, 2 as b');
    await cluster.startReplicator();
    await noticed(cluster);
  });

  test('a server that was set back to a copy of before', async () => {
    await using cluster = await TestCluster.start({ major });
    const { postgres } = cluster;
    await postgres.sql('create table t (id int primary key, v text)');
    await cluster.startReplicator();
    await cluster.startReplica('one');
    await postgres.stopServer('fast');
    execFileSync('cp', ['-a', postgres.dataDir, `${postgres.dataDir}.copy`]);
    await postgres.startServer();
    await postgres.sql("insert into t select i, 'first' from generate_series(1, 2000) i");
    await cluster.caughtUp();
    await postgres.stopServer('immediate');
    execFileSync('rm', ['-rf', postgres.dataDir]);
    execFileSync('mv', [`${postgres.dataDir}.copy`, postgres.dataDir]);
    await postgres.startServer();
    await postgres.sql("insert into t values (3000, 'second')");
    await waitUntil('a new copy', () =>
      /it was restored from a copy of before/.test(cluster.replicator!.stderr),
    );
    await noticed(cluster);
  });
});

test('without event triggers: a table that nobody may read does not hide what is done to others', async () => {
  await using cluster = await TestCluster.start();
  const { postgres } = cluster;
  await postgres.sql(`
    create table open (id int primary key, v text); insert into open values (1, 'one');
    create role reader login replication password 'reader'; grant select on open to reader`);
  await using setup = rivulet(['setup', '--postgres', postgres.url]);
  expect(await setup.exited).toBe(0);
  await postgres.sql(switchHooks('disable'));
  const url = new URL(postgres.url);
  url.username = url.password = 'reader';
  cluster.sourceUrl = url.href;
  await cluster.startReplicator();
  await cluster.startReplica('one');
  await postgres.sql('create table closed (id int primary key); insert into closed values (1)');
  await waitUntil('the closed one', async () =>
    /public\.closed: .*permission denied/.test(await reasons(cluster)),
  );
  await postgres.sql("alter table open add column w int default 7; update open set v = 'eins'");
  await waitUntil('the change of the open one', () => cluster.replicator!.stderr.includes('"public.open"'));
  await postgres.sql('grant select on closed to reader');
  await noticed(cluster);
});
