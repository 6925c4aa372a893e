import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { TestCluster } from '../helpers/cluster.ts';
import { MAJORS } from '../helpers/postgres.ts';
import { waitUntil } from '../helpers/wait-until.ts';

/** Each runs on what the ones before left, with the replica following live; then everything is compared. */
const SCENARIOS: readonly (readonly [name: string, ...statements: string[]])[] = [
  [
    'tables of every kind, made live',
    "create table plain (id int primary key, a text, n numeric(12,2), t timestamptz default '2026-01-01 00:00:00+00')",
    'create table keyless (x int, y text)',
    'create table "Odd "" name; drop" ("Select" int, "select" int, "rowid" text, primary key ("Select", "select"))',
    'create table "PLAIN" (id int primary key)',
    'create schema other; create table other.things (id bigint primary key, v bytea)',
    'create table part (id int, v text, primary key (id)) partition by range (id)',
    'create table part_a partition of part for values from (0) to (100)',
    'create table part_b (v text, id int primary key)',
    'create table deferred (id int primary key deferrable initially deferred, v text)',
    'create table parent (id int primary key, v text); create table child (extra int) inherits (parent)',
    "insert into plain (id, a, n) select i, 'a' || i, i * 1.25 from generate_series(1, 500) i",
    "insert into keyless values (1, 'a'), (1, 'a'), (2, null), (null, null)",
    `insert into "Odd "" name; drop" values (1, 2, 'r'), (3, 4, null)`,
    'insert into "PLAIN" values (1)',
    "insert into other.things values (9223372036854775807, '\\x00ff')",
    "insert into part select i, 'p' from generate_series(1, 50) i; insert into part_b select 'q', i from generate_series(100, 120) i",
    "insert into deferred select i, 'd' || i from generate_series(1, 5) i",
    "insert into parent values (1, 'p'); insert into child values (2, 'c', 7)",
  ],
  [
    'rows of tables without a key',
    "update keyless set y = 'b' where ctid = (select min(ctid) from keyless where x = 1)",
    'delete from keyless where ctid = (select min(ctid) from keyless where x is null)',
    'update deferred set id = id + 1',
    'begin; update deferred set id = 100 where id = 2; update deferred set id = 2 where id = 3; update deferred set id = 3 where id = 100; commit',
  ],
  ['a column', 'alter table plain add column c int', 'update plain set c = 5 where id < 10'],
  [
    'a column with a constant default',
    'alter table plain add column d int default 7',
    'update plain set d = 8 where id = 3',
  ],
  [
    'a column whose default changes at once',
    "alter table plain add column e text default 'first'; alter table plain alter column e set default 'second'; insert into plain (id) values (1000)",
  ],
  ['a volatile default', 'alter table plain add column u uuid default gen_random_uuid()'],
  ['a serial column', 'alter table keyless add column s serial', "update keyless set y = 'z' where x = 2"],
  [
    'a rewriting change of type between rows, in one transaction',
    "begin; insert into plain (id, a) values (2000, 'before'); alter table plain alter column n type text using 'v' || n; update plain set a = 'after' where id = 2000; insert into plain (id, n) values (2001, 'text'); commit",
  ],
  [
    'names',
    'alter table plain rename column a to b; alter table plain rename column c to a; alter table plain rename to renamed; alter table other.things set schema public',
    "update renamed set b = 'x', a = 1 where id = 5",
  ],
  [
    'two tables swap their names',
    'begin; alter table "PLAIN" rename to swap; alter table renamed rename to "PLAIN"; alter table swap rename to renamed; commit',
    'insert into renamed values (77)',
    'insert into "PLAIN" (id) values (3000)',
  ],
  [
    'drop and add the same column',
    'alter table "PLAIN" drop column b; alter table "PLAIN" add column b text',
    'update "PLAIN" set b = \'new\' where id = 6',
  ],
  [
    'another key',
    'alter table renamed drop constraint "PLAIN_pkey"',
    'insert into renamed values (77)',
    'delete from renamed where ctid = (select min(ctid) from renamed where id = 77)',
    'alter table renamed add column k int generated always as identity primary key',
    'update renamed set id = 78 where k = 1',
  ],
  [
    'made and filled by a query',
    "create table ctas as select i as id, 'x' || i as s from generate_series(1, 5) i",
    "update ctas set s = 'u' where id = 2; delete from ctas where id = 3",
  ],
  [
    'partitions come and go',
    'alter table part attach partition part_b for values from (100) to (200)',
    "update part set v = 'moved', id = id + 90 where id between 40 and 50",
    'create table part_c partition of part for values from (200) to (300)',
    "insert into part values (250, 'c')",
    'alter table part detach partition part_a',
    "update part_a set v = 'alone'",
    'drop table part_c',
  ],
  [
    'logged and unlogged',
    'create unlogged table quiet (id int primary key); insert into quiet select generate_series(1, 20)',
    'alter table quiet set logged',
    'insert into quiet values (21)',
    'alter table quiet set unlogged',
    'insert into quiet values (22)',
    'alter table quiet set logged',
  ],
  [
    'rolled back',
    'begin; alter table ctas add column gone int default 3; savepoint s; alter table ctas drop column s; rollback to s; insert into ctas values (9, $$n$$, 1); rollback; alter table ctas add column stays int default 4',
    'insert into ctas values (10)',
  ],
  [
    'truncate and alter in one transaction',
    "begin; truncate ctas; alter table ctas alter column stays type bigint; insert into ctas values (1, 'again', 5000000000); commit",
    'truncate keyless, deferred',
  ],
  [
    'indexes, CLUSTER, VACUUM FULL',
    'create index on "PLAIN" (d desc, b); create index concurrently later on "PLAIN" (a)',
    'drop index concurrently later',
    'cluster "PLAIN" using plain_pkey',
    'vacuum full part',
    'insert into part values (199, $$after$$)',
  ],
  [
    'dropped and made again with another shape',
    "drop table ctas; create table ctas (other text primary key, more int[]); insert into ctas values ('k', '{1,NULL,3}')",
  ],
  [
    'constant defaults of every kind',
    'create table had (id int primary key); insert into had select generate_series(1, 5)',
    `set datestyle = 'German'; set timezone = 'Asia/Tokyo'; set extra_float_digits = 0; set bytea_output = 'escape';
     alter table had add column i8 bigint default 9223372036854775807, add column f float8 default 0.1::float8 + 0.2,
       add column z float8 default '-0', add column inf float4 default '-infinity', add column nan float8 default 'NaN',
       add column n numeric default 12345678901234567890.5, add column d date default '2026-11-21',
       add column ts timestamptz default '2026-11-21 03:00+09', add column b bytea default '\\x00ff27',
       add column t text default $$it's "quoted", {a,b}  $$, add column e text default '', add column yes bool default true,
       add column a int[] default '{{1,2},{3,NULL}}', add column ta text[] default array['a,b', null, '"', '{}'],
       add column j json default '{"a": [1,  2]}', add column bx box default '((1,1),(0,0))', add column bxs box[] default array['((1,1),(0,0))'::box, '((3,3),(2,2))'::box],
       add column iv interval default '1 mon -2 days 03:00:00.5', add column m money default 1234.5, add column nn int default 3 not null`,
    'update had set t = $$new$$ where id = 1; insert into had (id) values (6)',
    'reset all',
  ],
  [
    'a column that is the new key',
    'create table lone (v text); insert into lone values ($$only$$); alter table lone add column k int default 4 primary key; insert into lone values ($$two$$, 5)',
    "update lone set v = 'x' where k = 4",
  ],
  [
    'labels of an enum',
    "create type mood as enum ('sad', 'ok'); create domain feeling as mood; create table moods (id int primary key, m mood, ms mood[], f feeling)",
    "insert into moods select i, 'sad', '{sad,ok}', 'ok' from generate_series(1, 50) i",
    "alter type mood add value 'happy' after 'ok'",
    "update moods set m = 'happy' where id = 3",
    "alter type mood rename value 'sad' to 'blue'",
    "begin; alter type mood rename value 'ok' to 'fine'; insert into moods values (51, 'fine'); commit",
  ],
  [
    'attributes of a composite type',
    'create type inner_type as (a int); create type outer_type as (i inner_type, t text); create table composed (id int primary key, o outer_type)',
    `insert into composed select i, '("(1)",t)' from generate_series(1, 20) i`,
    'alter type inner_type add attribute b text',
    `insert into composed values (21, '("(1,b)",t)')`,
    'alter type outer_type drop attribute t',
    `update composed set o = '("(7,c)")' where id = 2`,
  ],
  ['dropped', 'drop table part; drop schema other cascade; drop table parent cascade'],
];

