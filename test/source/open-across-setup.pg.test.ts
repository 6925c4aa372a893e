import Database from 'better-sqlite3';
import type pg from 'pg';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { awaitOpenDefinitions } from '../../src/source/open-definitions.ts';
import { beginReading } from '../../src/source/published-tables.ts';
import { setup } from '../../src/source/setup.ts';
import { teardown } from '../../src/source/teardown.ts';
import { TestCluster } from '../helpers/cluster.ts';
import { MAJORS } from '../helpers/postgres.ts';
import { waitUntil } from '../helpers/wait-until.ts';

const NAMES = { publication: 'rivulet', slot: 'rivulet' };
const HOPELESS = '(id int, g int generated always as (id + 1))';
const use = (table: string): string =>
  `insert into ${table} (id) values (1), (2); update ${table} set id = 3 where id = 1; delete from ${table} where id = 2`;

describe.each(MAJORS)('Postgres %i: transactions that are open while set-up comes', (major) => {
  const hasHopeless = major >= 18;
  let cluster: TestCluster;
  let open: pg.Client;

  beforeEach(async () => {
    cluster = await TestCluster.start({ major, settings: { max_prepared_transactions: '2' } });
    open = await cluster.postgres.client();
    await cluster.postgres.sql(
      `create table keyed (id int primary key, v text); insert into keyed select i, 'a' from generate_series(1, 100) i;
       create table other (id int primary key)`,
    );
  });
  afterEach(() => cluster?.[Symbol.asyncDispose]());

  const setUp = () => setup({ url: cluster.postgres.url, ...NAMES, log: () => undefined });

  test.each(['read committed', 'repeatable read', 'serializable'])(
    'go on with a snapshot from before, %s, and all that they change is mirrored',
    async (level) => {
      // It has no number until it writes: the slot does not wait for it.
      const still = await cluster.postgres.client();
      for (const client of [open, still])
        await client.query(`begin isolation level ${level}; select from keyed`);
      await setUp();
      await open.query(`create table made (id int); ${use('made')};
        alter table other drop constraint other_pkey; ${use('other')}`);
      await open.query('commit');
      await cluster.startReplicator();
      await cluster.startReplica('one');
      await cluster.caughtUp();
      // No row comes of the one, and none is described otherwise.
      await still.query(`alter table keyed alter v type text using upper(v); create table bag (id int); ${use('bag')};
        alter table made add column n int; commit`);
      await waitUntil('the table that was rewritten', () => first(cluster.file('one')) === 'A');
      expect(await cluster.differences()).toEqual([]);
    },
  );

  test('are waited for if they make or change tables, and go on with these', async () => {
    await open.query('begin; create table made (id int); alter table other drop constraint other_pkey');
    if (hasHopeless) await open.query(`create table hopeless ${HOPELESS}`);
    let isDone = false;
    const settingUp = setUp().then((report) => {
      isDone = true;
      return report;
    });
    await waitUntil('set-up to have come to the publication', async () => {
      const rows = await cluster.postgres.sql(
        `select from pg_class where relname = 'config' and pg_relation_size(oid) > 0`,
      );
      return rows.length === 1;
    });
    await open.query(`${use('made')}; ${use('other')}`);
    if (hasHopeless) await open.query(use('hopeless'));
    // Set-up has looked by now, and would be through by the next time if it did not wait.
    await waitUntil('set-up to look again', async () => {
      const rows = await cluster.postgres.sql(
        `select from pg_stat_activity where application_name = 'rivulet setup' and query like '%virtualtransaction%'`,
      );
      return rows.length === 1;
    });
    expect(isDone).toBe(false);
    await open.query('commit');
    const { tables, missing } = await settingUp;
    expect(tables).toEqual(['"public"."keyed"', '"public"."made"', '"public"."other"']);
    expect(missing).toEqual([]);
    await open.query(`${use('made')}; ${use('other')}`);
    if (hasHopeless) await open.query(use('hopeless'));
    await teardown({ url: cluster.postgres.url, ...NAMES, log: () => undefined });
    expect(
      await cluster.postgres.sql(`select from pg_class where relreplident = 'f' or relname = 'config'`),
    ).toEqual([]);
  });

  test('get their identities back from teardown', async () => {
    await setUp();
    await open.query('begin; create table made (id int); alter table other drop constraint other_pkey');
    const tearDown = (openTransactionsTimeoutMs: number) =>
      teardown({ url: cluster.postgres.url, ...NAMES, log: () => undefined, openTransactionsTimeoutMs });
    await expect(tearDown(100)).rejects.toMatchObject({
      code: 'REPLICA_IDENTITY',
      hint: expect.stringMatching(/again when they have ended/),
    });
    const tearing = tearDown(60_000);
    await waitUntil('teardown to wait', async () => {
      const rows = await cluster.postgres.sql('select from pg_locks where not granted');
      return rows.length > 0;
    });
    await open.query(`${use('made')}; ${use('other')}; commit`);
    expect((await tearing).did).toContain('gave "public"."made" back its replica identity');
    expect(await cluster.postgres.sql(`select from pg_class where relreplident = 'f'`)).toEqual([]);
  });

  test('are named if set-up has waited in vain, and leave nothing behind', async () => {
    await open.query(`begin; create table made (id int); prepare transaction 'forgotten'`);
    const client = await cluster.postgres.client();
    const said: string[] = [];
    const log = (message: string): void => void said.push(message);
    await expect(
      awaitOpenDefinitions(client, { what: 'the publication', log, timeoutMs: 100 }),
    ).rejects.toMatchObject({
      code: 'SLOT_CREATION_BLOCKED',
      hint: expect.stringMatching(/prepared transaction 'forgotten' \(\d s\)/),
    });
    // Only those that were there at first.
    const waiting = awaitOpenDefinitions(client, { what: 'the publication', log });
    await waitUntil('it to look', async () => {
      const rows = await cluster.postgres.sql(
        `select from pg_stat_activity where application_name <> 'rivulet setup' and query like 'select coalesce(array_agg(distinct l.virtualtransaction%'`,
      );
      return rows.length === 1;
    });
    await open.query('begin; create table later (id int)');
    await cluster.postgres.sql(`commit prepared 'forgotten'`);
    await waiting;
    await open.query('commit');
    const once = 'the publication waits for a transaction that is making or changing tables';
    expect(said).toEqual([once, once]);
  });

  test.runIf(hasHopeless)('keep no table from leaving the publication', async () => {
    // Locks a table that would have to be named, and makes another one.
    await open.query('begin; alter table other add column w int');
    const maker = await cluster.postgres.client();
    await maker.query('begin; select pg_current_xact_id()');
    const { postgres } = cluster;
    await postgres.sql('create schema s; create table s.kept (id int primary key)');
    const settingUp = setUp();
    await waitUntil('set-up to have come to the publication', async () => {
      const rows = await postgres.sql(
        `select from pg_class where relname = 'config' and pg_relation_size(oid) > 0`,
      );
      return rows.length === 1;
    });
    await maker.query('create table s.made (id int primary key); insert into s.made values (1)');
    await open.query('commit; begin; insert into other values (1)');
    await settingUp;
    await postgres.sql(`create table hopeless ${HOPELESS}; ${use('hopeless')}`);
    await maker.query('lock table other in share update exclusive mode');
    await postgres.sql(`create table s.hopeless ${HOPELESS}; ${use('s.hopeless')}; drop table s.hopeless`);
    await postgres.sql('create table other_schema (id int primary key)');
    const started = cluster.startReplicator();
    await maker.query(`insert into s.made values (2); commit`);
    await open.query('commit');
    await started;
    await cluster.startReplica('one');
    await postgres.sql(
      `${use('hopeless')}; insert into s.made values (3); insert into other_schema values (1)`,
    );
    expect(await cluster.differences()).toEqual([]);
    expect(tablesIn(cluster.file('one'))).toEqual(['keyed', 'other', 'other_schema', 's.kept', 's.made']);
  });

  test.runIf(hasHopeless)('name the tables that they have made before anybody reads', async () => {
    await setUp();
    const { postgres } = cluster;
    const since = () =>
      postgres.sql('select relation_oid::regclass::text as name, since from rivulet.named_table order by 1');
    expect(await since()).toEqual([
      { name: 'keyed', since: null },
      { name: 'other', since: null },
    ]);
    await postgres.sql('drop event trigger rivulet_ddl; create table late (id int primary key)');
    await open.query('begin; lock table late in share update exclusive mode');
    const client = await postgres.client();
    const beginning = beginReading(client, NAMES);
    await open.query('commit');
    await beginning;
    expect(await since()).toContainEqual({ name: 'late', since: null });
    expect(await postgres.sql('select from rivulet.config where unread_since is null')).toHaveLength(1);
    await postgres.sql('create table later (id int primary key)');
    await beginReading(client, NAMES);
    while ((await client.query(`select rivulet.name_tables('rivulet') as is_more`)).rows[0].is_more);
    expect(await since()).toContainEqual({ name: 'later', since: expect.stringMatching(/^\d+$/) });
  });
});

function first(file: string): unknown {
  const db = new Database(file, { readonly: true });
  try {
    return db.prepare('select v from keyed where id = 1').pluck().get();
  } finally {
    db.close();
  }
}

function tablesIn(file: string): unknown[] {
  const db = new Database(file, { readonly: true });
  try {
    return db.prepare('select sqlite_name from _rivulet_table order by 1').pluck().all();
  } finally {
    db.close();
  }
}
