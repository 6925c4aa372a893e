import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { examineMigration } from '../../src/cli/doctor/migration/migration.ts';
import { splitStatements } from '../../src/cli/doctor/migration/statements.ts';
import { run } from '../../src/cli/run.ts';
import { fakeProcess } from './fake-process.ts';

const dir = mkdtempSync(join(tmpdir(), 'rivulet-migration-'));
afterAll(() => rmSync(dir, { recursive: true, force: true }));

function write(sql: string): string {
  const file = join(dir, 'm.sql');
  writeFileSync(file, sql);
  return file;
}

/** Without a server: `line effect` of each statement. */
async function effects(sql: string): Promise<string[]> {
  const report = await examineMigration({
    file: write(sql),
    url: null,
    publication: 'rivulet',
    slot: 'rivulet',
  });
  return report.statements.map(({ line, effect }) => `${line} ${effect}`);
}

async function rivulet(...args: string[]): Promise<{ code: number; out: string; err: string }> {
  const host = fakeProcess({});
  const code = await run(['doctor', ...args], host);
  return { code, out: host.stdout.text, err: host.stderr.text };
}

describe('splitting a file', () => {
  const split = (text: string): string[] =>
    splitStatements(text).map(({ line, text: sql }) => `${line} ${sql}`);

  test.each<[string, string, string[]]>([
    ['plain statements', 'select 1;\nselect 2', ['1 select 1', '2 select 2']],
    ['empty ones', ';;\n ; select 1;;', ['2 select 1']],
    ['quotes', `select 'a;b''c;', "x;y""z;";select 2`, [`1 select 'a;b''c;', "x;y""z;"`, '1 select 2']],
    [
      'escape strings',
      String.raw`select E'a\';b', 'c\'; select 2`,
      [String.raw`1 select E'a\';b', 'c\'`, '1 select 2'],
    ],
    ['a name that ends in e', "select * from one'x\\'; select 2", ["1 select * from one'x\\'", '1 select 2']],
    [
      'dollar quotes',
      'do $$ a; $x$ b; $$; do $x$ $$ ; $x$; select $1',
      ['1 do $$ a; $x$ b; $$', '1 do $x$ $$ ; $x$', '1 select $1'],
    ],
    ['comments', '-- a;\n/* b; /* c; */ d; */ select 1 -- ;\n, 2; -- end', ['2 select 1 -- ;\n, 2']],
    [
      'rules in parentheses',
      'create rule r as on insert to t do (select 1; select 2); select 3',
      ['1 create rule r as on insert to t do (select 1; select 2)', '1 select 3'],
    ],
    [
      'bodies of SQL functions',
      'create function f() returns int begin atomic select case when true then 1 end; select 2; end; begin; select 3; end',
      [
        '1 create function f() returns int begin atomic select case when true then 1 end; select 2; end',
        '1 begin',
        '1 select 3',
        '1 end',
      ],
    ],
    [
      'psql',
      "\\set x 'it\n\\i other.sql\nselect 1;\n  \\echo ;\nselect 2",
      ["1 \\set x 'it", '2 \\i other.sql', '3 select 1', '4 \\echo ;', '5 select 2'],
    ],
    ['COPY data', "copy t from stdin;\n1\ta;'\n2\t\\N\n\\.\nselect 1", ['1 copy t from stdin', '5 select 1']],
    ['lines of Windows', 'select 1;\r\nselect\r\n 2;\r\n', ['1 select 1', '2 select\n 2']],
    ['something unfinished', "select 'a; select 2", ["1 select 'a; select 2"]],
  ])('%s', (_what, text, expected) => {
    expect(split(text)).toEqual(expected);
  });

  test('counts the rows of COPY data', () => {
    expect(splitStatements('copy t from stdin;\na\nb\n\\.\n')[0]).toMatchObject({ copyRows: 2 });
  });
});