describe.each(MAJORS)('Postgres %i', (major) => {
  let cluster: TestCluster;
  beforeAll(async () => {
    cluster = await TestCluster.start({ major });
    await cluster.startReplicator();
    await cluster.startReplica('one');
  });
  afterAll(async () => {
    await cluster[Symbol.asyncDispose]();
  });

  test.each(SCENARIOS)('%s', async (_name, ...statements) => {
    for (const statement of statements) {
      // Statements that cannot run inside a transaction need a message of their own.
      const separate = /concurrently|vacuum/.test(statement) ? statement.split('; ') : [statement];
      for (const each of separate) await cluster.postgres.sql(each);
    }
    expect(await cluster.differences()).toEqual([]);
  });

  test('only what Postgres did not tell was read again', () => {
    const reads = [...cluster.replicator!.stderr.matchAll(/"table":"public\.(\w+)","rows"/g)].map(
      ([, name]) => name,
    );
    expect([...new Set(reads)].sort()).toEqual([
      'composed',
      'ctas',
      'had',
      'keyless',
      'moods',
      'plain',
      'quiet',
      'renamed',
    ]);
    // Of twenty columns with a default, those of which the catalog could not tell it: once.
    expect(reads.filter((name) => name === 'had')).toHaveLength(1);
  });

  test('nothing of it needed a new copy', () => {
    expect(cluster.replicator!.stderr.match(/a new history begins/g)).toHaveLength(1);
  });
});

