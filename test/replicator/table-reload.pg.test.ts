import { setTimeout as delay } from 'node:timers/promises';
import Database from 'better-sqlite3';
import { describe, expect, test } from 'vitest';
import { TestCluster } from '../helpers/cluster.ts';
import { MAJORS } from '../helpers/postgres.ts';
import { rivulet } from '../helpers/processes.ts';
import { waitUntil } from '../helpers/wait-until.ts';

/** Some MB to read again: about a second, at the rate that leaves room for the other tables. */
const ROWS = 60_000;

async function start(major: (typeof MAJORS)[number]): Promise<TestCluster> {
  const cluster = await TestCluster.start({ major });
  await cluster.postgres.sql(`
    create table big (id int primary key, n int not null, filler text);
    insert into big select i, i, repeat('x', 120) from generate_series(1, ${ROWS}) i;
    create index on big (n);
    create table other (id int primary key, v int)`);
  await cluster.startReplicator();
  await cluster.startReplica('one');
  return cluster;
}

/** Writes to both tables until stopped; the app's statements must succeed whatever happens beside them. */
function startLoad(cluster: TestCluster) {
  let isStopping = false;
  let count = 0;
  const run = (async () => {
    const client = await cluster.postgres.client();
    for (; !isStopping; count++) {
      await client.query('insert into other values ($1, $1)', [count]);
      const id = 1 + ((count * 7919) % ROWS);
      if (count % 3 === 0) await client.query("update big set filler = 'changed' where id = $1", [id]);
      if (count % 7 === 0) await client.query('delete from big where id = $1', [id]);
      await delay(2);
    }
  })();
  return {
    get count() {
      return count;
    },
    async stop() {
      isStopping = true;
      await run;
    },
  };
}

class Reader {
  readonly #db: Database.Database;
  constructor(file: string) {
    this.#db = new Database(file, { readonly: true });
  }
  newest = (): number => this.#db.prepare('select max(id) from other').pluck().get() as number;
  /** Which types the column has in the file: more than one would be a table half converted. */
  types = (): unknown[] => this.#db.prepare('select distinct typeof(n) from big').pluck().all();
  isReloading = (): boolean => this.#db.prepare('select 1 from _rivulet_reload').get() !== undefined;
  rowsRead = (): number =>
    this.isReloading()
      ? (this.#db
          .prepare(
            `select count(*) from "_rivulet_reload_${this.#db.prepare('select relation_oid from _rivulet_reload').pluck().get()}"`,
          )
          .pluck()
          .get() as number)
      : 0;
  close = (): void => {
    this.#db.close();
  };
}

const rewrite = "alter table big alter column n type text using 'n' || n";

describe.each(MAJORS)('Postgres %i: a table that a schema change rewrites', (major) => {
  test('is read again while other tables go on, and is never seen half converted', async () => {
    await using cluster = await start(major);
    const load = startLoad(cluster);
    const reader = new Reader(cluster.file('one'));
    await waitUntil('load', () => load.count > 50);
    await cluster.postgres.sql(rewrite);
    await waitUntil('the reading', () => reader.isReloading());
    let movedWhileReading = 0;
    for (let before = -1, seen: unknown[] = []; reader.isReloading(); ) {
      const newest = reader.newest();
      if (newest > before) movedWhileReading++;
      before = newest;
      seen = reader.types();
      expect(seen).toHaveLength(1);
      await delay(20);
    }
    expect(movedWhileReading).toBeGreaterThan(10);
    await load.stop();
    expect(reader.types()).toEqual(['text']);
    expect(await cluster.differences()).toEqual([]);
    reader.close();
  });
});

