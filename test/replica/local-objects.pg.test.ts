import { rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import Database from 'better-sqlite3';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { TestCluster } from '../helpers/cluster.ts';
import { type CrashPoint, crashAt } from '../helpers/crash-point.ts';
import { dropSlot } from '../helpers/postgres.ts';
import { rivulet } from '../helpers/processes.ts';
import { waitUntil } from '../helpers/wait-until.ts';

const FTS = `
  CREATE VIRTUAL TABLE found USING fts5(title, body, content='docs', content_rowid='id');
  INSERT INTO found(found) VALUES ('rebuild');
  CREATE TRIGGER docs_insert AFTER INSERT ON docs BEGIN
    INSERT INTO found(rowid, title, body) VALUES (new.id, new.title, new.body);
  END;
  CREATE TRIGGER docs_delete AFTER DELETE ON docs BEGIN
    INSERT INTO found(found, rowid, title, body) VALUES ('delete', old.id, old.title, old.body);
  END;
  CREATE TRIGGER docs_update AFTER UPDATE ON docs BEGIN
    INSERT INTO found(found, rowid, title, body) VALUES ('delete', old.id, old.title, old.body);
    INSERT INTO found(rowid, title, body) VALUES (new.id, new.title, new.body);
  END;`;
const LOCAL_SQL = `${FTS}
  CREATE INDEX by_title ON docs (lower(title));
  CREATE VIEW titles AS SELECT id, title FROM docs;`;
const ALL = ['by_title', 'docs_delete', 'docs_insert', 'docs_update', 'found', 'titles'];

const CREATE = `
  create table docs (id int primary key, title text, body text);
  insert into docs select i, 'title ' || i, 'body ' || i % 7 from generate_series(1, 500) i;`;

let cluster: TestCluster;
let env: Readonly<Record<string, string>>;

beforeAll(async () => {
  cluster = await TestCluster.start();
  await cluster.postgres.sql(`${CREATE} create table other (id int primary key, v text)`);
  const script = join(cluster.dir, 'local.sql');
  writeFileSync(script, LOCAL_SQL);
  env = { RIVULET_LOCAL_SQL: script };
  await cluster.startReplicator();
});
afterAll(() => cluster?.[Symbol.asyncDispose]());

/** The local objects that are in a file which no process keeps; fails if the full-text table is not as if made anew. */
function localObjects(file: string): unknown[] {
  const db = new Database(file);
  try {
    const names = db
      .prepare(
        `SELECT name FROM sqlite_schema WHERE name NOT IN (SELECT sqlite_name FROM _rivulet_table)
         AND name NOT GLOB '_rivulet_*' AND name NOT GLOB 'sqlite_*' AND name NOT GLOB 'found_*' ORDER BY name`,
      )
      .pluck()
      .all();
    if (names.includes('found')) db.exec("INSERT INTO found(found, rank) VALUES ('integrity-check', 1)");
    expect(db.pragma('integrity_check', { simple: true })).toBe('ok');
    return names;
  } finally {
    db.close();
  }
}

async function stop(name: string): Promise<string> {
  const replica = cluster.replicas.get(name)!;
  cluster.replicas.delete(name);
  await replica.kill('SIGTERM');
  return replica.stderr;
}

/** Rows that come, change and go until stop(); errors of statements that meet a schema change do not count. */
function startLoad(): AsyncDisposable & { readonly done: number; stop(): Promise<void> } {
  let isStopping = false;
  let done = 0;
  const run = async (): Promise<void> => {
    const client = await cluster.postgres.client();
    while (!isStopping) {
      const id = 1000 + (done % 200);
      const statements = [
        `insert into docs (id, title) values (${id}, 'fresh ${done}') on conflict (id) do update set title = 'again ${done}'`,
        `update docs set title = 'new ${done}' where id % 50 = ${done % 50}`,
        `delete from docs where id = ${1000 + ((done * 7) % 200)}`,
        `insert into other values (${done}, 'x')`,
      ];
      await client.query('begin');
      const failed = await client.query(statements.join(';')).then(
        () => false,
        () => true,
      );
      await client.query(failed ? 'rollback' : 'commit');
      done++;
    }
  };
  const running = run();
  const stop = (): Promise<void> => {
    isStopping = true;
    return running;
  };
  return {
    get done() {
      return done;
    },
    stop,
    [Symbol.asyncDispose]: stop,
  };
}

test('under load and schema changes the full-text table equals one that is made anew', async () => {
  const replica = await cluster.startReplica('live', env);
  expect(replica.stderr).toContain('the local table found was made');
  await using load = startLoad();
  const steps: readonly (readonly [statement: string, says: string | null])[] = [
    [
      'alter table docs rename column body to content',
      'the local table found (local.sql line 2) is not there',
    ],
    ['alter table docs rename column content to body', null],
    ['alter table docs add column n int default 7', null],
    ['alter table docs alter column body type bytea using convert_to(body, $$UTF8$$)', null],
    ['truncate docs', null],
    ["insert into docs select i, 'later ' || i, 'x' from generate_series(1, 300) i", null],
    ['alter table docs drop column title', 'the local index by_title (local.sql line 14) is not there'],
    ["alter table docs add column title text default 'same'", null],
    ['alter table docs rename to documents', null],
    [CREATE, null],
    ['drop table docs', 'the local view titles (local.sql line 15) is not there: no such table: main.docs'],
    ['alter table documents rename to docs', null],
  ];
  for (const [statement, says] of steps) {
    const from = replica.stderr.length;
    await cluster.postgres.sql(statement);
    if (says !== null) await waitUntil(says, () => replica.stderr.slice(from).includes(says));
    else await cluster.caughtUp();
  }
  await load.stop();
  expect(load.done).toBeGreaterThan(20);
  expect(await cluster.differences()).toEqual([]);
  const log = await stop('live');
  expect(log).not.toMatch(/"level":50|made anew/);
  expect(localObjects(cluster.file('live'))).toEqual(ALL);
});

describe('kill -9', () => {
  const afterIndex = (file: string): CrashPoint => ({
    at: 'statement',
    when: 'after',
    sql: '^CREATE INDEX by_title',
    file,
  });

  test('while they are made in a file that is there: none of them, then all', async () => {
    await cluster.startReplica('kept');
    await cluster.caughtUp();
    await stop('kept');
    await expect(
      cluster.startReplica('kept', { ...env, ...crashAt(afterIndex('kept\\.db$')) }),
    ).rejects.toThrow('SIGKILL');
    expect(localObjects(cluster.file('kept'))).toEqual([]);
    await cluster.startReplica('kept', env);
    expect(await cluster.differences()).toEqual([]);
    await stop('kept');
    expect(localObjects(cluster.file('kept'))).toEqual(ALL);
  });

  test('with a schema change: the change and they come together', async () => {
    const replica = await cluster.startReplica('kept', { ...env, ...crashAt(afterIndex('kept\\.db$')) });
    await cluster.postgres.sql('alter table docs alter column n type text');
    expect(await replica.exited).toBe('SIGKILL');
    expect(localObjects(cluster.file('kept'))).toEqual(ALL);
    await cluster.startReplica('kept', env);
    expect(await cluster.differences()).toEqual([]);
    await stop('kept');
    expect(localObjects(cluster.file('kept'))).toEqual(ALL);
  });

  test('behind the moment at which a new file took the place of the old one: it has them', async () => {
    const replica = await cluster.startReplica('kept', {
      ...env,
      ...crashAt({ at: 'rename', when: 'after', file: 'kept\\.db\\.link$' }),
    });
    await cluster.replicator!.kill('SIGTERM');
    rmSync(join(cluster.dir, 'data'), { recursive: true });
    await cluster.startReplicator({ RIVULET_TAKEOVER: 'true' });
    expect(await replica.exited).toBe('SIGKILL');
    cluster.replicas.clear();
    expect(localObjects(cluster.file('kept'))).toEqual(ALL);
    // What every replica starts from has nobody's.
    expect(localObjects(join(cluster.dir, 'data', 'base.db'))).toEqual([]);
    await cluster.startReplica('kept', env);
    expect(await cluster.differences()).toEqual([]);
    await stop('kept');
  });

  test.each<[string, CrashPoint, string[] | null]>([
    ['while they are made', afterIndex('one\\.db\\.building$'), null],
    ['behind its coming into place', { at: 'rename', when: 'after', file: 'one\\.db\\.building$' }, ALL],
  ])('everything in one process, %s', async (_moment, point, expected) => {
    const file = cluster.file('one');
    const args = [
      'replica',
      '--postgres',
      cluster.postgres.url,
      '--file',
      file,
      '--slot',
      'one',
      '--publication',
      'one',
    ];
    await using crashing = rivulet(args, { ...env, ...crashAt(point) });
    expect(await crashing.exited).toBe('SIGKILL');
    if (expected !== null) expect(localObjects(file)).toEqual(expected);
    {
      await using restarted = await crashing.restart(env);
      cluster.replicas.set('one', restarted);
      await cluster.postgres.sql("insert into docs (id, title, body) values (5000, 'one process', 'x')");
      expect(await cluster.differences()).toEqual([]);
      await stop('one');
    }
    expect(localObjects(file)).toEqual(ALL);
    await cluster.postgres.sql('delete from docs where id = 5000');
    await dropSlot(cluster.postgres, 'one');
    for (const each of [file, `${file}.rivulet`]) rmSync(each, { recursive: true });
  });
});