describe.each(MAJORS)('Postgres %i, without event triggers', (major) => {
  test('a change is noticed with the next row of its table, and its rows are read again', async () => {
    await using cluster = await TestCluster.start({ major });
    const { postgres } = cluster;
    await postgres.sql(
      "create table t (id int primary key, a int, b text); insert into t select i, i, 'b' || i from generate_series(1, 300) i",
    );
    await cluster.startReplicator();
    await postgres.sql(
      'drop event trigger _rivulet_ddl; drop event trigger _rivulet_drop; drop event trigger _rivulet_rewrite; drop event trigger _rivulet_alter; drop event trigger _rivulet_untie',
    );
    await cluster.replicator!.kill('SIGTERM');
    await cluster.startReplicator();
    await cluster.startReplica('one');
    for (const statements of [
      'alter table t add column c int default 5; update t set a = 0 where id = 1',
      "alter table t alter column a type text using 'a' || a; update t set b = 'x' where id = 2",
      'alter table t rename column b to d; update t set c = 6 where id = 3',
      'alter table t drop column c; delete from t where id = 4',
      'begin; update t set d = null where id = 5; alter table t add column e uuid default gen_random_uuid(); update t set d = null where id = 6; commit',
      "create table made (id int primary key, v text); insert into made values (1, 'x')",
      'alter table made rename to other; insert into other values (2, null)',
    ]) {
      await postgres.sql(statements);
      // From 18 on a new table has to be named in the publication.
      await waitUntil('the publication', async () => {
        const rows = await postgres.sql(`select from rivulet.misplaced_tables('rivulet')`);
        return rows.length === 0;
      });
      expect(await cluster.differences()).toEqual([]);
    }
    // No row follows these: they are found in the catalog.
    for (const statements of [
      "alter table t alter column d type text using 'again ' || d",
      'alter table t add column late int default 9',
      'create table silent (id int primary key)',
      'drop table other',
      'create table parts (id int) partition by range (id); create table parts_1 partition of parts for values from (0) to (9)',
      'insert into parts select generate_series(1, 8)',
      'truncate parts_1',
    ]) {
      await postgres.sql(statements);
      await waitUntil(statements, async () => (await cluster.differences()).length === 0, {
        intervalMs: 200,
      });
    }
    expect(cluster.replicator!.stderr).not.toContain('a new history begins');
  });
});

