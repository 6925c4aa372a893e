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

  const placed = (): Promise<unknown> =>
    waitUntil('the publication', async () => {
      const rows = await cluster.postgres.sql(`select from rivulet.misplaced_tables('rivulet')`);
      return rows.length === 0;
    });

  test('are out in the statement that makes them, and nothing of others is lost', async () => {
    const { postgres } = cluster;
    const [before, across] = await Promise.all([postgres.client(), postgres.client()]);
    await before.query(
      `begin; insert into keyed values (10, 'open before'); insert into s.t values (10, 'open before');
       insert into untouched values (1, 'open before'); insert into bag values (2, 'open before')`,
    );
    // Unknown to the one that takes out the schema, and published until then.
    await across.query(`begin; create table across (id int primary key, v text); ${dml('across')}`);
    await postgres.sql(`begin; insert into keyed select i, repeat('x', 200) from generate_series(1000, 3000) i;
      create table besides (id int primary key, v text); ${dml('besides')};
      create table hopeless ${HOPELESS}; ${dml('hopeless')}; ${dml('besides')};
      insert into keyed select i, repeat('x', 200) from generate_series(3001, 5000) i; update bag set v = 'b'; commit`);
    expect(await postgres.sql(`select from rivulet.misplaced_tables('rivulet') where is_hopeless`)).toEqual(
      [],
    );
    await before.query(`update keyed set v = 'b' where id = 1; insert into bag values (3, 'open across')`);
    await postgres.sql(`insert into bag values (4, 'beside')`);
    await across.query(`${dml('across')}; commit`);
    await postgres.sql(`${dml('across')}; insert into bag values (5, 'beside')`);
    await before.query(`insert into keyed values (11, 'after'); update untouched set v = 'after'; commit`);
    await placed();
    await postgres.sql(
      `${dml('hopeless')}; create table hopeless_too ${HOPELESS}; ${dml('hopeless_too')}; truncate hopeless`,
    );
    expect(await cluster.differences()).toEqual([]);
    expect(mirrored()).toEqual(['across', 'bag', 'besides', 'keyed', 's.t', 'untouched']);
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
    expect(await cluster.differences()).toEqual([]);
    expect(mirrored()).toEqual(
      [
        'across',
        'bag',
        'besides',
        'came',
        'filled',
        'keyed',
        'later',
        'later_bag',
        'n.bag',
        'n.later',
        'part',
        'parts',
        's.later',
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
      update made_good set v = 'x'; create unique index made_good_id on made_good (id); update made_good set v = 'y';
      alter table made_good replica identity using index made_good_id; ${dml('made_good')}`);
    await postgres.sql(
      `update s.turned set id = id + 10; alter table s.turned drop column g; ${dml('s.turned')}`,
    );
    expect(await cluster.differences()).toEqual([]);
    expect(mirrored()).toEqual(expect.arrayContaining(['hopeless', 'made_good', 's.turned']));
  });

  test('a table that the publication names can be made unlogged, in whatever way that is said', async () => {
    const { postgres } = cluster;
    const columns = '(id int primary key, v text)';
    await postgres.sql(`create table plain ${columns}; create table "Odd ""table""" ${columns}; create table n.same ${columns};
      create table dynamic ${columns}; create table by_function ${columns}; create table failed ${columns}; create table partner ${columns};
      create function unlog_one(name text) returns void language plpgsql as $$ begin execute format('alter table %I set unlogged', name); end $$;
      create function unlog_it() returns void language sql as 'alter table by_function set unlogged'`);
    const client = await postgres.client();
    const relation = async (name: string) => {
      const [row] = await postgres.sql(
        `select relpersistence as persistence, exists (select from pg_publication_rel where prrelid = c.oid) as named
           from pg_class c where c.oid = $1::regclass`,
        [name],
      );
      return row;
    };
    const all = ['plain', '"Odd ""table"""', 'n.same', 'dynamic', 'by_function'];
    for (const name of all) expect(await relation(name)).toEqual({ persistence: 'p', named: true });
    await client.query('alter table if exists only plain set unlogged');
    await client.query('ALTER TABLE "Odd ""table""" SET UNLOGGED');
    await client.query({ text: 'alter table n.same add column w int, set unlogged', name: 'prepared' });
    await client.query(`do $$ begin perform unlog_one('dyn' || 'amic'); end $$`);
    await client.query('select unlog_it()');
    for (const name of all) expect(await relation(name)).toEqual({ persistence: 'u', named: false });
    for (const name of all) await client.query(`insert into ${name} values (1, 'of no account')`);
    expect(await cluster.differences()).toEqual([]);
    expect(mirrored()).not.toEqual(expect.arrayContaining(['plain', 'dynamic']));

    // Only in name, refused, or rolled back: all stay as they are, and nothing that is written meanwhile is lost.
    const others = await postgres.client();
    await client.query('create table refers (id int primary key references partner)');
    await others.query(`begin; insert into partner values (1, 'open across')`);
    await client.query('alter table failed add column unlogged int /* as partner has it */');
    await client.query(`begin; insert into partner values (2, 'before'); alter table failed set unlogged /* partner */;
      insert into partner values (3, 'after'); rollback`);
    await client.query(`begin; insert into partner values (4, 'before'); alter table failed alter unlogged type text /* partner */;
      insert into partner values (5, 'after'); commit`);
    await others.query(`insert into partner values (6, 'open across'); commit`);
    await expect(client.query('alter table partner set unlogged')).rejects.toThrow(/references logged table/);
    for (const name of ['partner', 'failed', 'refers'])
      expect(await relation(name)).toEqual({ persistence: 'p', named: true });
    for (const name of all) await client.query(`alter table ${name} set logged`);
    for (const name of all) await client.query(`insert into ${name} values (2, 'back')`);
    expect(await cluster.differences()).toEqual([]);
    for (const name of all) expect(await relation(name)).toEqual({ persistence: 'p', named: true });

    await postgres.sql('alter event trigger _rivulet_untie disable');
    await expect(postgres.sql('alter table plain set unlogged')).rejects.toThrow(/part of a publication/);
    await postgres.sql('alter event trigger _rivulet_untie enable always');
    await postgres.sql('alter table plain set unlogged');
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
    await postgres.sql('alter function rivulet.keep_published_tables(oid[]) rename to gone');
    await postgres.sql(`create table unseen (id int, v text); ${dml('unseen')};
      create schema unseen create table t (id int, v text); ${dml('unseen.t')}`);
    await postgres.sql('alter function rivulet.gone(oid[]) rename to keep_published_tables');
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

describe.each(MAJORS)('Postgres %i: tables of a list', (major) => {
  test('leave it while they cannot be in it, and come back', async () => {
    await using cluster = await TestCluster.start({ major });
    const { postgres } = cluster;
    await postgres.sql(`create table a (id int primary key, v text); create table b (id int primary key, v text);
      create table other (id int primary key); insert into a values (1, 'a'); insert into b values (1, 'b')`);
    await cluster.startReplicator({ RIVULET_TABLES: 'a,b' });
    await cluster.startReplica('one');
    const steps = [
      'alter table a set unlogged; update a set v = v || 1; insert into b values (2)',
      'alter table a set logged; update a set v = v || 2; insert into b values (3)',
      ...(major < 18
        ? []
        : [
            `alter table b drop constraint b_pkey, add column g int generated always as (id + 1) virtual; ${dml('b')}`,
            `alter table b add primary key (id); insert into b (id) values (7)`,
          ]),
    ];
    for (const step of steps) {
      await postgres.sql(step);
      expect(await cluster.differences()).toEqual([]);
    }
    const published = 'select tablename from pg_publication_tables order by 1';
    expect(await postgres.sql(published)).toEqual([{ tablename: 'a' }, { tablename: 'b' }]);
  });
});