test('a table that is read again, whoever is killed meanwhile, and however often it changes again', async () => {
  await using cluster = await start(MAJORS.at(-1)!);
  const load = startLoad(cluster);
  const reader = new Reader(cluster.file('one'));
  await cluster.postgres.sql(rewrite);
  await waitUntil('a whole piece', () => reader.rowsRead() > 25_000);
  await cluster.replicator!.kill('SIGKILL');
  await cluster.startReplicator();
  // It goes on behind the last whole piece.
  expect(reader.rowsRead()).toBeGreaterThan(15_000);
  await waitUntil('another piece', () => !reader.isReloading() || reader.rowsRead() > 45_000);
  await cluster.postgres.sql(rewrite);
  await waitUntil('rows, again', () => reader.rowsRead() > 1000);
  await cluster.replicas.get('one')!.kill('SIGKILL');
  await cluster.startReplica('one');
  // It waits for the reading to give way, not for its end.
  await cluster.postgres.sql(
    'alter table big alter column n type varchar(20), add column late int default 5',
  );
  await cluster.postgres.sql(
    "select pg_terminate_backend(pid) from pg_stat_activity where application_name in ('rivulet reload', 'rivulet watermark')",
  );
  await cluster.startReplica('two');
  await load.stop();
  await cluster.postgres.sql('begin; alter table big rename to large; truncate other; commit');
  expect(await cluster.differences()).toEqual([]);
  expect(cluster.replicator!.stderr).not.toContain('a new history begins');
  reader.close();
});

test('keys that change meanwhile, of rows with values that Postgres does not send again', async () => {
  await using cluster = await TestCluster.start({ major: 18 });
  const { postgres } = cluster;
  await postgres.sql(`
    create table docs (a text, b int, n int, body text, primary key (a, b));
    alter table docs alter body set storage external;
    insert into docs select 'k' || i % 100, i, i, case when i % 50 = 0 then repeat('y', 5000) else 'short' end
      from generate_series(1, 50000) i`);
  await cluster.startReplicator();
  await cluster.startReplica('one');
  const reader = new Reader(cluster.file('one'));
  await postgres.sql("alter table docs alter n type text using 'n' || n");
  await waitUntil('the reading', () => reader.isReloading());
  for (let index = 1; index <= 40; index++) {
    await postgres.sql("update docs set a = 'new', b = -b where b = $1", [index * 50]);
    await postgres.sql("update docs set a = 'a', n = 'changed' where b = $1", [index * 50 + 1]);
    await postgres.sql('delete from docs where b = $1', [index * 50 + 2]);
  }
  expect(await cluster.differences()).toEqual([]);
  reader.close();
});

test('a table that is dropped while it is read again', async () => {
  await using cluster = await start(18);
  const reader = new Reader(cluster.file('one'));
  await cluster.postgres.sql(rewrite);
  await waitUntil('rows', () => reader.rowsRead() > 1000);
  await cluster.postgres.sql('drop table big');
  await cluster.postgres.sql('insert into other values (1, 1)');
  expect(await cluster.differences()).toEqual([]);
  reader.close();
});

describe.each(MAJORS)('Postgres %i: a transaction is writing to the table while it changes', (major) => {
  /** What it writes before and behind the change is in the replica once it has committed. */
  async function writeAcross(
    cluster: TestCluster,
    statements: { readonly before: string; readonly change: string; readonly behind: string },
  ): Promise<void> {
    await cluster.startReplicator();
    await cluster.startReplica('one');
    const writer = await cluster.postgres.client();
    await writer.query(`begin; ${statements.before}`);
    await cluster.postgres.sql(statements.change);
    await waitUntil('the waiting for it', () => cluster.replicator!.stderr.includes('is read again once'));
    // Meanwhile other tables go on: time enough to read this one, if that did not wait.
    const db = new Database(cluster.file('one'), { readonly: true });
    const newest = db.prepare('select max(id) from beside').pluck();
    for (let id = 1; id <= 20; id++) {
      await cluster.postgres.sql(`insert into beside values (${id})`);
      await waitUntil('the other table', () => newest.get() === id);
    }
    db.close();
    await writer.query(`${statements.behind}; commit`);
    await writer.end();
    expect(await cluster.differences()).toEqual([]);
  }

  test('a label of its type gets another name', async () => {
    await using cluster = await TestCluster.start({ major });
    await cluster.postgres.sql(`create table beside (id int primary key); create type mood as enum ('sad', 'ok');
      create table felt (id int primary key, m mood); insert into felt values (1, 'sad'), (2, 'ok')`);
    await writeAcross(cluster, {
      before: "insert into felt values (3, 'sad')",
      change: "alter type mood rename value 'sad' to 'blue'",
      behind: "insert into felt values (4, 'blue')",
    });
  });

  test('it comes into the publication', async () => {
    await using cluster = await TestCluster.start({ major });
    const { postgres } = cluster;
    await postgres.sql('create table beside (id int primary key); create table late (id int primary key)');
    const setup = rivulet(['setup', '--postgres', postgres.url, '--tables', 'beside']);
    expect(await setup.exited).toBe(0);
    await writeAcross(cluster, {
      before: 'insert into late values (1)',
      change: 'alter publication rivulet add table late',
      behind: 'insert into late values (2)',
    });
    const db = new Database(cluster.file('one'), { readonly: true });
    expect(db.prepare('select id from late order by id').pluck().all()).toEqual([1, 2]);
    db.close();
  });
});