describe('what statements do, without a server', () => {
  test('an error hides no other statement, and names its own line', async () => {
    const sql =
      "create table a (id int primary key);\n\nselect 'ä',\n  from\n  from b;\ncreate table c (id int);\nselect 'open";
    expect(await effects(sql)).toEqual(['1 live', '4 error', '6 live', '7 error']);
  });

  test.each<[string, string, string]>([
    ['the publication', 'drop publication rivulet', 'rebuild'],
    ['another publication', 'drop publication other', 'none'],
    ['its name', 'alter publication rivulet rename to r', 'rebuild'],
    ['what it publishes', "alter publication rivulet set (publish = 'insert')", 'dangerous'],
    ['the slot', "select pg_drop_replication_slot('rivulet')", 'rebuild'],
    ['any slot', 'select pg_drop_replication_slot(slot_name) from pg_replication_slots', 'rebuild'],
    ['another slot', "select pg_drop_replication_slot('other')", 'none'],
    ['the slot, moved', "select pg_replication_slot_advance('rivulet', '0/0')", 'rebuild'],
    ['the schema', 'drop schema rivulet cascade', 'dangerous'],
    ['a table of it', 'delete from rivulet.saved_identity', 'dangerous'],
    ['looking at it', 'select * from rivulet.config', 'none'],
    ['an event trigger', 'drop event trigger _rivulet_ddl', 'dangerous'],
    ['an event trigger, switched off', 'alter event trigger _rivulet_drop disable', 'dangerous'],
    ['wal_level', 'alter system set wal_level = replica', 'dangerous'],
    ['another setting', "alter system set work_mem = '8MB'", 'none'],
    ['the right to replicate', 'alter role someone noreplication', 'dangerous'],
    ['the database', 'drop database d', 'dangerous'],
    ['a procedure', 'call p()', 'opaque'],
    ['a block', 'do $$ begin drop table t; end $$', 'opaque'],
    ['an extension', 'create extension hstore', 'opaque'],
  ])('%s: %s', async (_what, sql, effect) => {
    expect(await effects(sql)).toEqual([`1 ${effect}`]);
  });

  test('partitions stay behind their root in a publication that set-up made', async () => {
    expect(
      await effects(`create table p (id int primary key) partition by list (id);
alter publication rivulet set (publish_via_partition_root = false)`),
    ).toEqual(['1 live', '2 refused']);
  });

  test('a table that the file made is known, one that it did not is guessed', async () => {
    expect(
      await effects(`
create table t (id int primary key, v varchar(5));
alter table t alter column v type varchar(10);
alter table t alter column v type varchar(3);
alter table t rename column v to w;
alter table t alter column v type text;
alter table t add constraint u unique (w);
drop table t;
alter table t add column x int;
alter table elsewhere alter column v type varchar(10);
alter table elsewhere add column n int;
create function mine() returns int language sql immutable as 'select 1';
alter table elsewhere add column m int default mine();
alter table elsewhere add column s int default random()::int`),
    ).toEqual([
      '2 live',
      '3 live',
      '4 backfill',
      '5 live',
      '6 refused',
      '7 live',
      '8 leaves',
      '9 live',
      '10 backfill',
      '11 live',
      '12 none',
      '13 live',
      '14 backfill',
    ]);
  });

  test('what is rolled back had no effect', async () => {
    expect(
      await effects(
        'create table t (id int);begin;\nalter table t add column a int default 1;\nsavepoint s;\ndrop table t;\nrollback to s;\n' +
          'alter table t add column b int;\nrollback;\nalter table t add column a int;begin;drop table t;commit',
      ),
    ).toEqual([
      '1 live',
      '1 none',
      '2 none',
      '3 none',
      '4 none',
      '5 none',
      '6 none',
      '7 none',
      '8 live',
      '8 none',
      '8 leaves',
      '8 none',
    ]);
  });
});

describe('the command', () => {
  test('says what it knows, and its exit code tells whether replicas can follow', async () => {
    const good = await rivulet(
      '--migration',
      write(
        "\\set ON_ERROR_STOP on\ncreate table t (id int);\ninsert into t values (1), (2);\nalter table t add column c float8 default random();\nset lock_timeout = '1s'",
      ),
    );
    expect(good).toMatchObject({ code: 0, err: '' });
    expect(good.out).toContain('Without --postgres only tables that the file itself makes are known');
    expect(good.out).toMatch(/^4 {2}backfill {5}alter table t add column c float8 default random\(\)$/m);
    expect(good.out).toMatch(
      /public\.t is read again \(about 2 rows\): every row gets a value of its own for c/,
    );
    expect(good.out).toContain('a command of psql, which is ignored');
    expect(good.out).toContain('1 other statement without effect');
    expect(good.out).toMatch(
      /The replicas follow all of 5 statements; 1 table is read again, about 2 rows\.$/m,
    );
    const bad = await rivulet('--migration', write('alter tabel t add x int;'));
    expect(bad.code).toBe(1);
    expect(bad.out).toMatch(/^1 {2}no SQL {7}alter tabel t add x int$/m);
    expect(bad.out).toContain('syntax error at or near "tabel"');
    const json = await rivulet('--migration', write('drop publication rivulet'), '--json');
    expect(json.code).toBe(1);
    expect(JSON.parse(json.out)).toMatchObject({
      isBad: true,
      isConnected: false,
      statements: [{ line: 1, effect: 'rebuild' }],
    });
    expect((await rivulet('--migration', write('-- nothing'))).code).toBe(0);
  });

  test('refuses a file that cannot be read', async () => {
    for (const file of [join(dir, 'absent.sql'), dir]) {
      const outcome = await rivulet('--migration', file);
      expect(outcome).toMatchObject({ code: 2, out: '' });
      expect(outcome.err).toMatch(/^rivulet: the migration .* cannot be read: (ENOENT|EISDIR)\n {2}hint: /);
    }
  });
});
