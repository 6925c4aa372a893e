import { once } from 'node:events';
import { mkdtempSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import Database from 'better-sqlite3';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { WalKeeper } from '../../src/replica/checkpointer.ts';
import { configureForApplying } from '../../src/replica/replica-file.ts';
import { waitUntil } from '../helpers/wait-until.ts';

const LIMIT_BYTES = 256 * 1024;

let directory: string;
let file: string;
let db: Database.Database;
let keeper: WalKeeper;
let pinned: number[];
let clock: number;

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'rivulet-checkpoint-'));
  file = join(directory, 'db');
  db = new Database(file);
  configureForApplying(db);
  db.exec('CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)');
  pinned = [];
  clock = 0;
  keeper = new WalKeeper({
    file,
    limitBytes: LIMIT_BYTES,
    onPinned: (bytes) => pinned.push(bytes),
    now: () => clock,
  });
});

afterEach(async () => {
  await keeper.close();
  await keeper.close();
  db.close();
  rmSync(directory, { recursive: true });
});

/** Two connections in a thread of their own; each begins to read before the other one ends. */
const OVERLAPPING_READERS = `
  const { workerData: { file, flags, module } } = require('node:worker_threads');
  const Database = require('node:module').createRequire(module)('better-sqlite3');
  const readers = [0, 1].map(() => new Database(file, { readonly: true }));
  const read = (reader) => { reader.exec('BEGIN'); reader.prepare('SELECT count(*) FROM t').get(); };
  read(readers[0]);
  Atomics.store(flags, 0, 1);
  Atomics.notify(flags, 0);
  for (let turn = 0; Atomics.load(flags, 1) === 0; turn = 1 - turn) {
    read(readers[1 - turn]);
    readers[turn].exec('COMMIT');
  }
  for (const reader of readers) reader.close();
`;

/** About 40 kB of WAL for each. */
function commit(times: number, between: () => void = () => {}, isBurst = false): void {
  const insert = db.prepare('INSERT INTO t (v) VALUES (?)');
  for (let index = 0; index < times; index++) {
    insert.run('x'.repeat(30_000));
    keeper.afterCommit(db, isBurst);
    between();
  }
}

/** The same, each with a look at the WAL. */
function burst(times: number): void {
  const look = (): void => {
    clock += 10;
  };
  commit(times, look, true);
}

const walBytes = (): number => statSync(`${file}-wal`).size;

describe('the WAL stays bounded', () => {
  test('under a writer that is faster than the thread', () => {
    commit(500);
    expect(walBytes()).toBeLessThan(LIMIT_BYTES * 6);
    expect(pinned).toEqual([]);
    expect(db.pragma('integrity_check', { simple: true })).toBe('ok');
  });

  test('of a burst, which is not copied back before half of the most there may be', () => {
    burst(11);
    // Once copied back it would have begun anew.
    const [{ log }] = db.pragma('wal_checkpoint(NOOP)') as [{ log: number }];
    expect(log * 4096).toBeGreaterThan(LIMIT_BYTES * 1.4);
    burst(500);
    expect(walBytes()).toBeLessThan(LIMIT_BYTES * 6);
    expect(pinned).toEqual([]);
    expect(db.pragma('integrity_check', { simple: true })).toBe('ok');
  });

  test('under readers that come and go, always one of them reading', async () => {
    const flags = new Int32Array(new SharedArrayBuffer(8));
    const readers = new Worker(OVERLAPPING_READERS, {
      eval: true,
      workerData: { file, flags, module: import.meta.url },
    });
    try {
      Atomics.wait(flags, 0, 0, 10_000);
      commit(500, () => {
        clock += 2_000;
      });
      expect(walBytes()).toBeLessThan(LIMIT_BYTES * 8);
    } finally {
      Atomics.store(flags, 1, 1);
      await once(readers, 'exit');
    }
  });

  test('with a long reader it grows, is reported, and is cut afterwards, in steps', async () => {
    const reader = new Database(file, { readonly: true });
    reader.exec('BEGIN');
    expect(reader.prepare('SELECT count(*) FROM t').pluck().get()).toBe(0);
    commit(600, () => {
      clock += 100;
    });
    expect(pinned.length).toBeGreaterThan(0);
    expect(pinned.length).toBeLessThan(8);
    expect(pinned[0]).toBeGreaterThan(LIMIT_BYTES);
    expect(reader.prepare('SELECT count(*) FROM t').pluck().get()).toBe(0);
    reader.close();
    const sizes = new Set([walBytes()]);
    await waitUntil('the WAL to be cut', () => {
      clock += 1_000;
      commit(1);
      sizes.add(walBytes());
      return walBytes() <= LIMIT_BYTES * 4;
    });
    expect(pinned.at(-1)).toBe(0);
    expect(sizes.size).toBeGreaterThan(2);
    expect(db.pragma('integrity_check', { simple: true })).toBe('ok');
    const size = walBytes();
    commit(100);
    expect(walBytes()).toBeLessThanOrEqual(size + LIMIT_BYTES * 2);
  });

  test('what one large transaction has left is copied by the thread', async () => {
    const ownBytes = countOwn();
    db.transaction(() => {
      const insert = db.prepare('INSERT INTO t (v) VALUES (?)');
      for (let index = 0; index < 1000; index++) insert.run('x'.repeat(30_000));
    })();
    expect(walBytes()).toBeGreaterThan(LIMIT_BYTES * 100);
    keeper.afterCommit(db);
    await waitUntil('the WAL to begin anew', () => {
      clock += 10;
      commit(1);
      return look().log * 4096 < LIMIT_BYTES;
    });
    expect(ownBytes.length).toBeGreaterThan(0);
    expect(Math.max(...ownBytes)).toBeLessThan(2 * 1024 * 1024);
  });
});

const look = (): { readonly log: number; readonly checkpointed: number } =>
  (db.pragma('wal_checkpoint(NOOP)') as { log: number; checkpointed: number }[])[0]!;

/** What each checkpoint of the writer's own connection copies, bytes. */
function countOwn(): number[] {
  const ownBytes: number[] = [];
  const prepare = db.prepare.bind(db) as typeof db.prepare;
  db.prepare = ((source: string) => {
    const statement = prepare(source);
    if (!source.endsWith('(PASSIVE)')) return statement;
    const get = statement.get.bind(statement);
    statement.get = () => {
      const { checkpointed } = look();
      const row = get() as { checkpointed: number };
      ownBytes.push((row.checkpointed - checkpointed) * 4096);
      return row;
    };
    return statement;
  }) as typeof db.prepare;
  return ownBytes;
}

test('nothing happens inside a transaction', () => {
  db.exec('BEGIN');
  commit(50);
  db.exec('ROLLBACK');
  keeper.afterCommit(db);
  expect(pinned).toEqual([]);
});
