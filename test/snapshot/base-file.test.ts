import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  readSync,
  rmdirSync,
  rmSync,
  statSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import Database from 'better-sqlite3';
import { pino } from 'pino';
import { expect, test } from 'vitest';
import type { RivuletError } from '../../src/errors.ts';
import { formatChecksum, PageChecksum } from '../../src/replica/page-checksum.ts';
import { BaseFile } from '../../src/snapshot/base-file.ts';
import { checksumOf, readChecksum } from '../../src/snapshot/file-checksum.ts';
import {
  batch,
  ITEMS,
  insertItem,
  newChangeLog,
  SOURCE,
  START,
  temporaryDirectory,
} from '../fanout/test-replicator.ts';
import { SmallDisk } from '../helpers/small-disk.ts';
import { waitUntil } from '../helpers/wait-until.ts';

/** Of a hundred the log is long enough for the base file to be brought forward by the next acquire(). */
const LABEL_BYTES = 200_000;

interface Kept extends AsyncDisposable {
  readonly base: BaseFile;
  readonly file: string;
  readonly damages: RivuletError[];
  readonly logged: string[];
  commit(transactions: number): void;
  /** Without its log. */
  open(): BaseFile;
  /** As after a new start of the process. */
  restart(): Promise<void>;
}

async function keepBase(dir: string, logDir = dir): Promise<Kept> {
  const file = join(dir, 'base.db');
  const damages: RivuletError[] = [];
  const logged: string[] = [];
  const log = pino(
    { level: 'debug' },
    { write: (line) => logged.push((JSON.parse(line) as { msg: string }).msg) },
  );
  const changeLog = newChangeLog(logDir);
  const open = (): BaseFile =>
    new BaseFile({
      file,
      isOurs: true,
      log,
      onDamaged: (damage) => damages.push(damage),
      recheckPauseMs: 50,
    });
  let base = open();
  const identity = { ...SOURCE, serverVersion: 180_000 };
  await using writer = base.build({ relations: [ITEMS], epoch: changeLog.epoch, identity, isUtf8: true });
  writer.endCopy(START, 0n);
  await writer.finish();
  base.install(changeLog.epoch);
  base.attach(changeLog);
  let committed = 0;
  return {
    get base() {
      return base;
    },
    file,
    damages,
    logged,
    commit(transactions) {
      for (const end = committed + transactions; committed < end; ) {
        committed++;
        const label = `${committed} `.repeat(LABEL_BYTES / 2).slice(0, LABEL_BYTES);
        changeLog.append(batch(START + BigInt(committed) * 0x100n, [insertItem(committed, label)]));
      }
    },
    open,
    async restart() {
      await base.close();
      base = open();
      expect(base.matches(changeLog.epoch)).toBe(true);
      base.attach(changeLog);
    },
    async [Symbol.asyncDispose]() {
      await base.close();
      await changeLog.close();
    },
  };
}

function flipByte(file: string, at: number): void {
  const descriptor = openSync(file, 'r+');
  const byte = Buffer.alloc(1);
  readSync(descriptor, byte, 0, 1, at);
  byte[0]! ^= 0x10;
  writeSync(descriptor, byte, 0, 1, at);
  closeSync(descriptor);
}

function textAt(file: string, text: string): number {
  const at = readFileSync(file).indexOf(text);
  expect(at).toBeGreaterThan(0);
  return at;
}

test('the checksum of the file is brought forward with it', async () => {
  using dir = temporaryDirectory();
  await using kept = await keepBase(dir.path);
  const { file } = kept;
  expect(readChecksum(file)).toBe(formatChecksum(checksumOf(file)));
  let { size } = statSync(file);
  for (let round = 0; round < 2; round++) {
    kept.commit(100);
    const lease = await kept.base.acquire();
    lease.release();
    expect(statSync(file).size).toBeGreaterThan(size);
    ({ size } = statSync(file));
    expect(lease.checksum).toBe(formatChecksum(checksumOf(file)));
    expect(readChecksum(file)).toBe(lease.checksum);
    expect(existsSync(`${file}-wal`)).toBe(false);
  }
  await kept.restart();
  (await kept.base.acquire()).release();
  expect(kept.damages).toEqual([]);
});

test.each([
  ['a row', (file: string) => textAt(file, ' 50 50 50')],
  ['the first page', () => 40],
  ['the last byte', (file: string) => statSync(file).size - 1],
])('a byte of %s that was flipped while no process ran: the file is not handed out', async (_, where) => {
  using dir = temporaryDirectory();
  await using kept = await keepBase(dir.path);
  kept.commit(100);
  (await kept.base.acquire()).release();
  await kept.base.close();
  flipByte(kept.file, where(kept.file));
  await kept.restart();
  await expect(kept.base.acquire()).rejects.toMatchObject({ code: 'NOT_READY' });
  expect(kept.damages).toMatchObject([{ code: 'SNAPSHOT_CORRUPT', recovery: 'resnapshot' }]);
  await kept.base.invalidate();
  expect(existsSync(kept.file)).toBe(false);
});

