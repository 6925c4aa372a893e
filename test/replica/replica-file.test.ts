import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import Database from 'better-sqlite3';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import {
  checkSqliteVersion,
  configureForApplying,
  createReplicaFile,
  currentTarget,
  finishReplicaFile,
  lockFile,
  openReplicaFile,
  readPosition,
  removeOldGenerations,
  swapInto,
} from '../../src/replica/replica-file.ts';
import { createReplicaSchema } from '../../src/replica/schema.ts';
import { testRelation } from '../helpers/frames.ts';

let directory: string;
let path: string;

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'rivulet-file-'));
  path = join(directory, 'app.db');
});

afterEach(() => {
  rmSync(directory, { recursive: true });
});

function build(name: string, content: string): string {
  const file = join(directory, name);
  const db = createReplicaFile(file);
  createReplicaSchema(db, [testRelation({ oid: 1, name: 't', columns: [{ name: 'v' }] })], {
    epoch: 'e1',
    position: 0x16b374d848n,
    commitTimeUs: 0n,
    systemIdentifier: '73',
    databaseName: 'app',
  });
  db.prepare('INSERT INTO t VALUES (?)').run(content);
  finishReplicaFile(db);
  return file;
}

const read = (db: Database.Database): unknown => db.prepare('SELECT v FROM t').pluck().all();
const files = (): string[] => readdirSync(directory).sort();

describe('opening', () => {
  test('a replica file, with its position', () => {
    build('app.db', 'x');
    const db = openReplicaFile(path, { systemIdentifier: '73', databaseName: 'app' });
    expect(readPosition(db)).toEqual({
      epoch: 'e1',
      lsn: 0x16b374d848n,
      applied: 0x16b374d848n,
      commitTime: '1970-01-01 00:00:00.000000Z',
    });
    expect(db.pragma('journal_mode', { simple: true })).toBe('wal');
    db.close();
  });

  test.each([
    ['is not SQLite', () => writeFileSync(path, 'something else entirely'), /is not a SQLite database/],
    ['is empty', () => writeFileSync(path, ''), /is not a SQLite database/],
    ['does not exist', () => {}, /does not exist/],
    [
      'is a database of somebody else',
      () => new Database(path).exec('CREATE TABLE users (id)').close(),
      /not one that Rivulet made/,
    ],
    ['is damaged', () => writeFileSync(path, `SQLite format 3\0${'\x01'.repeat(5000)}`), /cannot be opened/],
  ])('a file that %s is refused, and left as it is', (_, make, message) => {
    make();
    const before = existsSync(path) ? readFileSync(path) : null;
    expect(() => openReplicaFile(path)).toThrow(
      expect.objectContaining({ code: 'FILE_UNUSABLE', message: expect.stringMatching(message) }),
    );
    expect(existsSync(path) ? readFileSync(path) : null).toEqual(before);
  });

  test('a replica of another database, or of a format to come', () => {
    build('app.db', 'x');
    expect(() => openReplicaFile(path, { systemIdentifier: '74' })).toThrow(
      expect.objectContaining({ code: 'FILE_UNUSABLE' }),
    );
    expect(() => openReplicaFile(path, { databaseName: 'other' })).toThrow(
      expect.objectContaining({ code: 'FILE_UNUSABLE' }),
    );
    new Database(path).exec("UPDATE _rivulet_meta SET value = 99 WHERE key = 'format_version'").close();
    expect(() => openReplicaFile(path)).toThrow(expect.objectContaining({ code: 'VERSION_MISMATCH' }));
  });

  test('a directory in its place', () => {
    for (const take of [lockFile, openReplicaFile, createReplicaFile]) {
      expect(() => take(directory)).toThrow(
        expect.objectContaining({ code: 'FILE_UNUSABLE', message: `${directory} is a directory` }),
      );
    }
  });

  test('a directory that is not there', () => {
    expect(() => openReplicaFile(join(directory, 'no', 'app.db'))).toThrow(/directory that does not exist/);
    expect(() => lockFile(join(directory, 'no', 'app.db'))).toThrow(
      expect.objectContaining({ code: 'FILE_UNUSABLE' }),
    );
  });

  test('SQLite versions', () => {
    checkSqliteVersion();
    checkSqliteVersion('3.51.3');
    checkSqliteVersion('4.0');
    for (const old of ['3.51.2', '3.40.1', '3.9.99']) {
      expect(() => checkSqliteVersion(old)).toThrow(expect.objectContaining({ code: 'FILE_UNUSABLE' }));
    }
  });
});

