import { describe, expect, test } from 'vitest';
import { parseLocalSql } from '../../src/replica/local-sql.ts';
import { splitScript } from '../../src/replica/sql-script.ts';

const parse = (text: string) => parseLocalSql({ text, source: 'local.sql' });

const NOTES = 'CREATE TABLE notes (n);';

describe('a script is cut into statements', () => {
  test('at semicolons that are not in texts, names, comments or triggers', () => {
    const script = `
      -- one; two
      CREATE VIEW a AS SELECT ';' AS "x;y", 'it''s; ' AS [z;]; /* ; */ ;;
      create temp trigger t after update on u when new.begin > 1 begin
        update notes set n = case when new.x then 1 else 2 end; -- END;
        delete from notes;
      end;
      CREATE INDEX \`i;\` ON u (v)`;
    expect(
      splitScript(script).map(({ line, sql }) => [line, sql.split('\n').length, sql.slice(0, 24)]),
    ).toEqual([
      [3, 1, 'CREATE VIEW a AS SELECT '],
      [4, 4, 'create temp trigger t af'],
      [8, 1, 'CREATE INDEX `i;` ON u ('],
    ]);
  });

  test('what has no end is for SQLite to complain of', () => {
    expect(splitScript("SELECT 'never")).toHaveLength(1);
    expect(splitScript('/* never')).toEqual([]);
    expect(splitScript('')).toEqual([]);
  });
});

describe('what is declared', () => {
  test('names, what they stand on, and what triggers write into', () => {
    const { objects, statements } = parse(`
      CREATE VIRTUAL TABLE IF NOT EXISTS found USING fts5(title, content='docs', content_rowid='id');
      INSERT INTO found(found) VALUES ('rebuild');
      CREATE TABLE main."a b" (n);
      CREATE TRIGGER up AFTER UPDATE OF title, [bo dy] ON "s.docs" WHEN new.begin = 1 BEGIN
        INSERT OR REPLACE INTO found(rowid, title) VALUES (new.id, new.title);
        SELECT 1; UPDATE OR IGNORE "a b" SET n = 1; DELETE FROM found; REPLACE INTO 'a b' VALUES (1);
      END;
      CREATE INDEX i ON docs (lower(title)) WHERE title IS NOT NULL;
      CREATE VIEW v(x) AS WITH w AS (SELECT 1) SELECT * FROM w;`);
    expect(objects.map(({ type, name, on, module, line }) => [type, name, on, module, line])).toEqual([
      ['table', 'found', null, 'fts5', 2],
      ['table', 'a b', null, null, 4],
      ['trigger', 'up', 's.docs', null, 5],
      ['index', 'i', 'docs', null, 9],
      ['view', 'v', null, null, 10],
    ]);
    expect(objects[2]!.trigger).toEqual({
      event: 'UPDATE',
      columns: ['title', 'bo dy'],
      writes: ['found', 'a b', 'found', 'a b'],
    });
    expect(statements[1]).toMatchObject({ kind: 'fill', table: 'found', line: 3 });
  });

  test('white space and comments change nothing, anything else does; a fill counts with its table', () => {
    const hash = (text: string) => parse(text).hashes.get('notes');
    expect(hash('CREATE TABLE notes(n)')).toBe(hash('-- my own\nCREATE  TABLE notes ( n );\n'));
    expect(hash(NOTES)).not.toBe(hash('CREATE TABLE notes (m);'));
    expect(hash(NOTES)).not.toBe(hash(`${NOTES} INSERT INTO notes VALUES (1);`));
  });
});

describe('what is refused, with its line', () => {
  const refused: readonly (readonly [string, string])[] = [
    ['\n\nSELECT 1;', 'line 3: SELECT is not allowed here'],
    ['PRAGMA user_version = 3', 'line 1: PRAGMA is not allowed here'],
    ['DROP TABLE users', 'DROP is not allowed here'],
    ['UPDATE users SET name = 1', 'UPDATE is not allowed here'],
    ['CREATE SCHEMA s', 'CREATE SCHEMA is not allowed here'],
    ['CREATE TEMP TABLE t (x)', 'temporary'],
    ['CREATE UNIQUE INDEX i ON users (name)', 'the index i cannot be unique'],
    ['CREATE TABLE t AS SELECT 1', 'the table t is made from a query'],
    ['CREATE INDEX _rivulet_i ON users (name)', 'the name _rivulet_i is reserved'],
    ['CREATE INDEX i ON _Rivulet_position (lsn)', '_Rivulet_position is not for indexes'],
    ['CREATE INDEX i ON s.docs (a)', 'there is no database s'],
    ['CREATE VIRTUAL TABLE t USING csv(x)', 'a virtual table of the module csv is not allowed'],
    ['CREATE VIRTUAL TABLE t USING fts5(x, tokenize=foo)', 'no such tokenizer: foo'],
    ['INSERT INTO users VALUES (1)', 'the INSERT writes into users, which is not a table of this file'],
    [`INSERT INTO notes VALUES (1); ${NOTES}`, 'the INSERT writes into notes'],
    [
      `${NOTES}\nCREATE VIEW Notes AS SELECT 1`,
      'line 2: the name Notes is taken already by the table of line 1',
    ],
    [
      `${NOTES}\nCREATE TRIGGER t AFTER INSERT ON docs BEGIN\nINSERT INTO notes VALUES (1);\nDELETE FROM users;\nEND;`,
      'line 2: the trigger t writes into users',
    ],
    [
      'CREATE TRIGGER t BEFORE INSERT ON docs BEGIN\nSELECT raise(IGNORE);\nEND',
      'line 2: RAISE(IGNORE) would leave a row of Postgres out',
    ],
    // SQLite's own words, also behind a table that it does not know yet.
    ['\nCREATE INDEX i ON users (name', 'line 2: incomplete input'],
    ['CREATE TABLE t (a,\n b);\n\nCREATE VIEW v AS\n SELECT 1 FRM t', 'line 5: near "t": syntax error'],
    ['CREATE TABLE t (a,, b)', 'line 1: near ",": syntax error'],
    [
      'CREATE TRIGGER t AFTER INSERT ON docs BEGIN\n SELEC 1;\n SELECT 2;\nEND',
      'line 2: near "SELEC": syntax error',
    ],
    ["CREATE VIEW v AS SELECT 'x", 'unrecognized token'],
    ['CREATE INDEX ON users (name)', 'near "users"'],
    ['CREATE TRIGGER t ON users BEGIN SELECT 1; END', 'near "ON": syntax error'],
    ['CREATE', 'CREATE the end is not allowed'],
    ['CREATE VIEW', 'not complete'],
  ];
  test.each(refused)('%s', (text, message) => {
    expect(() => parse(text)).toThrow(
      expect.objectContaining({ code: 'CONFIG', message: expect.stringContaining(message) }),
    );
    expect(() => parse(text)).toThrow(/^local\.sql line \d+: /);
  });

  test('what only the file can tell is not', () => {
    parse(`CREATE INDEX i ON users (bio); CREATE INDEX j ON users (upper(bio));
      CREATE TRIGGER t AFTER UPDATE OF bio ON users BEGIN SELECT new.bio; END;
      CREATE VIEW v AS SELECT whatever FROM nowhere;
      CREATE TABLE n (x); INSERT INTO n SELECT bio FROM users; CREATE UNIQUE INDEX u ON n (x);
      CREATE VIRTUAL TABLE f USING fts5(bio, content='users'); INSERT INTO f(f) VALUES('rebuild');`);
  });
});