test('one that cannot be read again is named, keeps health down, and holds up no other', async () => {
  await using cluster = await TestCluster.start();
  const { postgres } = cluster;
  await postgres.sql(`
    create table closed (id int primary key, n int); insert into closed values (1, 1), (2, 2);
    create table hidden (id int primary key, n int); insert into hidden values (1, 1), (2, 2);
    create table open (id int primary key, n int); insert into open values (1, 1), (2, 2);
    create role reader login replication password 'reader';
    grant select on closed, hidden, open to reader`);
  await using setup = rivulet(['setup', '--postgres', postgres.url]);
  expect(await setup.exited).toBe(0);
  const url = new URL(postgres.url);
  url.username = url.password = 'reader';
  cluster.sourceUrl = url.href;
  await cluster.startReplicator();
  await cluster.startReplica('one');
  const health = (): Promise<Response> => fetch(`${cluster.replicatorUrl}/healthz`);
  const reasons = async (): Promise<string> =>
    JSON.stringify(((await (await health()).json()) as { reasons: string[] }).reasons);
  await postgres.sql(`
    revoke select on closed from reader;
    alter table hidden enable row level security;
    ${['closed', 'hidden', 'open'].map((table) => `alter table ${table} alter n type text using 'n' || n`).join(';')}`);
  await waitUntil('one to be read', () =>
    cluster.replicator!.stderr.includes('"table":"public.open","rows":2'),
  );
  await waitUntil('the others to be named', async () =>
    /public\.closed: .*permission denied.*public\.hidden: .*row-level security/.test(await reasons()),
  );
  expect((await health()).status).toBe(503);
  await postgres.sql('grant select on closed to reader; alter table hidden disable row level security');
  await waitUntil('health', async () => (await health()).ok);
  expect(await cluster.differences()).toEqual([]);
});

test('who keeps a table from being read again, and seems forgotten, is named', async () => {
  await using cluster = await TestCluster.start({ settings: { max_prepared_transactions: '1' } });
  const { postgres } = cluster;
  await postgres.sql(`
    create type mood as enum ('sad'); create table t (id int primary key, m mood); insert into t values (1, 'sad')`);
  await cluster.startReplicator();
  await cluster.startReplica('one');
  const client = await postgres.client();
  await client.query('begin');
  await client.query('insert into t (id) values (2)');
  await client.query(`prepare transaction 'forgotten'`);
  await postgres.sql(`alter type mood rename value 'sad' to 'blue'`);
  const health = (): Promise<Response> => fetch(`${cluster.replicatorUrl}/healthz`);
  await waitUntil(
    'its name',
    async () => /prepared transaction 'forgotten'/.test(await (await health()).text()),
    {
      timeoutMs: 60_000,
    },
  );
  expect((await health()).status).toBe(503);
  await postgres.sql(`commit prepared 'forgotten'`);
  await waitUntil('health', async () => (await health()).ok);
  expect(await cluster.differences()).toEqual([]);
});