test.each(MAJORS)(
  'Postgres %i: TRUNCATE of a single partition, of which Postgres sends nothing',
  async (major) => {
    await using cluster = await TestCluster.start({ major });
    await cluster.postgres.sql(`
    create table parts (id int) partition by range (id);
    create table low partition of parts for values from (0) to (100);
    create table high partition of parts for values from (100) to (200);
    insert into parts select generate_series(1, 199);
    create table keyed (id int primary key, v text) partition by range (id);
    create table keyed_low partition of keyed for values from (0) to (100);
    insert into keyed select i, 'v' from generate_series(1, 99) i`);
    await cluster.startReplicator();
    await cluster.startReplica('one');
    await cluster.postgres.sql('truncate low; insert into parts values (5)');
    // Rows that come with the keys of those that are gone.
    await cluster.postgres.sql(`begin; update keyed set v = 'changed' where id < 10; truncate keyed_low;
      insert into keyed select i, 'again' from generate_series(1, 80) i; update keyed set v = 'more' where id = 5; commit`);
    await cluster.postgres.sql(
      `truncate keyed_low; insert into keyed select i, 'and again' from generate_series(1, 90) i`,
    );
    await waitUntil('the truncation', async () => (await cluster.differences()).length === 0, {
      intervalMs: 200,
    });
    // What only looks like it is left alone.
    await cluster.postgres.sql('vacuum full high');
    await waitUntil('the other file', () => cluster.replicator!.stderr.includes('with the rows that it had'));
    await cluster.postgres.sql('alter table parts add column v int default 7');
    expect(await cluster.differences()).toEqual([]);
    const read = [...cluster.replicator!.stderr.matchAll(/"table":"public\.(\w+)","rows"/g)].map(
      ([, name]) => name,
    );
    expect([...new Set(read)].sort()).toEqual(['keyed', 'parts']);
    // Somebody has counted its pages by then.
    await cluster.postgres.sql('truncate high; insert into parts values (150); analyze high');
    await waitUntil('the other truncation', async () => (await cluster.differences()).length === 0, {
      intervalMs: 200,
    });
    // Where no row is left nothing has to be read.
    const reads = (): number => cluster.replicator!.stderr.split('were read again').length;
    const before = reads();
    await cluster.postgres.sql('truncate low');
    await waitUntil('the truncation of all', async () => (await cluster.differences()).length === 0, {
      intervalMs: 200,
    });
    expect(reads()).toBe(before);
    expect(cluster.replicator!.stderr.split('a new history begins')).toHaveLength(2);
    await cluster.replicator!.kill('SIGTERM');
    await cluster.postgres.sql('truncate low; insert into parts values (6)');
    await cluster.postgres.sql('vacuum analyze low');
    await cluster.startReplicator();
    await waitUntil('what was truncated meanwhile', async () => (await cluster.differences()).length === 0, {
      intervalMs: 200,
    });
    expect(cluster.replicator!.stderr).not.toContain('a new history begins');
  },
);
