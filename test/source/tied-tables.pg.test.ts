import { chmodSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { connect } from '../../src/source/connection.ts';
import { readRowFilters } from '../../src/source/copy-plan.ts';
import { readListProblems } from '../../src/source/listed-tables.ts';
import { keepPublishedTables } from '../../src/source/published-tables.ts';
import { setup } from '../../src/source/setup.ts';
import { teardown } from '../../src/source/teardown.ts';
import { MAJORS, startPostgres, type TestPostgres } from '../helpers/postgres.ts';
import { waitUntil } from '../helpers/wait-until.ts';

const NAMES = { publication: 'rivulet', slot: 'rivulet', log: () => undefined };
const HOPELESS = 'g int generated always as (id + 1) virtual';

/**
 * See sql/007_published_tables.sql. One transaction has altered the publication, and stays open: nobody else can alter it.
 * What the others do must need nothing of it.
 */
describe.each(
  MAJORS.filter((major) => major >= 15).flatMap((major) => [
    { major, tables: ['a', 'b', 'events', 'refers'] },
    ...(major >= 18 ? [{ major, tables: undefined }] : []),
  ]),
)('Postgres $major, published: $tables', ({ major, tables }) => {
  let server: TestPostgres;
  let altering: pg.Client;
  let old: Record<string, pg.Client>;
  let user: pg.Client;

  beforeAll(async () => {
    server = await startPostgres({ major, settings: { wal_level: 'logical', deadlock_timeout: '50ms' } });
    [altering, user] = [await server.client(), await server.client()];
    await user.query(`create table a (id int primary key, v text); create table b (id int primary key, v text);
      create table events (id int primary key, v text); create table refers (id int primary key references b);
      create domain id as int; create table domained (id id primary key, v text); insert into domained values (1);
      create table parted (id int primary key) partition by list (id); create table part partition of parted default`);
    old = {};
    for (const isolation of ['repeatable read', 'serializable']) {
      old[isolation] = await server.client();
      await old[isolation].query(`begin isolation level ${isolation}; select 1`);
    }
    await setup({
      url: server.url,
      ...NAMES,
      patienceMs: 10,
      ...(tables === undefined ? {} : { tables: [...tables, 'domained', 'parted'] }),
    });
    await altering.query('begin; alter publication rivulet add table rivulet.migration');
  });
  afterAll(() => server?.close());

  const named = async (client: pg.Client = user): Promise<unknown[]> =>
    (
      await client.query('select prrelid::regclass::text as name from pg_publication_rel order by 1')
    ).rows.map(({ name }) => name);

  test('a table becomes UNLOGGED, in transactions too that are older than set-up', async () => {
    await user.query('begin');
    for (const client of [user, ...Object.values(old)])
      await client.query(
        'savepoint s; alter table events set unlogged; alter table if exists a set unlogged; rollback to s',
      );
    await user.query('commit');
    await user.query('begin; alter table events set unlogged');
    expect(await named()).not.toContain('events');
    await user.query('rollback');
    expect(await named()).toContain('events');
  });

  test.runIf(major >= 18)('one that no identity helps leaves, there too', async () => {
    await user.query('begin');
    for (const client of [user, ...Object.values(old)])
      await client.query(`savepoint s; alter table a drop constraint a_pkey, add column ${HOPELESS};
        insert into a (id) values (1); update a set id = 2; delete from a; rollback to s;
        alter table parted drop constraint parted_pkey, add column ${HOPELESS};
        insert into parted (id) values (1); update parted set id = 2; delete from part; rollback to s;
        create table made (id int, ${HOPELESS}); insert into made values (1); update made set id = 2; rollback to s`);
    await user.query('commit');
  });

  test('one whose key goes while a cursor is open on it takes UPDATE all the same', async () => {
    await user.query('begin; declare c cursor for select * from domained; fetch c');
    await user.query(`drop domain id cascade; update domained set v = 'x'; rollback`);
  });

  test('of several statements in one text none locks a table that it does not touch', async () => {
    const other = await server.client();
    await other.query('begin; lock table a in access share mode');
    for (const text of [
      `alter table a add column x text default E'\\\\'; alter table events set unlogged`,
      'alter table a add column x int default length($$;$$); alter table events set unlogged',
      'begin; alter table a add column x int; rollback; alter table events set unlogged; rollback',
    ]) {
      const altered = user.query(text);
      await waitUntil('it to wait for the first', async () => {
        const rows = await server.sql(`select from pg_locks where relation = 'a'::regclass and not granted`);
        return rows.length > 0;
      });
      await server.sql(`set lock_timeout = '100ms'; analyze events; create index on events (v);
        drop index events_v_idx; reset lock_timeout`);
      await other.query('commit');
      await altered;
      await user.query('alter table events set logged; alter table a drop column if exists x');
      await other.query('begin; lock table a in access share mode');
    }
    await other.query('commit');
  });

  test('what is refused otherwise, or undone, leaves all as it was', async () => {
    await altering.query('commit');
    await keepPublishedTables({ client: user, publication: 'rivulet', log: () => undefined });
    const before = await named();
    await expect(user.query('alter table b set unlogged')).rejects.toThrow(/references logged table/);
    await user.query('begin; alter table a set unlogged; rollback');
    await user.query('begin; drop table if exists refers; alter table b set unlogged; rollback');
    expect(await named()).toEqual(before);
    await user.query('begin; alter table a set unlogged; alter table a set logged; commit');
    expect(await named()).toEqual(before);
    await altering.query('begin; alter publication rivulet add table rivulet.epoch');
  });

  test('a new table comes a little later', async () => {
    await user.query(
      'create table beside (id int primary key); insert into beside values (1); update beside set id = 2',
    );
    await altering.query('commit');
    expect(await named()).not.toContain('beside');
    const client = await server.client();
    expect(await keepPublishedTables({ client, publication: 'rivulet', log: () => undefined })).toEqual([]);
    expect(await named()).toEqual(tables === undefined ? expect.arrayContaining(['beside']) : await named());
    expect((await named()).includes('beside')).toBe(tables === undefined);
    await altering.query('begin; alter publication rivulet drop table rivulet.epoch');
  });

  test('who takes a table in just now is waited for', async () => {
    await altering.query('commit');
    await user.query('alter table events set unlogged');
    const taking = await server.client();
    await user.query('begin isolation level serializable; alter table events set logged; commit');
    expect(await named()).not.toContain('events');
    await taking.query(`begin; select rivulet.place_table('rivulet', 'events'::regclass)`);
    const other = await server.client();
    for (const text of [
      'alter table events set unlogged',
      'alter table a add column x int; alter table events set unlogged',
    ]) {
      const unlogging = other.query(text);
      await waitUntil('it to wait', async () => {
        const rows = await server.sql(
          `select from pg_stat_activity where pid = $1 and wait_event is not null and state = 'active'`,
          [(other as pg.Client & { processID: number }).processID],
        );
        return rows.length > 0;
      });
      await taking.query('commit');
      await unlogging;
      await user.query('begin isolation level serializable; alter table events set logged; commit');
      await taking.query(`begin; select rivulet.place_table('rivulet', 'events'::regclass)`);
    }
    await taking.query('commit');
    await user.query('alter table a drop column x');
    expect(await named()).toContain('events');
    await altering.query('begin');
  });

  test('no serializable transaction fails for the tables of another', async () => {
    await altering.query('commit');
    const both = [user, await server.client()];
    for (const columns of ['(id int primary key)', '(id int, v text)']) {
      for (const client of both) await client.query('begin isolation level serializable');
      for (const [index, client] of both.entries())
        await client.query(`create table serial${index} ${columns}; insert into serial${index} values (1);
          alter table serial${index} add column w int; update serial${index} set w = 1`);
      for (const client of both) await client.query('commit');
      await user.query('drop table serial0, serial1');
    }
    expect(
      await server.sql(`select from pg_proc where proname ~ '^tie_' and proname !~ '^tie_(of|tables)$'
      and not exists (select from pg_class c where proname = 'tie_' || c.oid)`),
    ).toEqual([]);
  });

  test('what somebody names himself is tied, and keeps its columns and row filter', async () => {
    await user.query('create table own (id int primary key, v text, w int)');
    const part = async () =>
      (
        await user.query(
          `select prattrs::text as columns, pg_get_expr(prqual, prrelid) as filter, prrelid as oid
             from pg_publication_rel where prrelid = 'own'::regclass`,
        )
      ).rows[0];
    await user.query(
      `${tables === undefined ? 'alter publication rivulet drop table own; ' : ''}alter publication rivulet add table only own (id, v) where (id > 5 and v <> '')`,
    );
    const { oid, ...own } = await part();
    expect(own).toEqual({
      columns: '1 2',
      filter: `((id > 5) AND (v <> ''::text) AND ('rivulet.tie_${oid}()'::regprocedure IS NOT NULL))`,
    });
    expect(await readRowFilters(user, 'rivulet')).toEqual(new Map([[oid, `((id > 5) AND (v <> ''::text))`]]));
    await user.query('alter table own set unlogged; alter table own set logged');
    expect(await part()).toEqual({ oid, ...own });
    await user.query('begin isolation level serializable; alter table own set unlogged; commit');
    await user.query('begin isolation level serializable; alter table own set logged; commit');
    await keepPublishedTables({ client: user, publication: 'rivulet', log: () => undefined });
    expect(await part()).toEqual({ oid, ...own });
    // Where the hooks do not see it, set-up and the replicator do it.
    await user.query('alter event trigger _rivulet_ddl disable');
    await user.query('alter publication rivulet drop table own; alter publication rivulet add table own');
    await user.query('alter event trigger _rivulet_ddl enable always');
    expect(await part()).toEqual({ oid, columns: null, filter: null });
    await keepPublishedTables({ client: user, publication: 'rivulet', log: () => undefined });
    expect(await part()).toEqual({
      oid,
      columns: null,
      filter: `('rivulet.tie_${oid}()'::regprocedure IS NOT NULL)`,
    });
    expect(await readRowFilters(user, 'rivulet')).toEqual(new Map());
  });

  test('a partitioned table is not tied where its partitions are published by themselves', async () => {
    const alter = (to: string) =>
      user.query(`alter publication rivulet set (publish_via_partition_root = ${to})`);
    await expect(alter('false')).rejects.toThrow(/publish_via_partition_root/);
    await user.query('alter publication rivulet drop table parted');
    await alter('false');
    await user.query('alter publication rivulet add table parted');
    await keepPublishedTables({ client: user, publication: 'rivulet', log: () => undefined });
    const isTied = async () =>
      (await user.query(`select rivulet.is_tied('parted'::regclass) as is_tied`)).rows[0].is_tied;
    expect([await named(), await isTied()]).toEqual([expect.arrayContaining(['parted']), false]);
    await alter('true');
    expect(await isTied()).toBe(true);
  });

  test('an older snapshot takes neither a table of a list for good, nor what it was published with', async () => {
    const older = await server.client();
    for (const isolation of ['repeatable read', 'serializable']) {
      await user.query('create table since (id int primary key, v text, secret text)');
      await older.query(`begin isolation level ${isolation}; select 1`);
      if (tables === undefined) await user.query('alter publication rivulet drop table since');
      await user.query(`alter publication rivulet add table since (id, v) where (v <> 'hidden')`);
      const part = async () =>
        (
          await user.query(
            `select prattrs::text as columns, pg_get_expr(prqual, prrelid) as filter from pg_publication_rel where prrelid = 'since'::regclass`,
          )
        ).rows;
      const before = await part();
      await older.query('alter table since set unlogged; alter table since set logged; commit');
      await keepPublishedTables({ client: user, publication: 'rivulet', log: () => undefined });
      expect(await part()).toEqual(before);
      await user.query('drop table since');
    }
  });

  test('a text that says so of a table long before holds up nobody who does it', async () => {
    const other = await server.client();
    await other.query(
      `begin; alter table b alter v set storage external; /* later */ savepoint s; alter table b alter v set storage main; /* alter table a set unlogged */`,
    );
    await user.query(
      `set statement_timeout = '5s'; alter table a set unlogged; alter table a set logged; reset statement_timeout`,
    );
    await other.query('rollback');
    await keepPublishedTables({ client: user, publication: 'rivulet', log: () => undefined });
    expect(await named()).toContain('a');
  });

  test('whose wait it is has his own timeout', async () => {
    const reader = await server.client();
    await reader.query('begin; select from a');
    await user.query(`set lock_timeout = '300ms'`);
    await expect(user.query('alter table a set unlogged')).rejects.toMatchObject({ code: '55P03' });
    await reader.query('commit');
    await user.query('reset lock_timeout');
    expect(await named()).toContain('a');
  });

  test('however it is written, and whoever may call what', async () => {
    for (const sql of [
      'alter table U&"\\0065vents" set unlogged',
      'alter table events set /* a /* b */ c */ unlogged',
      `select 1 /* ${'x'.repeat(1_100_000)} */; alter table events Set Unlogged`,
      'alter table only (events) set unlogged',
      'alter table if exists only( events ) set unlogged',
    ]) {
      await user.query(`begin; ${sql}; rollback`);
    }
    await server.sql(`create role stranger; create schema strange authorization stranger`);
    await user.query(
      'create table strange.own (id int primary key); alter table strange.own owner to stranger',
    );
    if (tables !== undefined) await user.query('alter publication rivulet add table strange.own');
    await user.query('set role stranger; alter table strange.own set unlogged; reset role');
    // What speaks of a hook's function is no call of it.
    await user.query(`alter table strange.own set logged; do $do$ begin
      execute 'alter table strange.own set unlogged /* rivulet.keep_identity( */'; end $do$`);
    await user.query('drop schema strange cascade; drop role stranger');
  });

  test('an index that identified rows is dropped beside readers', async () => {
    await user.query(
      'create table indexed (id int not null, v text); create unique index indexed_i on indexed (id)',
    );
    await user.query(
      'alter table indexed replica identity using index indexed_i; insert into indexed values (1)',
    );
    if (tables !== undefined) await user.query('alter publication rivulet add table indexed');
    await keepPublishedTables({ client: user, publication: 'rivulet', log: () => undefined });
    const [early, late] = [await server.client(), await server.client()];
    await early.query('begin; select from indexed');
    const dropping = user.query('drop index concurrently indexed_i');
    await waitUntil('it to wait for the reader', async () => {
      const rows = await server.sql(
        `select from pg_stat_activity where query like 'drop index conc%' and wait_event_type = 'Lock'`,
      );
      return rows.length > 0;
    });
    await late.query('begin; select from indexed');
    await early.query('commit');
    await waitUntil('it to wait for the next', async () => {
      const rows = await server.sql(
        `select from pg_stat_activity where query like 'drop index conc%' and wait_event_type = 'Lock'`,
      );
      return rows.length > 0;
    });
    const next = await server.client();
    await next.query('begin; select from indexed');
    await late.query('commit');
    await waitUntil('it to be through, or to wait for that one', async () => {
      const [row] = await server.sql<{ is_waiting: boolean; is_done: boolean }>(
        `select exists (select from pg_stat_activity where query like 'drop index conc%' and wait_event_type = 'Lock') as is_waiting,
                to_regclass('indexed_i') is null as is_done`,
      );
      if (row!.is_waiting) await next.query('commit; begin; select from indexed');
      return row!.is_done;
    });
    await dropping;
    await user.query('update indexed set id = 2');
    await next.query('commit');
    await user.query('drop table indexed');
  });

  test('an event trigger of the application may write to the table at once', async () => {
    await user.query(`create function seed() returns event_trigger language plpgsql as $$ begin
        if to_regclass('seeded') is not null then update seeded set id = id + 1; end if; end $$;
      create event trigger a_seed on ddl_command_end execute function seed()`);
    await user.query('create table seeded as select 1 as id; alter table seeded add primary key (id)');
    await user.query('alter table seeded drop constraint seeded_pkey');
    await user.query('drop event trigger a_seed; drop table seeded');
  });

  test('what is published of a table goes by its columns, not by their names', async () => {
    await user.query('create table swapped (id int primary key, v text, secret text)');
    if (tables === undefined) await user.query('alter publication rivulet drop table swapped');
    await user.query(`alter publication rivulet add table swapped (id, v) where (v <> 'x')`);
    const part = async () =>
      (
        await user.query(
          `select prattrs::text as columns from pg_publication_rel where prrelid = 'swapped'::regclass`,
        )
      ).rows;
    const swap =
      'alter table swapped rename v to w; alter table swapped rename secret to v; alter table swapped rename w to secret';
    await user.query(`${swap}; alter table swapped set unlogged; alter table swapped set logged`);
    expect(await part()).toEqual([{ columns: '1 2' }]);
    // Nobody knows which of them its row filter means now.
    await user.query(`alter table swapped set unlogged; ${swap}; alter table swapped set logged`);
    expect(await keepPublishedTables({ client: user, publication: 'rivulet', log: () => undefined })).toEqual(
      [{ oid: expect.any(Number), problem: expect.stringMatching(/swapped .* its columns have changed/) }],
    );
    expect(await part()).toEqual([]);
    await user.query('alter publication rivulet add table swapped (id); drop table swapped');
  });

  test('a row filter of other columns keeps the whole row as identity', async () => {
    await user.query('create table filtered (id int not null, v int); insert into filtered values (1, 5)');
    if (tables === undefined) await user.query('alter publication rivulet drop table filtered');
    await user.query('alter publication rivulet add table filtered where (v > 3)');
    await keepPublishedTables({ client: user, publication: 'rivulet', log: () => undefined });
    await user.query(
      'update filtered set v = 6; alter table filtered add primary key (id); update filtered set v = 7',
    );
    await user.query('drop table filtered');
  });

  test('a function of a schema that is called nearly so is none of the hooks', async () => {
    await user.query(`create schema my_rivulet; create table nearly (id int primary key); insert into nearly values (1);
      create function my_rivulet.place_table() returns void language plpgsql as $$ begin alter table nearly drop constraint nearly_pkey; end $$`);
    if (tables !== undefined) await user.query('alter publication rivulet add table nearly');
    await user.query(
      'select my_rivulet.place_table(); update nearly set id = 2; drop table nearly; drop schema my_rivulet cascade',
    );
  });

  test.runIf(major >= 18)('no index of the application is taken for an identity', async () => {
    await user.query(
      `create table unique_only (id int not null, ${HOPELESS}); create unique index on unique_only (id)`,
    );
    await user.query(
      'insert into unique_only values (1); update unique_only set id = 2; alter table unique_only alter id drop not null',
    );
    await user.query('drop table unique_only');
  });

  test('another number, as after a dump was restored, takes nothing else along', async () => {
    const ties = async () =>
      (
        await user.query(
          `select r.prrelid::regclass::text as name, rivulet.is_tied(r.prrelid, r.prpubid) as is_own from pg_publication_rel r
            where r.prrelid in ('a'::regclass, 'b'::regclass) order by 1`,
        )
      ).rows;
    const swap = `alter function rivulet.tie_%s() rename to tie_0; alter function rivulet.tie_%s() rename to tie_%s;
      alter function rivulet.tie_0() rename to tie_%s`;
    await user.query(
      `do $$ begin execute format('${swap}', 'a'::regclass::oid, 'b'::regclass::oid, 'a'::regclass::oid, 'b'::regclass::oid); end $$`,
    );
    expect(await ties()).toEqual([
      { name: 'a', is_own: false },
      { name: 'b', is_own: false },
    ]);
    await user.query('begin; alter table a set unlogged');
    expect((await ties()).map(({ name }) => name)).toEqual(['b']);
    await user.query('rollback');
    await keepPublishedTables({ client: user, publication: 'rivulet', log: () => undefined });
    expect(await ties()).toEqual([
      { name: 'a', is_own: true },
      { name: 'b', is_own: true },
    ]);
  });
});

describe.each(MAJORS.filter((major) => major >= 15))('Postgres %i, a list', (major) => {
  let server: TestPostgres;
  beforeAll(async () => {
    server = await startPostgres({ major, settings: { wal_level: 'logical' } });
  });
  afterAll(() => server?.close());

  const published = async (): Promise<unknown[]> =>
    (
      await server.sql<{ name: string }>(
        'select prrelid::regclass::text as name from pg_publication_rel order by 1',
      )
    ).map(({ name }) => name);

  test('a partition whose root is not in it comes back, and goes by its own key', async () => {
    const isVirtual = major >= 18;
    await server.sql(`create table root (id int, v text ${isVirtual ? `, ${HOPELESS}` : ''}) partition by list (id);
      create table part partition of root for values in (1, 2); alter table part alter id set not null, add primary key (id);
      create table x (id int primary key)`);
    await setup({ url: server.url, ...NAMES, tables: ['part', 'x'] });
    const client = await server.client();
    expect(await published()).toEqual(['part', 'x']);
    // Also while somebody keeps one of them for himself.
    const locker = await server.client();
    await locker.query('begin; lock table x');
    await client.query(`set lock_timeout = '100ms'`);
    expect(await readListProblems(client, { publication: 'rivulet', tables: ['part', 'x'] })).toEqual([]);
    await locker.query('commit');
    await server.sql('alter table part set unlogged');
    expect(await published()).toEqual(['x']);
    await server.sql('alter table part set logged');
    await keepPublishedTables({ client, publication: 'rivulet', log: () => undefined });
    expect(await published()).toEqual(['part', 'x']);
    await server.sql(
      'insert into part values (1); update part set id = 2; alter table root alter v set default 1',
    );
    expect(await published()).toEqual(['part', 'x']);
    await teardown({ url: server.url, ...NAMES });
  });

  test('one that leaves for nothing is told of, whatever the statement was about', async () => {
    await server.sql('create table a (id int primary key); create table b (id int primary key)');
    await setup({ url: server.url, ...NAMES, tables: ['a', 'b'] });
    await server.sql(`select pg_create_logical_replication_slot('listener', 'pgoutput')`);
    const client = await server.client();
    await client.query('create temp table scratch (id int)');
    for (const statement of [
      'alter table if exists nothing add column q int',
      'alter table scratch add column q int',
    ]) {
      await client.query(`begin; ${statement}; commit; begin; alter table a set unlogged; rollback`);
      expect(await published()).toEqual(['b']);
      const [told] = await server.sql<{ is_told: boolean }>(
        `select bool_or(encode(data, 'escape') ~ ('"touched": (null|[[][^]]*' || 'a'::regclass::oid || ')')) as is_told
           from pg_logical_slot_get_binary_changes('listener', null, null, 'proto_version', '1',
                  'publication_names', 'rivulet', 'messages', 'true')`,
      );
      expect(told, statement).toEqual({ is_told: true });
      await keepPublishedTables({ client, publication: 'rivulet', log: () => undefined });
      expect(await published()).toEqual(['a', 'b']);
      await server.sql(`select count(*) from pg_logical_slot_get_binary_changes('listener', null, null, 'proto_version', '1',
        'publication_names', 'rivulet', 'messages', 'true')`);
    }
    await server.sql(`select pg_drop_replication_slot('listener')`);
    // Nor does one that is dropped beside a copy keep the others from it.
    const copying = await server.client();
    await copying.query('begin isolation level repeatable read; select 1');
    await server.sql('drop table a');
    expect(await readRowFilters(copying, 'rivulet')).toEqual(new Map());
    await copying.query('commit');
    await teardown({ url: server.url, ...NAMES });
  });

  test('nothing of a table is planned with the rights of the hooks', async () => {
    const older = await server.client();
    await server.sql(
      'create role mallory; grant create on schema public to mallory; create table a1 (id int primary key)',
    );
    await older.query('begin isolation level repeatable read; select 1');
    await setup({ url: server.url, ...NAMES, patienceMs: 10, tables: ['a1'] });
    await older.query(`set role mallory; create function public.evil() returns int immutable language plpgsql as $$ begin
        raise notice 'ran as %', current_user; return 1; end $$;
      create table public.mallorys (i int); create rule r as on delete to public.mallorys do also select public.evil()`);
    const heard: string[] = [];
    older.on('notice', ({ message }) => void heard.push(message ?? ''));
    await older.query('alter table public.mallorys add column y int; commit; reset role');
    expect(heard).toEqual([]);
    await teardown({ url: server.url, ...NAMES });
  });

  test('a table that its maker may not touch stays in it as it is, and keeps nothing else from being seen to', async () => {
    await server.sql(`create role maker login replication password 'maker'; grant create on database postgres to maker;
      grant create on schema public to maker; create table theirs (id int primary key)`);
    const url = new URL(server.url);
    url.username = 'maker';
    url.password = 'maker';
    const maker = await connect(url.href, { applicationName: 'test' });
    await maker.query('create table public.mine (id int primary key)');
    await setup({ url: url.href, ...NAMES, tables: ['mine'] });
    await server.sql('alter publication rivulet add table theirs');
    expect(
      await keepPublishedTables({ client: maker, publication: 'rivulet', log: () => undefined }),
    ).toEqual([]);
    expect(await published()).toEqual(['mine', 'theirs']);
    // What goes wrong otherwise is said, and the rest is done.
    await server.sql('alter function rivulet.can_be_tied(oid, oid) rename to gone');
    expect(
      await keepPublishedTables({ client: maker, publication: 'rivulet', log: () => undefined }),
    ).toEqual([
      { oid: 0, problem: expect.stringMatching(/could not be mended: function rivulet.can_be_tied/) },
    ]);
    await maker.end();
  });
});

test.skipIf(MAJORS.every((major) => major < 18))(
  'a table that an extension makes is none of its ties',
  async () => {
    const directory = mkdtempSync(join(tmpdir(), 'rivulet-extension-'));
    chmodSync(directory, 0o755);
    mkdirSync(join(directory, 'extension'));
    writeFileSync(
      join(directory, 'extension', 'made.control'),
      "default_version = '1.0'\nrelocatable = false\n",
    );
    writeFileSync(
      join(directory, 'extension', 'made--1.0.sql'),
      'create table public.made (id int primary key, v text); insert into public.made values (1);',
    );
    try {
      await using server = await startPostgres({
        major: 18,
        settings: { wal_level: 'logical', extension_control_path: `${directory}:$system` },
      });
      await setup({ url: server.url, ...NAMES });
      const client = await server.client();
      await client.query('create extension made');
      await keepPublishedTables({ client, publication: 'rivulet', log: () => undefined });
      expect(await server.sql('select prrelid::regclass::text as name from pg_publication_rel')).toEqual([
        { name: 'made' },
      ]);
      await client.query('begin; alter table made set unlogged; rollback');
      expect((await teardown({ url: server.url, ...NAMES })).left).toEqual([]);
      expect(await server.sql('select id from made')).toEqual([{ id: 1 }]);
    } finally {
      rmSync(directory, { recursive: true });
    }
  },
);

test.skipIf(MAJORS.every((major) => major < 18))('more tables than the server has locks for', async () => {
  const few = { max_connections: '10', max_locks_per_transaction: '10', max_wal_senders: '2' };
  await using server = await startPostgres({ major: 18, settings: { wal_level: 'logical', ...few } });
  for (let first = 0; first < 1_000; first += 50)
    await server.sql(`do $$ begin for i in ${first}..${first + 49} loop
      execute format('create table t%s (id int primary key)', i); end loop; end $$`);
  const report = await setup({ url: server.url, ...NAMES });
  expect(report.missing).toEqual([]);
  expect(report.tables).toHaveLength(1_000);
  await expect(server.sql('drop publication rivulet')).rejects.toThrow(/out of shared memory/);
  // Its locks go a moment after it has said so.
  await server.sql('select 1');
  expect((await teardown({ url: server.url, ...NAMES })).left).toEqual([]);
});
