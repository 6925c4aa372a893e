import Database from 'better-sqlite3';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { TestCluster } from '../helpers/cluster.ts';
import { MAJORS } from '../helpers/postgres.ts';
import { waitUntil } from '../helpers/wait-until.ts';

/** Columns that no replica identity helps: without a key, and FULL does not go with a virtual generated one. */
const HOPELESS = '(id int not null, v text, g int generated always as (id + 1) virtual)';

/** What an application does with any table. */
const dml = (table: string): string => `insert into ${table} (id, v) values (-1, 'a'), (-2, 'b');
  update ${table} set v = 'c' where id = -1; delete from ${table} where id = -2; update ${table} set id = id - 10`;

describe.each(MAJORS.filter((major) => major >= 18))('Postgres %i: tables that are left out', (major) => {
  let cluster: TestCluster;
  beforeAll(async () => {
    cluster = await TestCluster.start({ major, settings: { logical_decoding_work_mem: '64kB' } });
    await cluster.postgres.sql(`
      create table keyed (id int primary key, v text); insert into keyed values (1, 'a');
      create table bag (id int, v text); insert into bag values (1, 'a');
      create table untouched (id int primary key, v text);
      create schema s; create table s.t (id int primary key, v text); insert into s.t values (1, 'a')`);
    await cluster.startReplicator();
    await cluster.startReplica('one');
  });
  afterAll(() => cluster?.[Symbol.asyncDispose]());

  const mirrored = (): unknown[] => {
    const db = new Database(cluster.file('one'), { readonly: true });
    try {
      return db.prepare('select sqlite_name from _rivulet_table order by 1').pluck().all();
    } finally {
      db.close();
    }
  };

  const named = async (table: string): Promise<boolean> =>
    (await cluster.postgres.sql('select from pg_publication_rel where prrelid = $1::regclass', [table]))
      .length > 0;
  const placed = (): Promise<unknown> =>
    waitUntil('the publication', async () => {
      const rows = await cluster.postgres.sql(`select from rivulet.misplaced_tables('rivulet')`);
      return rows.length === 0;
    });

  test('leave as soon as nobody is in the middle of anything, and nothing of others is lost', async () => {
    const { postgres } = cluster;
    const [before, across] = await Promise.all([postgres.client(), postgres.client()]);
    await before.query(
      `begin; insert into keyed values (10, 'open before'); insert into s.t values (10, 'open before');
       insert into untouched values (1, 'open before'); insert into bag values (2, 'open before')`,
    );
    // Unknown to the one that names the others, and published until then.
    await across.query(`begin; create table across (id int primary key, v text); ${dml('across')}`);
    await postgres.sql(`insert into keyed select i, repeat('x', 200) from generate_series(1000, 3000) i;
      create table hopeless ${HOPELESS}; insert into hopeless (id) values (1);
      insert into keyed select i, repeat('x', 200) from generate_series(3001, 5000) i; update bag set v = 'b'`);
    // The server refuses its UPDATE until then, as the first one's in its schema.
    await expect(postgres.sql('update hopeless set id = 2')).rejects.toThrow(/replica identity/);
    await waitUntil('names', () => named('keyed'));
    await before.query(
      `update keyed set v = 'b' where id = 1; insert into bag values (3, 'named meanwhile')`,
    );
    await postgres.sql(`insert into bag values (4, 'beside')`);
    await across.query(`${dml('across')}; commit`);
    await postgres.sql(`${dml('across')}; insert into bag values (5, 'beside')`);
    await expect(postgres.sql('update hopeless set id = 2')).rejects.toThrow(/replica identity/);
    await before.query(`insert into keyed values (11, 'after'); update untouched set v = 'after'; commit`);
    await placed();
    await postgres.sql(
      `${dml('hopeless')}; create table hopeless_too ${HOPELESS}; ${dml('hopeless_too')}; truncate hopeless`,
    );
    expect(await cluster.differences()).toEqual([]);
    expect(mirrored()).toEqual(['across', 'bag', 'keyed', 's.t', 'untouched']);
  });

  test('do not keep later ones from being mirrored, in whatever schema', async () => {
    const { postgres } = cluster;
    await postgres.sql(`
      create table later (id int primary key, v text); ${dml('later')};
      create table later_bag (id int, v text); ${dml('later_bag')};
      create table filled as select 1 as id, 'a' as v;
      create table s.later (id int primary key); insert into s.later values (1);
      create schema n create table bag (id int, v text) create table later (id int primary key); ${dml('n.bag')};
      create unlogged table came (id int primary key); insert into came values (1); alter table came set logged;
      create table parts (id int primary key) partition by list (id); create table s.part partition of parts default;
      insert into parts values (1); alter table parts detach partition s.part; alter table s.part set schema public`);
    await postgres.sql('begin; create table rolled (id int); rollback; insert into came values (2)');
    // Schemas without such a table are published whole; a table that is named cannot be made unlogged any more.
    await postgres.sql('alter table n.later set unlogged; alter table s.later set unlogged');
    await expect(postgres.sql('alter table later set unlogged')).rejects.toThrow(/part of a publication/);
    expect(await cluster.differences()).toEqual([]);
    expect(mirrored()).toEqual(
      [
        'across',
        'bag',
        'came',
        'filled',
        'keyed',
        'later',
        'later_bag',
        'n.bag',
        'part',
        'parts',
        's.t',
        'untouched',
      ].sort(),
    );
  });

  test('leave when they become such, and come when they are it no more', async () => {
    const { postgres } = cluster;
    await postgres.sql(`create table s.turned ${HOPELESS.replace('not null', 'primary key')};
      insert into s.turned (id) values (1), (2)`);
    await cluster.caughtUp();
    expect(mirrored()).toContain('s.turned');
    await postgres.sql('alter table s.turned drop constraint turned_pkey');
    await placed();
    await postgres.sql(
      `${dml('s.turned')}; create table s.beside (id int primary key); insert into s.beside values (1)`,
    );
    expect(await cluster.differences()).toEqual([]);
    expect(mirrored()).not.toContain('s.turned');

    await postgres.sql(`alter table hopeless add primary key (id); insert into hopeless values (7, 'after')`);
    await postgres.sql(`create table made_good ${HOPELESS}; insert into made_good (id) values (1), (2);
      update made_good set v = 'x'; create unique index on made_good (id); ${dml('made_good')}`);
    await postgres.sql(
      `update s.turned set id = id + 10; alter table s.turned drop column g; ${dml('s.turned')}`,
    );
    expect(await cluster.differences()).toEqual([]);
    expect(mirrored()).toEqual(expect.arrayContaining(['hopeless', 'made_good', 's.turned']));
  });

  test('make nobody wait; what others held, or a broken hook left, is made good within seconds', async () => {
    const { postgres } = cluster;
    const clients = await Promise.all([postgres.client(), postgres.client(), postgres.client()]);
    const [one, two, three] = clients;
    for (const client of clients) await client.query(`set statement_timeout = '3s'; set lock_timeout = '1s'`);
    await one!.query('begin; create table one (id int primary key); insert into one values (1)');
    await two!.query('begin; create table two (id int primary key); insert into two values (1)');
    await three!.query(`begin; create table three (id int, v text); ${dml('three')}`);
    await two!.query('insert into two values (2); alter table two add column v text; commit');
    await one!.query(`${dml('keyed')}; insert into one values (2); commit`);
    await three!.query(`${dml('three')}; commit`);
    await postgres.sql('alter function rivulet.keep_published_tables(oid[], oid[]) rename to gone');
    await postgres.sql(`create table unseen (id int, v text); ${dml('unseen')};
      create schema unseen create table t (id int, v text); ${dml('unseen.t')}`);
    await postgres.sql('alter function rivulet.gone(oid[], oid[]) rename to keep_published_tables');
    await postgres.sql(`${dml('unseen')}; create table n.parts ${HOPELESS} partition by list (id);
      create table s.n_part partition of n.parts default; insert into n.parts (id) values (1)`);
    await placed();
    await postgres.sql(
      `${dml('n.parts')}; ${dml('unseen.t')}; update two set id = id + 10; delete from three where id < -30`,
    );
    expect(await cluster.differences()).toEqual([]);
    expect(mirrored()).toEqual(expect.arrayContaining(['one', 'two', 'three', 'unseen', 'unseen.t']));
    expect(mirrored()).not.toEqual(expect.arrayContaining(['n.parts']));
  });

  test('are left out while the replicator is away, or once it is back', async () => {
    const { postgres } = cluster;
    await cluster.replicator!.kill('SIGTERM');
    await postgres.sql(`insert into s.t values (100, 'before')`);
    await postgres.sql(`insert into s.t values (101, 'before'); create table s.down ${HOPELESS}; ${dml('s.down')};
      insert into s.t values (102, 'after'); create table s.up (id int primary key); insert into s.up values (1)`);
    await postgres.sql(`insert into s.t values (103, 'after'); insert into s.up values (2);
      create table unseen.down ${HOPELESS}`);
    await cluster.startReplicator();
    await placed();
    await postgres.sql(
      `create table unseen.down_too ${HOPELESS}; ${dml('unseen.down_too')}; ${dml('unseen.t')}`,
    );
    expect(await cluster.differences()).toEqual([]);
    expect(mirrored()).toContain('s.up');
    expect(mirrored()).not.toContain('s.down');
  });
});
