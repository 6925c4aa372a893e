import type pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { keepPublishedTables } from '../../src/source/published-tables.ts';
import { setup } from '../../src/source/setup.ts';
import { MAJORS, startPostgres, type TestPostgres } from '../helpers/postgres.ts';
import { waitUntil } from '../helpers/wait-until.ts';

/** A publication of a list, so that whatever leaves it is out. */
describe.each(MAJORS)('Postgres %i: SET UNLOGGED of tables that a publication names', (major) => {
  let server: TestPostgres;
  let client: pg.Client;
  let other: pg.Client;

  beforeAll(async () => {
    server = await startPostgres({ major, settings: { wal_level: 'logical', max_prepared_transactions: 2 } });
    [client, other] = [await server.client(), await server.client()];
    await client.query(`create schema old; create role plain; create table events (id int primary key, v text);
      create table orders (id int primary key, v text); create table plain (id int primary key)`);
    const tables = ['events', 'orders', 'plain'];
    await setup({ url: server.url, publication: 'rivulet', slot: 'rivulet', tables, log: () => undefined });
    if (major >= 15)
      await client.query(
        'alter publication rivulet set table only events where (id > 5), only orders (id), only plain',
      );
  });
  afterAll(() => server?.close());

  const published = async (): Promise<unknown[]> =>
    (
      await client.query(
        `select concat(tablename, to_jsonb(p) -> 'attnames', to_jsonb(p) ->> 'rowfilter') as part from pg_publication_tables p order by 1`,
      )
    ).rows.map(({ part }) =>
      part
        .replace(/ AND \('rivulet\.tie_\d+\(\)'::regprocedure IS NOT NULL\)\)$/, ')')
        .replace(/\('rivulet\.tie_.*/, ''),
    );
  // Columns and row filter came with 15.
  const ALL =
    major >= 15
      ? ['events["id", "v"]((id > 5))', 'orders["id"]', 'plain["id"]']
      : ['events', 'orders', 'plain'];

  const waiting = (on: pg.Client, atLeast = '0 s'): Promise<unknown> =>
    waitUntil('the lock to be waited for', async () => {
      const rows = await server.sql(
        `select from pg_stat_activity where pid = $1 and state = 'active' and wait_event is not null
            and clock_timestamp() - query_start >= $2::interval`,
        [(on as pg.Client & { processID: number }).processID, atLeast],
      );
      return rows.length > 0;
    });

  test('is about no other table of that name, or that is only spoken of', async () => {
    for (const sql of [
      'alter table if exists old.events set unlogged',
      'create temp table orders (id int); alter table orders add column unlogged int; drop table pg_temp.orders',
      'create table made (id int primary key); alter table made set unlogged /* events */; select from orders; drop table made',
      'alter table if exists gone add column a int; alter table events add column unlogged int; alter table events drop column unlogged',
      'begin; alter table events set unlogged; rollback',
    ]) {
      await client.query(sql);
      expect(await published()).toEqual(ALL);
    }
  });

  test('keeps columns and row filter', async () => {
    for (const table of ['orders', 'public . Events', 'postgres.public."events"']) {
      await client.query(`ALTER TABLE ${table} /* don't; */ ALTER v SET DEFAULT ';',
        -- not "yet
        SET UNLOGGED`);
      expect(await published()).toHaveLength(2);
      await client.query(`alter table ${table} set logged`);
      expect(await published()).toEqual(ALL);
    }
  });

  test('goes however it is written', async () => {
    for (const sql of [
      `alter table events alter v set default $$it's; $$, set unlogged`,
      `alter table events alter v set default E'it\\'s', set unlogged`,
      'alter/**/table/**/events/**/set unlogged',
      'alter /* a /* nested */ comment */ table events set unlogged',
      'do $do$ begin if false then alter table orders set unlogged; end if; alter table events set unlogged; end $do$',
    ]) {
      await client.query(sql);
      expect(await published(), sql).toEqual(ALL.slice(1));
      await client.query('alter table events set logged');
      expect(await published()).toEqual(ALL);
    }
  });

  test('goes in a function, whatever language the server speaks', async () => {
    await client.query(`create function quick() returns void language sql as 'alter table events set unlogged';
      create function "Quick one"() returns void language sql as 'alter table events set unlogged';
      create function run(statement text) returns void language plpgsql as 'begin execute statement; end'`);
    for (const call of [
      'select quick()',
      'select "Quick one"()',
      'select run($$select quick()$$)',
      'select run($$alter table events set unlogged$$)',
    ]) {
      await client.query(call);
      expect(await published(), call).toEqual(ALL.slice(1));
      await client.query('alter table events set logged');
    }
    const hook = 'PL/pgSQL-Funktion rivulet.on_alter_table() Zeile 5 bei PERFORM';
    for (const caller of [
      'SQL-Funktion »quick« Anweisung 1',
      'SQL-Funktion »Quick one« Anweisung 1',
      'SQL-Anweisung »alter table events set unlogged«\nPL/pgSQL-Funktion run(text) Zeile 1 bei EXECUTE',
    ]) {
      const { rows } = await client.query(
        `select t::regclass::text as name from unnest(rivulet.unlogged_tables($1, $2, $3)) t`,
        ['select', `${hook}\n${caller}`, ['public']],
      );
      expect(rows, caller).toEqual([{ name: 'events' }]);
    }
    await client.query('drop function quick, "Quick one", run');
    expect(await published()).toEqual(ALL);
  });

  test('of several statements in one text only the one that says so', async () => {
    for (const text of [
      'alter table orders add column a int default 1 - 1; /* alter table plain */ alter table events set unlogged',
      `begin; alter table orders add column a text default '; alter table'; -- don't; alter
        commit; alter table events set unlogged`,
      'alter table orders add column "alter table; " int; alter table if exists only events set unlogged; alter table events set logged',
    ]) {
      // Somebody holds up the first of them.
      await other.query('begin; lock table orders in access share mode');
      const altering = client.query(text);
      await waiting(client);
      await other.query('set local lock_timeout = 100; analyze events; create index on events (v); commit');
      await altering;
      await client.query('alter table events set logged');
      const columns = await client.query(
        `select attname from pg_attribute where attrelid = 'orders'::regclass and attnum > 2 and not attisdropped`,
      );
      await client.query(`alter table orders drop column "${columns.rows[0].attname}"`);
      expect(await published()).toEqual(ALL);
    }
  });

  // From 18 on Postgres refuses it: https://www.postgresql.org/docs/18/release-18.html
  test.runIf(major < 18)('means nothing for a partitioned table, as without a publication', async () => {
    await client.query(
      'create table parted (id int primary key) partition by range (id); alter publication rivulet add table parted',
    );
    await client.query('alter table parted set unlogged');
    expect((await published()).filter((each) => `${each}`.startsWith('parted'))).toHaveLength(1);
    await client.query('drop table parted');
    expect(await published()).toEqual(ALL);
  });

  test('what comes back is not part of a deadlock', async () => {
    await client.query('begin isolation level serializable; alter table events set unlogged; commit');
    await client.query('begin isolation level serializable; alter table events set logged; commit');
    expect(await published()).toEqual(ALL.slice(1));
    await client.query('begin; insert into events values (7)');
    const coming = keepPublishedTables({
      client: other,
      publication: 'rivulet',
      log: () => undefined,
      attempts: 100,
    });
    await waitUntil('it to wait for the table', async () => {
      const rows = await server.sql(
        `select from pg_locks where relation = 'events'::regclass and not granted`,
      );
      return rows.length > 0;
    });
    await client.query('alter table events add column w int; commit');
    expect(await coming).toEqual([]);
    await client.query('alter table events drop column w; delete from events');
    expect(await published()).toEqual(ALL);
  });

  test('goes when the function for it is broken, too, and takes nothing else with it', async () => {
    for (const name of ['unlogged_tables(text, text, name[])', 'untie(oid)']) {
      const gone = name.replace(/^\w+/, 'gone');
      await client.query(`alter function rivulet.${name} rename to gone`);
      try {
        await client.query('alter table Events set unlogged /* and not orders */');
      } finally {
        await client.query(`alter function rivulet.${gone} rename to ${/^\w+/.exec(name)}`);
      }
      await keepPublishedTables({ client, publication: 'rivulet', log: () => undefined });
      expect(await published()).toEqual(ALL.slice(1));
      await client.query('alter table events set logged');
      if (!name.startsWith('untie')) expect(await published()).toEqual(ALL);
    }
    // Nobody had noted what it was published with.
    await client.query(
      `alter publication rivulet add table only events ${major >= 15 ? 'where (id > 5)' : ''}`,
    );
    expect(await published()).toEqual(ALL);
  });

  test.runIf(major >= 18)(
    'so does what no identity helps, and comes back with columns and row filter',
    async () => {
      await client.query('alter function rivulet.weak_identity_of_few(oid[]) rename to gone');
      await client.query(
        'alter table events drop constraint events_pkey, add column g int generated always as (id + 1); update events set id = id',
      );
      expect(await published()).toEqual(ALL.slice(1));
      await client.query('alter function rivulet.gone(oid[]) rename to weak_identity_of_few');
      await client.query('alter table events drop column g, add primary key (id)');
      expect(await published()).toEqual(ALL);
    },
  );

  test('lets nobody touch what is not his', async () => {
    await other.query('set role plain; create temp table mine (id int)');
    await other.query(
      'begin; alter table mine add column unlogged int /* alter table events set unlogged */',
    );
    const { rows } = await client.query(`select from pg_locks where relation = 'events'::regclass`);
    expect(rows).toEqual([]);
    await other.query('commit');
    await expect(other.query('alter table events set unlogged')).rejects.toThrow(/must be owner/);
    for (const call of [`untie('events'::regclass)`, `name_table('rivulet', 'events'::regclass, null, null)`])
      await expect(other.query(`select rivulet.${call}`)).rejects.toThrow(/permission denied/);
    // What it goes by is set for each statement anew.
    await other.query(`select set_config('rivulet.unlogging', ('events'::regclass::oid)::text, false)`);
    await other.query('alter table mine add column v int');
    await other.query(`select set_config('rivulet.untied', 'nonsense', false)`);
    await other.query('alter table mine add column w int; reset all');
    await other.query('reset role');
    expect(await published()).toEqual(ALL);
    await client.query('alter table plain owner to plain; grant usage on schema public to plain');
    await other.query(
      'set role plain; alter table plain set unlogged; alter table plain set logged; reset role',
    );
    expect(await published()).toEqual(ALL);
  });

  test('waits for what it would wait for anyway, and for no other change of the publication', async () => {
    await other.query(
      'begin; lock table events in share update exclusive mode; insert into orders values (1)',
    );
    await client.query(`alter table plain set unlogged; select from events; alter table plain set logged`);
    const unlogged = client.query('alter table events set unlogged');
    // Longer than the deadlock check takes to come.
    await waiting(client, '1.5 s');
    await other.query('commit');
    await unlogged;
    await client.query('alter table events set logged');
    await other.query(`begin; alter table orders set unlogged`);
    await client.query('alter table events set (fillfactor = 90); alter table plain set unlogged');
    await other.query(`alter table orders set logged; prepare transaction 'logged'`);
    await client.query('alter table plain set logged; alter table plain set unlogged');
    await other.query(`commit prepared 'logged'`);
    await client.query('alter table plain set logged');
    await keepPublishedTables({ client, publication: 'rivulet', log: () => undefined });
    expect(await published()).toEqual(ALL);
  });
});
