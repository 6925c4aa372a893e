import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import Database from 'better-sqlite3';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { Applier } from '../../src/replica/applier.ts';
import { checkTrigger } from '../../src/replica/local-check.ts';
import { LocalObjects, type LocalReport } from '../../src/replica/local-objects.ts';
import { parseLocalSql } from '../../src/replica/local-sql.ts';
import { type LocalObject, parseStatement } from '../../src/replica/local-statement.ts';
import { configureForApplying } from '../../src/replica/replica-file.ts';
import { createReplicaSchema } from '../../src/replica/schema.ts';
import { splitScript } from '../../src/replica/sql-script.ts';
import {
  partFrame,
  type TestChange,
  type TestColumn,
  testRelation,
  transactionFrame,
} from '../helpers/frames.ts';

const DOCS = 100;
const USERS = 200;

const docsColumns: readonly TestColumn[] = [
  { name: 'id', mapping: 'int', key: 1 },
  { name: 'title', attnum: 2 },
  { name: 'body', attnum: 3 },
];
const docs = (columns: readonly TestColumn[] = docsColumns, name = 'docs') =>
  testRelation({ oid: DOCS, name, columns });
const users = testRelation({
  oid: USERS,
  name: 'users',
  columns: [{ name: 'id', key: 1 }, { name: 'name' }],
});

const change = (...changed: ReturnType<typeof testRelation>[]): TestChange => ({
  schema: { changed, dropped: [] },
});

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

let directory: string;
let db: Database.Database;
let reader: Database.Database;
let applier: Applier;
let reports: LocalReport[];
let lsn: bigint;

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'rivulet-local-'));
  db = new Database(join(directory, 'replica.db'));
  configureForApplying(db);
  createReplicaSchema(db, [docs(), users], {
    epoch: 'epoch1',
    position: 0x100n,
    commitTimeUs: null,
    systemIdentifier: '7300000000000000000',
    databaseName: 'app',
  });
  reader = new Database(join(directory, 'replica.db'), { readonly: true });
  lsn = 0x1000n;
  open('');
  apply(
    { insert: DOCS, row: [1, 'one', 'first'] },
    { insert: DOCS, row: [2, 'two', 'second'] },
    { insert: USERS, row: ['a', 'ann'] },
  );
});

afterEach(() => {
  reader.close();
  db.close();
  rmSync(directory, { recursive: true });
});

/** As a replica does when it opens its file. */
function open(text: string): LocalReport {
  reports = [];
  const script = parseLocalSql({ text, source: 'local.sql' });
  const local = new LocalObjects(db, { script, onReport: (each) => reports.push(each), onStep: () => {} });
  local.open();
  applier = new Applier(db, { local, onNotice: ({ name }) => expect.fail(`a notice of ${name}`) });
  return reports.at(-1)!;
}

function transaction(...changes: TestChange[]): Buffer {
  lsn += 0x100n;
  return transactionFrame({ endLsn: lsn, changes });
}

const apply = (...changes: TestChange[]) => applier.apply(transaction(...changes));
const rows = (sql: string): unknown[] => reader.prepare(sql).raw().all();
const search = (word: string): unknown[] =>
  reader.prepare('SELECT rowid FROM found WHERE found MATCH ? ORDER BY rowid').pluck().all(word);
/** Local objects in the file, as SQLite knows them. */
const present = (): unknown[] =>
  reader
    .prepare(
      `SELECT name FROM sqlite_schema WHERE name NOT IN ('docs', 'users', 'documents')
       AND name NOT GLOB '_rivulet_*' AND name NOT GLOB 'sqlite_*' AND name NOT GLOB 'found_*' ORDER BY name`,
    )
    .pluck()
    .all();
const missing = () => reports.at(-1)?.missing.map(({ name, reason }) => `${name}: ${reason}`);

/** Raises if the full-text table holds anything but the rows of docs. */
function checkFound(): void {
  db.exec("INSERT INTO found(found, rank) VALUES ('integrity-check', 1)");
}

