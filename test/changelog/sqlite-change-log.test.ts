import { copyFileSync, existsSync, mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import Database from 'better-sqlite3';
import { expect, test } from 'vitest';
import {
  createChangeLog,
  openChangeLog,
  type SqliteChangeLog,
} from '../../src/changelog/sqlite-change-log.ts';
import {
  batch,
  insertItem,
  newChangeLog,
  partBatch,
  SOURCE,
  START,
  temporaryDirectory,
} from '../fanout/test-replicator.ts';
import { describeChangeLog, readAll, type TestLog } from './change-log-contract.ts';

class SqliteTestLog implements TestLog {
  readonly #dir = temporaryDirectory();
  log: SqliteChangeLog = newChangeLog(this.#dir.path);

  async reopen(): Promise<void> {
    await this.log.close();
    this.log = openChangeLog({ dir: this.#dir.path });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.log.close();
    this.#dir[Symbol.dispose]();
  }
}

describeChangeLog({ name: 'one SQLite file', create: async () => new SqliteTestLog() });

const one = (index: number) => batch(START + BigInt(index) * 0x100n, [insertItem(index)]);

/** What the disk would hold if the process were killed now. */
function copyOf(dir: string, to: string): string {
  mkdirSync(to);
  for (const name of ['log.db', 'log.db-wal'])
    if (existsSync(join(dir, name))) copyFileSync(join(dir, name), join(to, name));
  return to;
}

test('an append is in the files when it returns: killed right after it, nothing is lost', async () => {
  using dir = temporaryDirectory();
  await using log = newChangeLog(dir.path);
  for (let index = 1; index <= 20; index++) {
    log.append(one(index));
    if (index % 7 === 0) log.append(partBatch(log.position, [insertItem(1000 + index)]));
    const copy = copyOf(dir.path, join(dir.path, `copy-${index}`));
    await using after = openChangeLog({ dir: copy });
    expect(after.position).toBe(log.position);
    expect(after.openXids).toEqual([]);
    if (index % 7 === 0)
      log.append({ ...one(index), bytes: Buffer.from(readAll(after.openCursorAt(after.headSeq))[0]!) });
  }
});

test('a -wal cut anywhere by a power failure leaves a whole prefix', async () => {
  using dir = temporaryDirectory();
  await using log = newChangeLog(dir.path);
  const positions = [log.position];
  for (let index = 1; index <= 5; index++) {
    log.append(one(index));
    positions.push(log.position);
  }
  const wal = readFileSync(join(dir.path, 'log.db-wal'));
  let seen = 0;
  for (let cut = wal.length; cut > 0; cut -= 3777) {
    const copy = copyOf(dir.path, join(dir.path, `cut-${cut}`));
    const { truncateSync } = await import('node:fs');
    truncateSync(join(copy, 'log.db-wal'), cut);
    await using after = openChangeLog({ dir: copy });
    expect(positions).toContain(after.position);
    expect(readAll(after.openCursor(START))).toHaveLength(positions.indexOf(after.position));
    seen++;
  }
  expect(seen).toBeGreaterThan(5);
});

test('a damaged batch is found by its checksum, and named', async () => {
  using dir = temporaryDirectory();
  {
    await using log = newChangeLog(dir.path);
    for (let index = 1; index <= 3; index++) log.append(one(index));
  }
  const db = new Database(join(dir.path, 'log.db'));
  db.exec(`UPDATE batch SET bytes = CAST(replace(bytes, 'item 2', 'item X') AS BLOB) WHERE seq = 2`);
  db.close();
  await using log = openChangeLog({ dir: dir.path });
  const cursor = log.openCursor(START);
  cursor.next(1);
  expect(() => cursor.next(1)).toThrow(/batch 2 .*damaged/);
});

test('refuses a log of another format', async () => {
  using dir = temporaryDirectory();
  await newChangeLog(dir.path).close();
  const db = new Database(join(dir.path, 'log.db'));
  db.exec(`UPDATE meta SET value = 99 WHERE key = 'format_version'`);
  db.close();
  expect(() => openChangeLog({ dir: dir.path })).toThrow(
    expect.objectContaining({ code: 'VERSION_MISMATCH' }),
  );
});

test('refuses what is no log, and does not write over one', async () => {
  using dir = temporaryDirectory();
  expect(() => openChangeLog({ dir: dir.path })).toThrow(expect.objectContaining({ code: 'FILE_UNUSABLE' }));
  await newChangeLog(dir.path).close();
  expect(() =>
    createChangeLog({ dir: dir.path, epoch: 'e2', startPosition: START, source: SOURCE, sourceState: '' }),
  ).toThrow(expect.objectContaining({ code: 'FILE_UNUSABLE' }));
});

test('the -wal stays bounded under a long load, without the appends doing it', async () => {
  using dir = temporaryDirectory();
  await using log = newChangeLog(dir.path);
  const bytes = Buffer.concat(Array.from({ length: 2000 }, (_, index) => one(1 + index).bytes));
  let largest = 0;
  const { statSync } = await import('node:fs');
  for (let index = 1; index <= 2500; index++) {
    log.append({ bytes, endLsn: START + BigInt(index) * 0x100000n, closes: 2000, opensParts: false });
    if (index % 50 !== 0) continue;
    largest = Math.max(largest, statSync(join(dir.path, 'log.db-wal')).size);
    await new Promise((resolve) => setImmediate(resolve));
  }
  expect(largest).toBeLessThan(300 * 1024 * 1024);
});
