import type pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { clientStream, connect } from '../../src/source/connection.ts';
import { beginReading, keepPublishedTables } from '../../src/source/published-tables.ts';
import { setup } from '../../src/source/setup.ts';
import { MAJORS, startPostgres, type TestPostgres } from '../helpers/postgres.ts';
import { waitUntil } from '../helpers/wait-until.ts';

/** See sql/007_published_tables.sql: named beside their schema, by the hooks, with no replicator. */
describe.each(MAJORS.filter((major) => major >= 18))('Postgres %i: tables that name themselves', (major) => {
  let server: TestPostgres;
  let one: pg.Client;
  let two: pg.Client;

  beforeAll(async () => {
    server = await startPostgres({
      major,
      settings: { wal_level: 'logical', deadlock_timeout: '50ms', wal_sender_timeout: '0' },
    });
    [one, two] = [await server.client(), await server.client()];
    await one.query(`create table base (id int primary key, v text); insert into base values (1);
      create schema crowded; create table crowded.of_before (id int primary key)`);
    const names = { publication: 'rivulet', slot: 'rivulet' };
    await setup({ url: server.url, ...names, log: () => undefined });
    await beginReading(one, names);
  });
  afterAll(() => server?.close());

  const named = async (): Promise<unknown[]> =>
    (await one.query('select prrelid::regclass::text as name from pg_publication_rel')).rows.map(
      ({ name }) => name,
    );

  const somebodyWaits = (): Promise<unknown> =>
    waitUntil('somebody to wait for a lock', async () => {
      const rows = await server.sql('select from pg_locks where not granted');
      return rows.length > 0;
    });

  const somebodySleeps = (): Promise<unknown> =>
    waitUntil('a hook to wait', async () => {
      const rows = await server.sql(`select from pg_stat_activity where wait_event = 'PgSleep'`);
      return rows.length > 0;
    });

  test('all of a transaction at once, however often it changed them', async () => {
    await one.query('begin');
    for (let table = 0; table < 10; table++) {
      await one.query(`create table many${table} (id int)`);
      await one.query(`savepoint s; alter table many0 add column c${table} int; rollback to s`);
      await one.query(`alter table many0 add column c${table} int`);
    }
    await one.query(
      'drop table many9; alter table many8 add primary key (id), add column g int generated always as (1) virtual',
    );
    expect(await named()).not.toContain('many0');
    const { rows } = await one.query('select count(*)::int from rivulet.queued_table');
    expect(rows).toEqual([{ count: 10 }]);
    await one.query('commit');
    expect(await named()).toEqual(expect.arrayContaining([0, 1, 2, 3, 4, 5, 6, 7].map((n) => `many${n}`)));
    expect(await named()).not.toContain('many8');
  });

  test('also where somebody says that it is over', async () => {
    for (const isolation of ['read committed', 'serializable']) {
      await one.query(`begin isolation level ${isolation}; set rivulet.is_naming_over = 'yes'`);
      await one.query('create table said (id int primary key); commit');
      expect(await named()).toContain('said');
      await one.query('drop table said; reset rivulet.is_naming_over');
    }
  });

  test('no serializable transaction fails for the tables of another', async () => {
    for (const columns of ['(id int primary key)', '(id int, v text)']) {
      const both = [one, two];
      for (const client of both) await client.query('begin isolation level serializable');
      for (const [index, client] of both.entries())
        await client.query(`create table serial${index} ${columns}; insert into serial${index} values (1);
          alter table serial${index} add column w int; update serial${index} set w = 1`);
      for (const client of both) await client.query('commit');
      expect(await named()).toEqual(expect.arrayContaining(['serial0', 'serial1']));
      await one.query('drop table serial0, serial1');
    }
  });

  test('one that was named since the snapshot of the transaction can be made UNLOGGED', async () => {
    await one.query('create table late (id int primary key)');
    await one.query('alter publication rivulet drop table late');
    await two.query('begin isolation level repeatable read; select from late');
    await one.query('alter publication rivulet add table late');
    await two.query('alter table late set unlogged; commit');
  });

  test('one that was named since the snapshot of the transaction leaves when no identity helps it any more', async () => {
    const hopeless = 'add column g int generated always as (id + 1) virtual';
    await one.query(`create schema snap create table gone (id int) create table becoming (id int) create table other (id int);
      insert into snap.becoming values (1)`);
    for (const isolation of ['repeatable read', 'serializable']) {
      // Its schema is published whole and its sibling has no name; then both are otherwise.
      await one.query('alter publication rivulet drop table snap.becoming, snap.other');
      await two.query(`begin isolation level ${isolation}; select from base`);
      await one.query('alter publication rivulet add table snap.becoming, snap.other');
      await two.query(`alter table snap.becoming ${hopeless}; update snap.becoming set id = 2; rollback`);
      await two.query(`begin isolation level ${isolation}; select from base`);
      await one.query('alter publication rivulet drop tables in schema snap');
      await two.query(`alter table snap.becoming ${hopeless}; update snap.becoming set id = 2; rollback`);
      await one.query('alter publication rivulet drop table snap.becoming');
      await two.query(`begin isolation level ${isolation}; select from base`);
      await one.query('alter publication rivulet add table snap.becoming');
      await two.query(`alter table snap.becoming ${hopeless}; update snap.becoming set id = 2; rollback`);
      await one.query('alter publication rivulet add tables in schema snap');
    }
    await one.query('drop schema snap cascade');
  });

  test('that nobody has noted yet, a table can leave beside them, but while somebody writes to one', async () => {
    const hopeless = 'create table fresh.hopeless (id int, g int generated always as (id + 1) virtual)';
    const isPublished = async (): Promise<boolean> =>
      (await one.query(`select from pg_publication_namespace where pnnspid = 'fresh'::regnamespace`))
        .rowCount === 1;
    await one.query('create schema fresh create table named (id int)');
    expect(await named()).toContain('fresh.named');
    // As a serializable transaction leaves it, and a name that is older than what others are writing.
    await one.query(`delete from rivulet.named_table where relation_oid = 'fresh.named'::regclass`);
    await two.query('begin; insert into fresh.named values (1)');
    await one.query(`set statement_timeout = '1s'; begin isolation level serializable; ${hopeless}`);
    expect(await isPublished()).toBe(true);
    await one.query('rollback; reset statement_timeout');
    // It waits for those who were writing when it looked, and for no others.
    const leaving = one.query(
      `begin isolation level serializable; ${hopeless}; insert into fresh.hopeless values (1)`,
    );
    await somebodySleeps();
    const three = await server.client();
    await three.query('begin; insert into fresh.named values (2)');
    await two.query('commit');
    await leaving;
    expect(await isPublished()).toBe(false);
    await three.query('commit');
    await one.query('update fresh.hopeless set id = 2; commit; drop schema fresh cascade');
  });

  test('it waits for the replicator, where one runs, to name another table first', async () => {
    await one.query('create schema unnamed create table other (id int primary key)');
    await one.query('alter publication rivulet drop table unnamed.other');
    const hopeless =
      'create table unnamed.hopeless (id int, g int generated always as (id + 1) virtual); insert into unnamed.hopeless values (1)';
    const update = 'update unnamed.hopeless set id = 2';
    await one.query(`begin; ${hopeless}`);
    await expect(one.query(update)).rejects.toThrow(/replica identity/);
    await one.query('rollback');

    await server.sql(`select pg_create_logical_replication_slot('rivulet', 'pgoutput')`);
    const reader = await connect(server.url, { applicationName: 'reader', replication: true });
    reader
      .query(`START_REPLICATION SLOT rivulet LOGICAL 0/0 (proto_version '1', publication_names 'rivulet')`)
      .catch(() => undefined);
    await waitUntil('the slot to be read', async () => {
      const rows = await server.sql(`select from pg_replication_slots where active`);
      return rows.length > 0;
    });
    const leaving = one.query(`begin; ${hopeless}`);
    await somebodySleeps();
    await keepPublishedTables({ client: two, publication: 'rivulet', log: () => undefined });
    await leaving;
    expect(await named()).toContain('unnamed.other');
    await one.query(`${update}; commit; drop schema unnamed cascade`);
    // Not longer than until somebody else has done it.
    await one.query('create schema unnamed create table other (id int primary key)');
    await one.query('alter publication rivulet drop table unnamed.other');
    await one.query(`begin isolation level repeatable read; ${hopeless}; commit`);
    const waiting = one.query(
      `select rivulet.leave_out('rivulet', 'unnamed.hopeless'::regclass, patience => '1 hour')`,
    );
    await somebodySleeps();
    await two.query('alter publication rivulet drop tables in schema unnamed');
    await waiting;
    await one.query(`${update}; drop schema unnamed cascade`);
    // Not for one that it could not see, and not longer than the statement may take.
    await one.query('create schema unnamed create table other (id int primary key)');
    await one.query('alter publication rivulet drop table unnamed.other');
    await one.query(`begin isolation level repeatable read; ${hopeless}; rollback`);
    await one.query(`set statement_timeout = '300ms'; begin; ${hopeless}; rollback; reset statement_timeout`);
    await one.query('drop schema unnamed cascade');
    clientStream(reader).destroy();
  });

  test('no statement runs into its timeout for it', async () => {
    await two.query('begin; alter publication rivulet drop table base');
    for (const timeout of ['statement_timeout', 'transaction_timeout']) {
      await one.query(`set ${timeout} = '600ms'`);
      await one.query('create table crowded.timed (id int, g int generated always as (id + 1) virtual)');
      await one.query('drop table crowded.timed');
      await one.query('create table timed (id int primary key)');
      await one.query(
        'do $$ begin create table timed2 (id int primary key); create table timed3 (id int primary key); end $$',
      );
      await one.query(`drop table timed, timed2, timed3; reset ${timeout}`);
    }
    await two.query('rollback');
  });

  test('who has changed the publication does not wait for those that wait for him', async () => {
    await one.query('create table mine (id int primary key)');
    await one.query(
      'begin; alter publication rivulet drop table base; alter publication rivulet add table base',
    );
    const waiting = two.query('alter publication rivulet drop table base');
    await somebodyWaits();
    // Far less than a hook waits for the publication.
    await one.query(`set local statement_timeout = '5s'; alter table mine set unlogged; commit`);
    await waiting;
    await one.query('drop table mine; alter publication rivulet add table base');
  });

  test('no statement of others is part of a deadlock for that', async () => {
    await one.query(
      `begin; create table crowded.hopeless (id int, g int generated always as (id + 1) virtual)`,
    );
    await two.query(`begin; update base set v = 'two'; create table ordinary (id int primary key)`);
    const update = one.query(`update base set v = 'one'`);
    await somebodyWaits();
    await Promise.all([two.query('commit'), update]);
    await one.query('commit');
    expect(await server.sql('select v from base')).toEqual([{ v: 'one' }]);
  });
});