describe('made when the file is opened', () => {
  test('an index, a view, a table with its content, and triggers; remembered in the file', () => {
    const report = open(`${FTS}
      CREATE INDEX docs_title ON docs (lower(title)) WHERE body IS NOT NULL;
      CREATE VIEW titles AS SELECT id, upper(title) AS title FROM docs;
      CREATE TABLE seen (title TEXT);
      CREATE TRIGGER see AFTER INSERT ON docs BEGIN INSERT INTO seen VALUES (new.title); END;`);
    expect(report.made.map(({ type, name }) => `${type} ${name}`)).toEqual([
      'table found',
      'trigger docs_insert',
      'trigger docs_delete',
      'trigger docs_update',
      'index docs_title',
      'view titles',
      'table seen',
      'trigger see',
    ]);
    expect(report).toMatchObject({ missing: [], lost: [], removed: [] });
    expect(search('first')).toEqual([1]);
    expect(rows('SELECT title FROM titles')).toEqual([['ONE'], ['TWO']]);
    apply({ insert: DOCS, row: [3, 'three', 'third'] }, { update: DOCS, row: [1, 'uno', 'first'] });
    expect([search('third'), search('one'), search('uno')]).toEqual([[3], [], [1]]);
    expect(rows('SELECT * FROM seen')).toEqual([['three']]);
    expect(rows("SELECT type, sql, reason FROM _rivulet_local_object WHERE name = 'titles'")).toEqual([
      ['view', 'CREATE VIEW titles AS SELECT id, upper(title) AS title FROM docs', null],
    ]);
    expect(
      reader
        .prepare("EXPLAIN QUERY PLAN SELECT 1 FROM docs WHERE lower(title) = 'x' AND body > ''")
        .raw()
        .all()[0],
    ).toContain('SEARCH docs USING INDEX docs_title (<expr>=?)');
    checkFound();
  });

  test('readers see all of it at once, and a crash before leaves nothing', () => {
    const seen: unknown[] = [];
    const script = parseLocalSql({ text: `CREATE INDEX i ON docs (title); ${FTS}`, source: 'local.sql' });
    const options = { script, onReport: () => {}, onStep: () => seen.push(present()) };
    new LocalObjects(db, options).open();
    expect(seen).toEqual([[], []]);
    expect(present()).toHaveLength(5);
  });

  test('again with the same script: nothing is made anew', () => {
    open(`${FTS} CREATE INDEX i ON docs (title);`);
    const root = () => rows("SELECT rootpage FROM sqlite_schema WHERE name IN ('i', 'found_data')");
    const before = root();
    const changes = db.prepare('SELECT total_changes()').pluck();
    const written = changes.get();
    expect(open(`-- the same\n${FTS} CREATE  INDEX i ON docs ( title );`)).toMatchObject({
      made: [],
      lost: [],
    });
    expect([root(), changes.get()]).toEqual([before, written]);
    // Unless somebody has taken one away.
    db.exec('DROP INDEX i');
    expect(open(`${FTS} CREATE INDEX i ON docs (title);`).made).toMatchObject([{ name: 'i' }]);
  });

  test('a changed script: what went goes, what came comes, what stayed is left alone', () => {
    open(`CREATE INDEX stays ON docs (title); CREATE INDEX changes ON docs (title);
      CREATE VIEW goes AS SELECT 1; CREATE TABLE mine (n); INSERT INTO mine VALUES (1);`);
    const before = rows("SELECT rootpage FROM sqlite_schema WHERE name = 'stays'");
    const report = open(`CREATE INDEX changes ON docs (body); CREATE INDEX stays ON docs (title);
      CREATE TABLE mine (n); INSERT INTO mine VALUES (2); CREATE VIEW comes AS SELECT 2;`);
    expect(report.made.map(({ name }) => name)).toEqual(['changes', 'mine', 'comes']);
    expect(report.removed.map(({ name }) => name)).toEqual(['goes']);
    expect(rows("SELECT rootpage FROM sqlite_schema WHERE name = 'stays'")).toEqual(before);
    expect(rows('SELECT n FROM mine')).toEqual([[2]]);
    expect(rows("SELECT sql FROM sqlite_schema WHERE name = 'changes'")).toEqual([
      ['CREATE INDEX changes ON docs (body)'],
    ]);
    open('');
    expect(present()).toEqual([]);
    expect(rows('SELECT * FROM _rivulet_local_object')).toEqual([]);
  });

  test('one that was made by hand before is taken over; a table of that name is not', () => {
    db.exec('CREATE INDEX i ON docs (body); CREATE TABLE t (mine)');
    open(
      'CREATE INDEX i ON docs (title); CREATE TABLE IF NOT EXISTS t (n); CREATE TABLE IF NOT EXISTS users (n);',
    );
    expect(rows("SELECT sql FROM sqlite_schema WHERE name IN ('i', 't') ORDER BY name")).toEqual([
      ['CREATE INDEX i ON docs (title)'],
      ['CREATE TABLE t (mine)'],
    ]);
    expect(missing()).toEqual([
      't: there is a table of this name already',
      'users: there is a table of this name already',
    ]);
    open('');
    expect(rows('SELECT name FROM users')).toEqual([['ann']]);
    expect(rows('SELECT * FROM t')).toEqual([]);
  });

  test('what the tables do not allow is said, and the rest is made', () => {
    open(`CREATE INDEX a ON nowhere (x); CREATE INDEX b ON docs (nothing_like_it);
      CREATE VIEW c AS SELECT wrong FROM docs; CREATE INDEX d ON docs (json_extract(body, '$.x'));
      CREATE TABLE e (n NOT NULL); INSERT INTO e VALUES (NULL);
      CREATE TRIGGER f AFTER INSERT ON docs BEGIN INSERT INTO e VALUES (1); END;
      CREATE TRIGGER g AFTER UPDATE OF wrong ON docs BEGIN SELECT 1; END;
      CREATE TRIGGER h AFTER UPDATE ON docs BEGIN SELECT new.wrong; END;
      CREATE VIRTUAL TABLE k USING fts5(x, content='nowhere');
      CREATE VIEW good AS SELECT 1;`);
    expect(missing()).toEqual([
      'a: no such table: main.nowhere',
      'b: no such column: nothing_like_it',
      'c: no such column: wrong',
      'd: malformed JSON',
      'e: filling it (line 3) failed: NOT NULL constraint failed: e.n',
      'f: the table e, which it writes into, is not there',
      'g: no such column: wrong',
      'h: no such column: new.wrong',
      'k: no such table: main.nowhere',
    ]);
    expect(present()).toEqual(['good']);
  });

  test('a trigger never writes into a table of Postgres, whatever it is called', () => {
    const text = `CREATE TABLE notes (n);
      CREATE TRIGGER direct AFTER INSERT ON docs BEGIN INSERT INTO notes VALUES (1); END;
      CREATE TABLE middle (n);
      CREATE TRIGGER outer_one AFTER INSERT ON docs BEGIN INSERT INTO middle VALUES (1); END;
      CREATE TRIGGER inner_one AFTER INSERT ON middle BEGIN DELETE FROM notes; END;`;
    const notes = testRelation({
      oid: 300,
      name: 'notes',
      columns: [{ name: 'n', mapping: 'int' }],
      replicaIdentity: 'full',
    });
    open(text);
    apply(change(notes), { insert: 300, row: [7] });
    apply({ insert: DOCS, row: [3, 'three', 'third'] });
    expect(rows('SELECT n FROM notes')).toEqual([[7]]);
    expect(missing()).toEqual([
      'notes: there is a table of this name already',
      'direct: the table notes, which it writes into, is not there',
      'inner_one: the table notes, which it writes into, is not there',
    ]);
    expect(rows('SELECT count(*) FROM middle')).toEqual([[1]]);
  });

  test('what a trigger writes into is seen in its program, also behind other triggers', () => {
    db.exec(`CREATE TABLE own (n); CREATE TABLE more (n);
      CREATE TRIGGER first AFTER INSERT ON docs BEGIN INSERT INTO own VALUES (1); END;
      CREATE TRIGGER second AFTER INSERT ON own BEGIN DELETE FROM users; INSERT INTO more VALUES (1); END;`);
    const [statement] = splitScript('CREATE TRIGGER first AFTER INSERT ON docs BEGIN SELECT 1; END');
    const trigger = parseStatement(statement!, (_line, message) => expect.fail(message)) as LocalObject;
    const check = (triggers: string[], tables: string[]) => () =>
      checkTrigger(db, trigger, { triggers: new Set(triggers), tables: new Set(tables) });
    expect(check(['first', 'second'], ['own', 'more'])).toThrow('it would write into users');
    expect(check(['first', 'second'], ['users', 'more'])).toThrow('it would write into own');
    expect(check(['first', 'second'], ['users', 'own'])).toThrow('it would write into more');
    check(['first', 'second'], ['own', 'more', 'users'])();
    // Somebody else's trigger is not this one's fault.
    check(['first'], ['own'])();
  });

  test('what fills the disk is left out, and everything else goes on', () => {
    db.exec(
      "WITH RECURSIVE n(i) AS (SELECT 10 UNION ALL SELECT i + 1 FROM n WHERE i < 2000) INSERT INTO docs SELECT i, hex(randomblob(100)), '' FROM n",
    );
    const pages = db.pragma('page_count', { simple: true }) as number;
    db.pragma(`max_page_count = ${pages + 8}`);
    open('CREATE INDEX large ON docs (title); CREATE VIEW small AS SELECT 1;');
    expect(missing()).toEqual(['large: database or disk is full']);
    expect(present()).toEqual(['small']);
    apply(change(docs([...docsColumns, { name: 'more' }])));
    expect(missing()).toEqual(['large: database or disk is full']);
    db.pragma(`max_page_count = ${pages + 1000}`);
    apply(change(docs()));
    expect(present()).toEqual(['large', 'small']);
  });
});

