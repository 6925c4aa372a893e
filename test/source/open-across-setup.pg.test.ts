import Database from 'better-sqlite3';
import type pg from 'pg';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { type SetupOptions, type SetupReport, setup } from '../../src/source/setup.ts';
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

  const setUp = (options: Partial<SetupOptions> = {}): Promise<SetupReport> =>
    setup({ url: cluster.postgres.url, ...NAMES, log: () => undefined, ...options });

  /** Begins, and resolves when it waits for transactions. */
  async function waiting<T>(work: Promise<T>): Promise<{ done: Promise<T> }> {
    let isDone = false;
    const done = work.finally(() => {
      isDone = true;
    });
    done.catch(() => undefined);
    await waitUntil('set-up to wait', async () => {
      const rows = await cluster.postgres.sql(
        `select from pg_stat_activity
          where application_name in ('rivulet setup', 'rivulet teardown') and (query like '%virtualtransaction%' or wait_event_type = 'Lock')`,
      );
      return rows.length > 0;
    });
    expect(isDone).toBe(false);
    return { done };
  }

  test.each(['read committed', 'repeatable read', 'serializable'])(
    'go on with a snapshot from before, %s, and all that they change is mirrored',
    async (level) => {
      // It has no number until it writes: the slot does not wait for it.
      const still = await cluster.postgres.client();
      for (const client of [open, still])
        await client.query(`begin isolation level ${level}; select from keyed`);
      const { missing } = await setUp({ patienceMs: 50 });
      expect(missing).toEqual([
        expect.stringMatching(/^2 transactions that were open before set-up still are/),
      ]);
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
    const { done } = await waiting(setUp());
    await open.query(`${use('made')}; ${use('other')}`);
    if (hasHopeless) {
      await open.query(use('hopeless'));
      // The hooks are there by now, the publication is not.
      const newer = await cluster.postgres.client();
      await newer.query(`begin; create table hopeless_too ${HOPELESS}`);
      await open.query('commit');
      await newer.query(`${use('hopeless_too')}; commit`);
    }
    await open.query('commit');
    const { tables, missing } = await done;
    expect(tables).toEqual(['"public"."keyed"', '"public"."made"', '"public"."other"']);
    expect(missing).toEqual([]);
    await open.query(`${use('made')}; ${use('other')}`);
    if (hasHopeless) await open.query(`${use('hopeless')}; ${use('hopeless_too')}`);
    await teardown({ url: cluster.postgres.url, ...NAMES, log: () => undefined });
    expect(
      await cluster.postgres.sql(`select from pg_class where relreplident = 'f' or relname = 'config'`),
    ).toEqual([]);
  });

  test('are waited for if they know of no hook yet, or wait to change a table', async () => {
    // Who has had a schema change before knows which event triggers there are, until his next transaction.
    await open.query('create table before (id int); begin; select 1');
    const { done } = await waiting(setUp());
    await open.query(
      `create table made (id int); ${use('made')}; alter table before add column n int; commit`,
    );
    expect((await done).missing).toEqual([]);
    await open.query(`${use('made')}; ${use('before')}`);
    await teardown({ url: cluster.postgres.url, ...NAMES, log: () => undefined });

    await open.query('begin; select from other');
    const changer = await cluster.postgres.client();
    const changing = changer.query('alter table other drop constraint other_pkey');
    await waitUntil('the change to wait', async () => {
      const rows = await cluster.postgres.sql('select from pg_locks where not granted');
      return rows.length > 0;
    });
    const again = await waiting(setUp({ tables: ['other', 'keyed'] }));
    await open.query('commit');
    await changing;
    expect((await again.done).missing).toEqual([]);
    await changer.query(use('other'));
  });

  test('get their identities back from teardown, which makes nothing fail', async () => {
    await setUp();
    const knowing = await cluster.postgres.client();
    await knowing.query('create table known (id int primary key)');
    await knowing.query('begin; select 1');
    await open.query('begin; create table made (id int); alter table other drop constraint other_pkey');
    if (hasHopeless) await open.query(`create table hopeless ${HOPELESS}`);
    const tearDown = (openTransactionsTimeoutMs: number) =>
      teardown({ url: cluster.postgres.url, ...NAMES, log: () => undefined, openTransactionsTimeoutMs });
    await expect(tearDown(100)).rejects.toMatchObject({
      code: 'TEARDOWN_BLOCKED',
      hint: expect.stringMatching(/again when they have ended/),
    });
    await open.query(`${use('made')}; ${use('other')}`);
    if (hasHopeless)
      await open.query(`${use('hopeless')}; commit; begin; create table late (id int); ${use('late')}`);
    const { done } = await waiting(tearDown(60_000));
    await knowing.query('alter table known add column n int; commit');
    await open.query(`${use('made')}; ${use('other')}; commit`);
    expect((await done).did).toContain('gave "public"."made" back its replica identity');
    expect(await cluster.postgres.sql(`select from pg_class where relreplident = 'f'`)).toEqual([]);
  });

  test('are named if set-up has waited in vain, and leave nothing behind', async () => {
    await open.query(`begin; create table made (id int); prepare transaction 'forgotten'`);
    const said: string[] = [];
    const log = (message: string): void => void said.push(message);
    await expect(setUp({ log, openTransactionsTimeoutMs: 100 })).rejects.toMatchObject({
      code: 'SLOT_CREATION_BLOCKED',
      hint: expect.stringMatching(/prepared transaction 'forgotten' \(\d s\)/),
    });
    expect(said).toEqual([
      'the publication rivulet waits for a transaction that is making or changing tables',
    ]);
    expect(await cluster.postgres.sql('select from rivulet.config')).toEqual([]);
    // Only those that were there at first.
    const { done } = await waiting(setUp());
    await open.query('begin; create table later (id int)');
    await cluster.postgres.sql(`commit prepared 'forgotten'`);
    const rest = await waiting(done);
    await open.query('commit');
    await rest.done;
  });

  test('keep set-up from nothing that has been set up already', async () => {
    await setUp();
    // It has read what set-up has written, and keeps the lock for that.
    await open.query('begin; create table long (id int primary key)');
    const { postgres } = cluster;
    await postgres.sql('drop function rivulet.announce(text, oid[], oid[])');
    expect((await setUp()).did).toEqual([expect.stringMatching(/^installed the schema rivulet/)]);
    await postgres.sql(`update rivulet.migration set digest = 'older' where number <> 0`);
    expect((await setUp()).did).toEqual([expect.stringMatching(/^installed the schema rivulet/)]);
    await postgres.sql(`create table made (id int); ${use('made')}`);
    await open.query('commit');
  });

  test('of tables that a list publishes with their partitions are waited for, too', async () => {
    await cluster.postgres.sql(`create table root (id int, part int) partition by list (id);
      create table mid partition of root default partition by list (part);
      alter table root replica identity full; alter table mid replica identity full`);
    await open.query('begin; create table leaf partition of mid default');
    const { done } = await waiting(setUp({ tables: ['root'] }));
    await open.query(`${use('root')}; commit`);
    await done;
    await open.query(use('root'));
  });

  test('do not keep the replicator from stopping', async () => {
    await open.query('begin; create table made (id int)');
    await waiting(cluster.startReplicator().catch(() => undefined));
    expect(await cluster.replicator!.kill('SIGTERM')).toBe(0);
    await open.query(`${use('made')}; commit; begin; insert into other values (4)`);
    const starting = cluster.startReplicator().catch(() => undefined);
    await waitUntil('the replicator to wait for the slot', async () => {
      const rows = await cluster.postgres.sql('select from pg_replication_slots');
      return rows.length > 0;
    });
    expect(await cluster.replicator!.kill('SIGTERM')).toBe(0);
    await starting;
    await open.query('commit');
    expect(await cluster.postgres.sql('select from pg_replication_slots')).toEqual([]);
  });

  test.runIf(hasHopeless)('keep no table from leaving the publication', async () => {
    // Locks a table that would have to be named, and makes another one.
    await open.query('begin; alter table other add column w int');
    const maker = await cluster.postgres.client();
    await maker.query('begin; select pg_current_xact_id()');
    const { postgres } = cluster;
    await postgres.sql('create schema s; create table s.kept (id int primary key)');
    const said: string[] = [];
    const done = setUp({ patienceMs: 50, log: (message) => said.push(message) });
    await waitUntil('set-up to wait', () => said.some((message) => message.includes('making or changing')));
    await open.query('commit; begin; insert into other values (1)');
    expect((await done).missing).toEqual([expect.stringMatching(/^a transaction that was open before/)]);
    await maker.query('create table s.made (id int primary key); insert into s.made values (1)');
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