describe('the lock', () => {
  test('is of the one name of a file: links of others, and the generation itself, are refused', () => {
    const link = join(directory, 'link.db');
    const refused = (name: string, hint: string) =>
      expect(() => lockFile(join(directory, name))).toThrow(
        expect.objectContaining({ code: 'FILE_UNUSABLE', hint: expect.stringContaining(hint) }),
      );
    symlinkSync('app.db', link);
    refused('link.db', path);
    swapInto(path, build('new', 'one'), 'e1');
    refused('link.db', path);
    swapInto(path, build('new', 'two'), 'e1');
    refused('link.db', path);
    refused('app.db.e1-1', path);
    rmSync(link);
    symlinkSync(join(directory, 'app.db.e1-1'), link);
    refused('link.db', 'app.db.e1-1');
    // By another way to the same directory it is the same name.
    mkdirSync(join(directory, 'sub'));
    symlinkSync(directory, join(directory, 'sub', 'here'));
    const lock = lockFile(path);
    expect(() => lockFile(join(directory, 'sub', 'here', 'app.db'))).toThrow(
      expect.objectContaining({ code: 'FILE_LOCKED' }),
    );
    lock.release();
  });

  test('is exclusive, also in this process, and is given back', () => {
    const lock = lockFile(path);
    expect(() => lockFile(path)).toThrow(expect.objectContaining({ code: 'FILE_LOCKED' }));
    const other = lockFile(join(directory, 'other.db'));
    lock.release();
    lock.release();
    lockFile(path).release();
    other.release();
  });

  test('kill -9 frees it', async () => {
    const module = new URL('../../src/replica/replica-file.ts', import.meta.url).href;
    const holder: ChildProcess = spawn(
      process.execPath,
      [
        '--input-type=module',
        '-e',
        // Kept somewhere: what nothing refers to is collected, and its lock with it.
        `const { lockFile } = await import(${JSON.stringify(module)}); globalThis.lock = lockFile(process.argv[1]); console.log('held'); setInterval(() => {}, 1e6);`,
        path,
      ],
      { stdio: ['ignore', 'pipe', 'inherit'] },
    );
    const exit = once(holder, 'exit');
    try {
      await once(holder.stdout!, 'data');
      expect(() => lockFile(path)).toThrow(expect.objectContaining({ code: 'FILE_LOCKED' }));
    } finally {
      holder.kill('SIGKILL');
      await exit;
    }
    lockFile(path).release();
  });
});

describe('putting a new file in place', () => {
  test('the first one is just there; a -wal that was left behind is not replayed into it', () => {
    writeFileSync(`${path}-wal`, 'left behind');
    swapInto(path, build('new', 'one'), 'e1');
    expect(files()).toEqual(['app.db']);
    expect(lstatSync(path).isSymbolicLink()).toBe(false);
    expect(currentTarget(path)).toBe(path);
  });

  test('old readers keep what they have open, with its WAL; new ones get the new file with its own', () => {
    swapInto(path, build('new', 'one'), 'e1');
    const oldWriter = new Database(path);
    configureForApplying(oldWriter);
    oldWriter.exec("INSERT INTO t VALUES ('in the old WAL')");
    const oldReader = new Database(path, { readonly: true });
    expect(read(oldReader)).toEqual(['one', 'in the old WAL']);

    const second = swapInto(path, build('new', 'two'), 'e2');
    expect(basename(second)).toBe('app.db.e2-1');
    expect(currentTarget(path)).toBe(second);
    const newWriter = openReplicaFile(path);
    newWriter.exec("INSERT INTO t VALUES ('in the new WAL')");
    oldWriter.exec("INSERT INTO t VALUES ('again in the old one')");
    const newReader = new Database(path, { readonly: true });
    expect(read(newReader)).toEqual(['two', 'in the new WAL']);
    expect(read(oldReader)).toEqual(['one', 'in the old WAL', 'again in the old one']);

    const third = swapInto(path, build('new', 'three'), 'e2');
    expect(basename(third)).toBe('app.db.e2-2');
    removeOldGenerations(path);
    expect(files()).toEqual(['app.db', 'app.db.e2-2']);
    expect(read(newReader)).toEqual(['two', 'in the new WAL']);
    expect(read(oldReader)).toEqual(['one', 'in the old WAL', 'again in the old one']);
    for (const db of [oldWriter, oldReader, newWriter, newReader]) db.close();
    const last = openReplicaFile(path);
    expect(read(last)).toEqual(['three']);
    last.close();
    expect(files()).toEqual(['app.db', 'app.db.e2-2']);
  });

  test('the generation before stays for one more swap; files of others are left alone', () => {
    writeFileSync(join(directory, 'app.db.bak'), '');
    writeFileSync(join(directory, 'app.db.e1-1.txt'), '');
    for (const content of ['one', 'two', 'three', 'four']) swapInto(path, build('new', content), 'e1');
    expect(files()).toEqual(['app.db', 'app.db.bak', 'app.db.e1-1.txt', 'app.db.e1-2', 'app.db.e1-3']);
    const db = new Database(path, { readonly: true });
    expect(read(db)).toEqual(['four']);
    db.close();
  });

  test('a link that was left half-way is written over', () => {
    swapInto(path, build('new', 'one'), 'e1');
    writeFileSync(`${path}.link`, 'left behind');
    swapInto(path, build('new', 'two'), 'weird/epoch');
    expect(files()).toEqual(['app.db', 'app.db.weird_epoch-1']);
  });

  test('lock and link go together: the lock belongs to the name, not to the generation', () => {
    swapInto(path, build('new', 'one'), 'e1');
    const lock = lockFile(path);
    swapInto(path, build('new', 'two'), 'e2');
    expect(() => lockFile(path)).toThrow(expect.objectContaining({ code: 'FILE_LOCKED' }));
    lock.release();
  });
});