describe('kept over schema changes', () => {
  const dropBody = change(docs(docsColumns.slice(0, 2)));

  test('an index on a column that goes and comes back', () => {
    open('CREATE INDEX i ON docs (body); CREATE INDEX j ON docs (title);');
    apply(dropBody);
    expect(present()).toEqual(['j']);
    expect(missing()).toEqual(['i: no such column: body']);
    expect(reports.at(-1)!.lost).toHaveLength(1);
    apply({ insert: DOCS, row: [3, 'three'] });
    apply(change(docs([...docsColumns.slice(0, 2), { name: 'body', attnum: 4 }])));
    expect(present()).toEqual(['i', 'j']);
    expect(reports.at(-1)).toMatchObject({ missing: [], made: [{ name: 'i' }] });
  });

  test('a full-text table goes with a column of its own, as a whole, and comes back whole', () => {
    open(FTS);
    apply(dropBody, { insert: DOCS, row: [3, 'three'] });
    expect(present()).toEqual([]);
    expect(missing()).toHaveLength(4);
    expect(missing()![0]).toMatch(/^found: no such column: T\.body|^found: filling/);
    apply({ insert: DOCS, row: [4, 'four'] });
    apply(change(docs([...docsColumns.slice(0, 2), { name: 'body', attnum: 4 }])), {
      update: DOCS,
      row: [4, 'four', 'fourth'],
    });
    expect(missing()).toEqual([]);
    expect([search('four'), search('fourth'), search('three')]).toEqual([[4], [4], [3]]);
    checkFound();
  });

  test('a column is renamed: SQLite follows in index, view and triggers, and it is said', () => {
    open(`CREATE INDEX i ON docs (body); CREATE VIEW v AS SELECT body FROM docs; CREATE TABLE log (b);
      CREATE TRIGGER t AFTER UPDATE OF body ON docs BEGIN INSERT INTO log VALUES (new.body); END;`);
    apply(change(docs([docsColumns[0]!, docsColumns[1]!, { name: 'text', attnum: 3 }])));
    expect(missing()).toEqual([]);
    expect(reports.at(-1)!.rewritten.map(({ name }) => name)).toEqual(['i', 'v', 't']);
    apply({ update: DOCS, row: [1, 'one', 'changed'] });
    expect(rows('SELECT * FROM v')).toEqual([['changed'], ['second']]);
    expect(rows('SELECT * FROM log')).toEqual([['changed']]);
    // Also over a rebuild, for which only what stood in the file will do.
    apply(change(docs([docsColumns[0]!, docsColumns[1]!, { name: 'text', attnum: 3, mapping: 'bytea' }])));
    expect(missing()).toEqual([]);
    apply({ update: DOCS, row: [1, 'one', 'again'] });
    expect(rows('SELECT * FROM log')).toEqual([['changed'], ['again']]);
    expect(open(`CREATE INDEX i ON docs (body);`).made).toEqual([]);
  });

  test('a table is renamed and a column changes its type, at once', () => {
    open('CREATE INDEX i ON docs (body);');
    const columns = [docsColumns[0]!, { ...docsColumns[1]!, mapping: 'bytea' as const }, docsColumns[2]!];
    apply(change(docs(columns, 'documents')));
    expect(rows("SELECT sql FROM sqlite_schema WHERE name = 'i'")).toEqual([
      ['CREATE INDEX i ON "documents" (body)'],
    ]);
    expect(missing()).toEqual([]);
  });

  test('a table that is filled goes with one of its triggers, and comes back with it', () => {
    const trigger = (
      name: string,
      event: string,
    ): string => `CREATE TRIGGER ${name} AFTER ${event} ON docs BEGIN
      INSERT OR REPLACE INTO own(rowid, title) VALUES (new.id, new.title); END;`;
    open(`CREATE VIRTUAL TABLE own USING fts5(title); INSERT INTO own(rowid, title) SELECT id, title FROM docs;
      CREATE VIEW words AS SELECT title FROM own;
      ${trigger('a', 'INSERT')} ${trigger('b', 'UPDATE OF body')} ${trigger('c', 'UPDATE OF title')}`);
    apply(dropBody);
    expect(missing()).toEqual([
      'own: its trigger b is not there, and without it the content would be wrong',
      'words: no such table: main.own',
      'a: the table own, which it writes into, is not there',
      'b: no such column: body',
      'c: the table own, which it writes into, is not there',
    ]);
    expect(present()).toEqual([]);
    apply({ insert: DOCS, row: [3, 'three'] });
    apply(change(docs([...docsColumns.slice(0, 2), { name: 'body', attnum: 4 }])));
    expect(missing()).toEqual([]);
    expect(rows('SELECT * FROM words')).toHaveLength(3);
  });

  test('a table is renamed: what SQLite can follow stays, a full-text table over it does not', () => {
    open(`${FTS} CREATE INDEX i ON docs (body); CREATE VIEW v AS SELECT body FROM docs;`);
    apply(change(docs(docsColumns, 'documents')));
    expect(present()).toEqual(['i', 'v']);
    expect(missing()).toHaveLength(4);
    expect(rows('SELECT * FROM v')).toHaveLength(2);
    apply({ insert: DOCS, row: [3, 'three', 'third'] });
    apply(change(docs()));
    expect(missing()).toEqual([]);
    expect(search('third')).toEqual([3]);
    checkFound();
  });

  test('another table takes its place: the script means that one', () => {
    const own =
      'CREATE VIRTUAL TABLE own USING fts5(title); INSERT INTO own(rowid, title) SELECT id, title FROM docs;';
    open(`CREATE INDEX i ON docs (body); CREATE VIEW v AS SELECT title FROM docs; ${own}
      CREATE TRIGGER t AFTER INSERT ON docs BEGIN INSERT INTO own(rowid, title) VALUES (new.id, new.title); END;`);
    const on = (): unknown[] => rows("SELECT name, tbl_name FROM sqlite_schema WHERE name IN ('i', 't')");
    apply(change(docs(docsColumns, 'Old "docs')), { insert: DOCS, row: [3, 'three', 'third'] });
    expect(on()).toEqual([
      ['i', 'Old "docs'],
      ['t', 'Old "docs'],
    ]);
    expect(rows('SELECT * FROM v')).toHaveLength(3);
    expect(rows("SELECT rowid FROM own('three')")).toEqual([[3]]);
    apply(change(testRelation({ oid: 101, name: 'docs', columns: docsColumns })), {
      insert: 101,
      row: [1, 'other', ''],
    });
    expect(on().toSorted()).toEqual([
      ['i', 'docs'],
      ['t', 'docs'],
    ]);
    expect(rows('SELECT * FROM v')).toEqual([['other']]);
    expect(rows('SELECT title FROM own')).toEqual([['other']]);
    expect(missing()).toEqual([]);
    const root = () => rows("SELECT rootpage FROM sqlite_schema WHERE name = 'i'");
    const before = root();
    apply(change(users));
    expect(root()).toEqual(before);
  });

  test('a type changes and the table is made anew, rows after it in the same transaction', () => {
    open(`${FTS} CREATE INDEX i ON docs (body); CREATE TABLE log (id);
      CREATE TRIGGER t AFTER INSERT ON docs BEGIN INSERT INTO log VALUES (new.id); END;`);
    const retyped = docs([docsColumns[0]!, docsColumns[1]!, { ...docsColumns[2]!, mapping: 'bytea' }]);
    apply(
      { insert: DOCS, row: [3, 'three', 'third'] },
      change(retyped),
      { truncate: DOCS },
      { insert: DOCS, row: [1, 'one', Buffer.from('erst')] },
    );
    expect(missing()).toEqual([]);
    expect(present()).toEqual(['docs_delete', 'docs_insert', 'docs_update', 'found', 'i', 'log', 't']);
    expect([search('third'), search('one')]).toEqual([[], [1]]);
    checkFound();
    apply({ insert: DOCS, row: [2, 'two', null] }, { delete: DOCS, key: [1] });
    expect([search('one'), search('two')]).toEqual([[], [2]]);
    // A table that the script does not fill is not emptied.
    expect(rows('SELECT id FROM log')).toEqual([[3], [2]]);
    checkFound();
  });

  test('a table is dropped, and made again', () => {
    open(`${FTS} CREATE INDEX i ON docs (body); CREATE VIEW v AS SELECT body FROM docs; CREATE TABLE log (id);
      CREATE TRIGGER t AFTER INSERT ON users BEGIN INSERT INTO log SELECT count(*) FROM docs; END;`);
    apply({ schema: { changed: [], dropped: [DOCS] } }, { insert: USERS, row: ['b', 'bob'] });
    expect(present()).toEqual(['log']);
    expect(missing()).toHaveLength(7);
    apply({ insert: USERS, row: ['c', 'cleo'] });
    apply(change(testRelation({ oid: 101, name: 'docs', columns: docsColumns })), {
      insert: 101,
      row: [1, 'again', 'here'],
    });
    expect(missing()).toEqual([]);
    expect(search('here')).toEqual([1]);
    apply({ insert: USERS, row: ['d', 'dan'] });
    expect(rows('SELECT * FROM log')).toEqual([[1]]);
    checkFound();
  });

  test('TRUNCATE fires the triggers', () => {
    open(FTS);
    apply({ truncate: DOCS }, { insert: DOCS, row: [2, 'new', 'second'] });
    expect([search('first'), search('second')]).toEqual([[], [2]]);
    checkFound();
  });

  test('a schema change that is rolled back takes nothing along', () => {
    open(`${FTS} CREATE INDEX i ON docs (body);`);
    const before = rows('SELECT * FROM sqlite_schema');
    const reported = reports.length;
    expect(() => apply(dropBody, { delete: DOCS, key: [99] })).toThrow();
    expect(rows('SELECT * FROM sqlite_schema')).toEqual(before);
    expect(reports).toHaveLength(reported);
    apply({ update: DOCS, row: [1, 'one', 'changed'] });
    expect(search('changed')).toEqual([1]);
  });

  test('a table of Postgres takes the name of a local one', () => {
    open('CREATE TABLE t (n); CREATE INDEX i ON t (n); CREATE VIEW v AS SELECT 1;');
    const columns = [{ name: 'id', mapping: 'int' as const, key: 1 }];
    apply(
      change(testRelation({ oid: 300, name: 'T', columns }), testRelation({ oid: 301, name: 'v', columns })),
      { insert: 300, row: [1] },
      change(users),
    );
    apply(change(docs([...docsColumns, { name: 'more' }])), change(docs()), change(users));
    apply(change(users));
    expect(rows('SELECT id FROM "T"')).toEqual([[1]]);
    expect(rows('SELECT sqlite_name FROM _rivulet_table WHERE relation_oid = 301')).toEqual([['v']]);
    expect(missing()).toEqual([
      't: there is a table of this name already',
      'i: no such column: n',
      'v: there is a table of this name already',
    ]);
  });

  test('in parts: nothing is seen before the end, and everything is there then', () => {
    open(`${FTS} CREATE INDEX i ON docs (body);`);
    const retyped = docs([docsColumns[0]!, docsColumns[1]!, { ...docsColumns[2]!, mapping: 'bytea' }]);
    applier.apply(partFrame([change(retyped), { insert: DOCS, row: [3, 'three', null] }]));
    expect([search('three'), search('one')]).toEqual([[], [1]]);
    applier.apply(
      transactionFrame({ endLsn: 0x9000n, hasParts: true, changes: [{ delete: DOCS, key: [1] }] }),
    );
    expect([search('three'), search('one')]).toEqual([[3], []]);
    expect(present()).toHaveLength(5);
    checkFound();
  });
});