test('damage stays visible when the file is brought forward over it', async () => {
  using dir = temporaryDirectory();
  await using kept = await keepBase(dir.path);
  kept.commit(100);
  (await kept.base.acquire()).release();
  flipByte(kept.file, textAt(kept.file, ' 50 50 50'));
  kept.commit(100);
  const lease = await kept.base.acquire();
  lease.release();
  // Whoever has got it finds another checksum, and says so.
  expect(lease.checksum).not.toBe(formatChecksum(checksumOf(kept.file)));
  kept.base.recheck();
  await waitUntil('the damage to be found', () => kept.damages.length > 0);
  await expect(kept.base.acquire()).rejects.toMatchObject({ code: 'NOT_READY' });
});

test('a file that was being brought forward when its process ended is whole, or is found not to be', async () => {
  using dir = temporaryDirectory();
  await using kept = await keepBase(dir.path);
  kept.commit(100);
  (await kept.base.acquire()).release();
  rmSync(`${kept.file}.checksum`);
  await kept.restart();
  const lease = await kept.base.acquire();
  lease.release();
  expect(lease.checksum).toBe(formatChecksum(checksumOf(kept.file)));
  expect(readChecksum(kept.file)).toBe(lease.checksum);

  rmSync(`${kept.file}.checksum`);
  await kept.base.close();
  const db = new Database(kept.file, { readonly: true });
  const page = db.prepare("select rootpage from sqlite_schema where name = 'items'").pluck().get() as number;
  db.close();
  flipByte(kept.file, (page - 1) * 4096);
  await kept.restart();
  await expect(kept.base.acquire()).rejects.toMatchObject({ code: 'NOT_READY' });
  expect(kept.damages).toHaveLength(1);
});

test('a full disk while the file is brought forward is no damage: it is looked at again until it can be', async (context) => {
  using dir = temporaryDirectory();
  using disk = SmallDisk.mount(join(dir.path, 'small'), '24m', context);
  await using kept = await keepBase(disk.path, dir.path);
  const { position } = kept.base;
  kept.commit(200);
  await expect(kept.base.acquire()).rejects.toMatchObject({ code: 'DISK_FULL' });
  await waitUntil('two checks that could not be made', () => kept.logged.length > 1);
  expect(kept.logged[0]).toContain('cannot be checked now');
  // It is not known to be whole.
  await expect(kept.base.acquire()).rejects.toMatchObject({ code: 'NOT_READY' });
  disk.resize('256m');
  const lease = await waitUntil('the file', () => kept.base.acquire().catch(() => null));
  lease.release();
  expect(lease.position).toBeGreaterThan(position!);
  expect(lease.checksum).toBe(formatChecksum(checksumOf(kept.file)));
  expect(kept.damages).toEqual([]);
});

test('a file that cannot be opened now is neither handed out nor given up', async () => {
  using dir = temporaryDirectory();
  await using kept = await keepBase(dir.path);
  kept.commit(100);
  (await kept.base.acquire()).release();
  // SQLite cannot open what is no file.
  mkdirSync(`${kept.file}-wal`);
  kept.base.recheck();
  (await kept.base.acquire()).release();
  rmSync(`${kept.file}.checksum`);
  kept.base.recheck();
  await waitUntil('two checks that could not be made', () => kept.logged.length > 1);
  await expect(kept.base.acquire()).rejects.toMatchObject({ code: 'NOT_READY' });
  // Nor is it by a process that starts.
  await kept.base.close();
  expect(() => kept.open().matches('e1')).toThrow(expect.objectContaining({ code: 'FILE_UNUSABLE' }));
  rmdirSync(`${kept.file}-wal`);
  await kept.restart();
  (await kept.base.acquire()).release();
  expect(kept.damages).toEqual([]);
});

test('the checksum does not depend on how the bytes are cut', () => {
  const bytes = Buffer.from(Array.from({ length: 20_000 }, (_, index) => (index * 31) % 251));
  const whole = new PageChecksum();
  whole.update(bytes);
  for (const step of [1, 7, 4095, 4096, 4097, 9000]) {
    const cut = new PageChecksum();
    for (let at = 0; at < bytes.length; at += step) cut.update(bytes.subarray(at, at + step));
    expect(formatChecksum(cut.sum)).toBe(formatChecksum(whole.sum));
  }
  const exchanged = new PageChecksum();
  for (const at of [4096, 0, 8192]) exchanged.update(bytes.subarray(at, at + 4096));
  exchanged.update(bytes.subarray(12_288));
  expect(formatChecksum(exchanged.sum)).not.toBe(formatChecksum(whole.sum));
});
