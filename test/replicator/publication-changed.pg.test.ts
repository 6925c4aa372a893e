import Database from 'better-sqlite3';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { TestCluster } from '../helpers/cluster.ts';
import { findDifferences } from '../helpers/compare.ts';
import { MAJORS } from '../helpers/postgres.ts';
import { waitUntil } from '../helpers/wait-until.ts';

// What is written while the publication is gone, or leaves something out, is never sent, and from Postgres 18 on the
// server says nothing of it. Nothing may be missing in the end all the same, and nobody may be told that all is well.

describe.each(MAJORS)('Postgres %i', (major) => {
  let cluster: TestCluster;
  const create = (name: string): string =>
    `create publication ${name} for ${major >= 18 ? 'tables in schema public' : 'all tables'} with (publish_via_partition_root = true)`;
  const write = "insert into t select max(id) + 1, 'unseen' from t; update t set n = n || '!' where id = 1";

  const switchHooks = (to: string): string =>
    ['ddl', 'drop', 'rewrite', 'alter'].map((name) => `alter event trigger _rivulet_${name} ${to}`).join(';');

  const sql = (...statements: readonly string[]): Promise<unknown> =>
    cluster.postgres.sql(statements.join('; '));
  const apart = async (...statements: readonly string[]): Promise<void> => {
    for (const statement of statements) await cluster.postgres.sql(statement);
  };

  async function epoch(): Promise<string> {
    return ((await (await fetch(`${cluster.replicatorUrl}/v1/status`)).json()) as { epoch: string }).epoch;
  }

  async function expectNewCopy(before: string): Promise<void> {
    await waitUntil('a new history', async () => {
      const now = await epoch();
      return now !== null && now !== before;
    });
    await waitUntil('health', async () => (await fetch(`${cluster.replicatorUrl}/healthz`)).ok);
    await sql("update t set n = 'seen' where id = 2");
    expect(await cluster.differences()).toEqual([]);
  }

  beforeAll(async () => {
    // Only a session that asks for it waits for the standby, which is not there.
    const settings = { synchronous_standby_names: 'nobody', synchronous_commit: 'local' };
    cluster = await TestCluster.start({ major, settings });
    await sql("create table t (id int primary key, n text); insert into t values (1, 'one'), (2, 'two')");
    await cluster.startReplicator();
    await cluster.startReplica('one');
  });
  afterAll(() => cluster?.[Symbol.asyncDispose]());
  // Started again it has had no history that did not last, which it would wait for.
  beforeEach(async () => {
    await cluster.replicator!.kill('SIGTERM');
    await cluster.startReplicator();
    await sql(write);
    await cluster.caughtUp();
  });

  test.each<[string, () => Promise<unknown>]>([
    ['dropped', () => sql('drop publication rivulet', write)],
    ['dropped and made in one transaction', () => sql('drop publication rivulet', write, create('rivulet'))],
    [
      'renamed and named as before',
      () =>
        sql('alter publication rivulet rename to other', write, 'alter publication other rename to rivulet'),
    ],
    [
      'made to leave something out, and as before',
      () =>
        apart(
          "alter publication rivulet set (publish = 'insert')",
          write,
          "alter publication rivulet set (publish = 'insert, update, delete, truncate')",
        ),
    ],
    [
      'made anew while the hooks are switched off',
      () =>
        apart(
          switchHooks('disable'),
          'drop publication rivulet',
          write,
          create('rivulet'),
          switchHooks('enable always'),
        ),
    ],
    [
      'made to leave something out, and as before, while the hooks are switched off',
      () =>
        apart(
          switchHooks('disable'),
          "alter publication rivulet set (publish = 'insert')",
          write,
          "alter publication rivulet set (publish = 'insert, update, delete, truncate')",
          switchHooks('enable always'),
        ),
    ],
    [
      'made anew while nobody reads',
      async () => {
        await cluster.replicator!.kill('SIGKILL');
        await apart('drop publication rivulet', write, create('rivulet'));
        await cluster.startReplicator();
      },
    ],
  ])('one of ours is %s', async (_, change) => {
    const before = await epoch();
    await change();
    await expectNewCopy(before);
  });

  test('what leaves something out is said, and waited for', async () => {
    const before = await epoch();
    await sql("alter publication rivulet set (publish = 'insert')");
    const reasons = async (): Promise<string> => (await fetch(`${cluster.replicatorUrl}/healthz`)).text();
    await waitUntil('the reason', async () => /leaves out update, delete, truncate/.test(await reasons()));
    await sql(write);
    await sql("alter publication rivulet set (publish = 'insert, update, delete, truncate')");
    await expectNewCopy(before);
  });

  /** Until the replicator has looked at the catalog once from beginning to end. */
  async function looked(): Promise<void> {
    const reasons = async (): Promise<string> => (await fetch(`${cluster.replicatorUrl}/healthz`)).text();
    await waitUntil('health', async () => (await fetch(`${cluster.replicatorUrl}/healthz`)).ok);
    await sql(switchHooks('disable'));
    await waitUntil('the reason', async () => /event triggers/.test(await reasons()));
    await sql(switchHooks('enable always'));
    await waitUntil('no reason', async () => !/event triggers/.test(await reasons()));
  }

  const alter = 'alter publication rivulet set (publish_via_partition_root = true)';

  test('a hook that fails tells of a change of the publication all the same', async () => {
    const before = await epoch();
    const planted = `
      alter function rivulet.published_schema(name, oid[]) rename to kept;
      create function rivulet.published_schema(name, oid[]) returns jsonb language plpgsql
        as $$ begin raise 'planted' using errcode = 'XX123'; end $$`;
    const taken = `
      drop function rivulet.published_schema(name, oid[]);
      alter function rivulet.kept(name, oid[]) rename to published_schema`;
    await apart(planted, alter, taken);
    await looked();
    expect(cluster.replicator!.stderr).toContain('SQLSTATE XX123');
    expect(await epoch()).toBe(before);
    // So it is from the next start on.
    await cluster.replicator!.kill('SIGTERM');
    await cluster.startReplicator();
    await looked();
    expect(await epoch()).toBe(before);
    // What it leaves out is a gap nevertheless.
    await apart(
      planted,
      "alter publication rivulet set (publish = 'insert')",
      write,
      "alter publication rivulet set (publish = 'insert, update, delete, truncate')",
      taken,
    );
    await expectNewCopy(before);
  });

  // A commit is in the WAL before anybody sees it; so it stays while it waits for a standby.
  test('a change of the publication that is streamed long before anybody sees it', async () => {
    const before = await epoch();
    const client = await cluster.postgres.client();
    await client.query('set synchronous_commit = on');
    const altered = client.query(alter);
    const waiting = "from pg_stat_activity where wait_event = 'SyncRep'";
    const looking = `select from pg_stat_activity
      where application_name = 'rivulet schema' and query ~ 'pg_visible_in_snapshot'`;
    const has = async (query: string): Promise<boolean> => (await cluster.postgres.sql(query)).length > 0;
    try {
      await waitUntil('the commit', () => has(`select ${waiting}`));
      await waitUntil('a look', async () => (await epoch()) !== before || (await has(looking)));
      expect(await epoch()).toBe(before);
    } finally {
      await sql(`select pg_cancel_backend(pid) ${waiting}`);
      await altered;
    }
    await looked();
    expect(await epoch()).toBe(before);
  });

  test('one that loses its tables with the schema rivulet is waited for, and the replicas keep what they have', async () => {
    const own = await TestCluster.start({ major });
    const options: Record<string, string> = major >= 18 ? {} : { RIVULET_TABLES: 't' };
    try {
      await own.postgres.sql(
        "create table t (id int primary key, n text); insert into t values (1, 'one'), (2, 'two')",
      );
      await own.startReplicator(options);
      await own.startReplica('one');
      await own.caughtUp();
      await own.postgres.sql('drop schema rivulet cascade');
      await own.postgres.sql(write);
      const health = (): Promise<Response> => fetch(`${own.replicatorUrl}/healthz`);
      const isSaid = async (): Promise<boolean> => {
        const response = await health();
        return response.status === 503 && /has lost all tables/.test(await response.text());
      };
      await waitUntil('the reason', isSaid);
      await own.replicator!.kill('SIGTERM');
      const starting = own.startReplicator(options);
      await waitUntil('the same again', () => own.replicator!.stderr.includes('has lost all tables'));
      const file = new Database(own.file('one'), { readonly: true });
      expect(file.prepare('select n from t where id = 1').pluck().get()).toBe('one');
      file.close();
      await own.postgres.sql('drop publication rivulet');
      await starting;
      await waitUntil('health', async () => (await health()).ok);
      expect(await own.differences()).toEqual([]);
      expect(await own.postgres.sql('select from pg_event_trigger')).toHaveLength(5);
    } finally {
      await own[Symbol.asyncDispose]();
    }
  });

  test("one of the user's own is waited for, and nothing is made in its place", async () => {
    const own = await TestCluster.start({ major });
    const theirs = { RIVULET_PUBLICATION: 'theirs' };
    const make = 'create publication theirs for table public.t with (publish_via_partition_root = true)';
    try {
      await own.postgres.sql(`
        create table t (id int primary key, n text); insert into t values (1, 'one'), (2, 'two');
        create table secret (id int primary key); ${make}`);
      await own.startReplicator(theirs);
      await own.startReplica('one');
      await own.postgres.sql('drop publication theirs');
      await own.postgres.sql(write);
      const health = (): Promise<Response> => fetch(`${own.replicatorUrl}/healthz`);
      await waitUntil('the reason', async () => {
        const response = await health();
        return response.status === 503 && /the publication theirs, .* is gone/.test(await response.text());
      });
      // The next attempts come to the same end.
      const attempts = (): number => own.replicator!.stderr.split('set-up did not make, is gone').length;
      const until = attempts() + 2;
      await waitUntil('attempts', () => attempts() >= until);
      expect(await own.postgres.sql('select pubname from pg_publication')).toEqual([]);
      await own.postgres.sql(make);
      await waitUntil('health', async () => (await health()).ok);
      await own.postgres.sql("update t set n = 'seen' where id = 2");
      await own.caughtUp();
      const files = [own.file('one')];
      expect(await findDifferences({ url: own.postgres.url, files, publication: 'theirs' })).toEqual([]);
    } finally {
      await own[Symbol.asyncDispose]();
    }
  });
});