describe('never stop applying', () => {
  const raising = `CREATE TABLE log (id INTEGER PRIMARY KEY, name);
    CREATE TRIGGER fine AFTER INSERT ON docs BEGIN INSERT INTO log VALUES (NULL, new.title); END;
    CREATE TRIGGER raises AFTER INSERT ON docs WHEN new.title = 'bad' BEGIN SELECT raise(ABORT, 'no such title'); END;`;

  test('a trigger that raises is found among others and dropped; the rows are applied', () => {
    open(`${FTS} ${raising} CREATE INDEX i ON docs (lower(title));`);
    apply({ insert: DOCS, row: [3, 'bad', 'third'] }, { insert: DOCS, row: [4, 'good', 'fourth'] });
    expect(rows('SELECT id FROM docs')).toHaveLength(4);
    expect(missing()).toEqual(['raises: no such title']);
    expect(rows('SELECT name FROM log')).toEqual([['bad'], ['good']]);
    expect(search('third OR fourth')).toEqual([3, 4]);
    checkFound();
    apply({ insert: DOCS, row: [5, 'bad', 'fifth'] });
    // With the next schema change it is tried again, and at the next start.
    apply(change(docs([...docsColumns, { name: 'more' }])), { insert: DOCS, row: [6, 'bad', 'sixth', null] });
    expect(missing()).toEqual([]);
    apply({ insert: DOCS, row: [7, 'bad', 'seventh', null] });
    expect(missing()).toEqual(['raises: no such title']);
    expect(open(`${FTS} ${raising} CREATE INDEX i ON docs (lower(title));`).made).toMatchObject([
      { name: 'raises' },
    ]);
  });

  test('a trigger made by hand that keeps rows out', () => {
    open('');
    const notices: string[] = [];
    applier = new Applier(db, { onNotice: ({ name, reason }) => notices.push(`${name}: ${reason}`) });
    db.exec('CREATE TRIGGER mine BEFORE INSERT ON docs WHEN new.id > 2 BEGIN SELECT raise(IGNORE); END');
    apply({ insert: DOCS, row: [3, 'three', 'third'] });
    expect(rows('SELECT id FROM docs')).toHaveLength(3);
    expect(notices).toEqual(['mine: a trigger keeps rows out of docs']);
  });

  test('RAISE(ROLLBACK) too', () => {
    open(raising.replace('ABORT', 'ROLLBACK'));
    apply({ insert: DOCS, row: [3, 'bad', 'third'] });
    expect(rows('SELECT id FROM docs')).toHaveLength(3);
    expect(missing()).toEqual(['raises: no such title']);
  });

  test('a trigger whose own table refuses the row is not taken for divergence', () => {
    open(`CREATE TABLE log (name PRIMARY KEY);
      CREATE TRIGGER t AFTER INSERT ON docs BEGIN INSERT INTO log VALUES (new.title); END;`);
    apply({ insert: DOCS, row: [3, 'same', null] }, { insert: DOCS, row: [4, 'same', null] });
    expect(rows('SELECT id FROM docs')).toHaveLength(4);
    expect(missing()).toEqual(['t: UNIQUE constraint failed: log.name']);
  });

  test('an expression index that cannot take a row', () => {
    open("CREATE INDEX i ON docs (json_extract(body, '$.x')) WHERE id > 2; CREATE INDEX j ON docs (title);");
    apply({ insert: DOCS, row: [3, 'three', '{"x":1}'] });
    apply({ insert: DOCS, row: [4, 'four', '{no json'] });
    expect(rows('SELECT id FROM docs')).toHaveLength(4);
    expect(missing()).toEqual(['i: malformed JSON']);
    expect(present()).toEqual(['j']);
  });

  test('two that raise at once', () => {
    open(`${raising} CREATE INDEX i ON docs (json_extract(body, '$.x')) WHERE id > 2;`);
    apply({ insert: DOCS, row: [3, 'bad', 'no json'] });
    expect(rows('SELECT id FROM docs')).toHaveLength(3);
    expect(present()).not.toContain('raises');
    expect(present()).not.toContain('i');
  });

  test('a full-text table that was damaged goes as a whole', () => {
    const fine = 'CREATE VIEW v AS SELECT 1; CREATE INDEX i ON docs (title);';
    open(`${fine} ${FTS}`);
    db.exec('CREATE TRIGGER mine AFTER UPDATE ON docs BEGIN SELECT 1; END');
    db.unsafeMode(true);
    db.exec('DELETE FROM found_data; DELETE FROM found_idx');
    db.unsafeMode(false);
    apply({ update: DOCS, row: [1, 'uno', 'first'] }, { delete: DOCS, key: [2] });
    expect(rows('SELECT id, title FROM docs')).toEqual([[1, 'uno']]);
    // Which is more than one trigger, but nobody else's.
    expect(present()).toEqual(['i', 'mine', 'v']);
    expect(missing()).toHaveLength(4);
    open(FTS);
    expect(search('uno')).toEqual([1]);
    checkFound();
  });

  test('in parts: it is dropped, and the transaction asked for again', () => {
    open(`${FTS} ${raising}`);
    const frames = (): Buffer[] => [
      partFrame([{ insert: DOCS, row: [3, 'three', 'third'] }]),
      partFrame([{ insert: DOCS, row: [4, 'bad', 'fourth'] }]),
      transactionFrame({ endLsn: 0x9000n, hasParts: true, changes: [] }),
    ];
    expect(() => {
      for (const frame of frames()) applier.apply(frame);
    }).toThrow(expect.objectContaining({ code: 'PROTOCOL' }));
    expect(missing()).toContain('raises: no such title');
    for (const frame of frames()) applier.apply(frame);
    expect(rows('SELECT id FROM docs')).toHaveLength(4);
    // Which of them it was is not known; all come back once the transaction is in.
    expect(missing()).toEqual([]);
    expect(search('third OR fourth')).toEqual([3, 4]);
    checkFound();
  });

  test('what is wrong without them stays wrong, and they stay', () => {
    open(`${FTS} ${raising}`);
    const before = present();
    expect(() => apply({ delete: DOCS, key: [99] })).toThrow(
      expect.objectContaining({ code: 'ROW_MISSING' }),
    );
    expect(present()).toEqual(before);
  });
});
