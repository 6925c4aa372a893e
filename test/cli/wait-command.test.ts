import { mkdtempSync, renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import Database from 'better-sqlite3';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { run } from '../../src/cli/run.ts';
import { formatLsn } from '../../src/lsn.ts';
import { waitUntil } from '../helpers/wait-until.ts';
import { fakeProcess } from './fake-process.ts';

let dir = '';
let file = '';
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'rivulet-wait-'));
  file = join(dir, 'app.db');
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

/** A file with as much of a replica in it as other programs may rely on. */
function makeFile(path: string, lsn: bigint): Database.Database {
  const database = new Database(path);
  database.pragma('journal_mode = WAL');
  database.exec(
    'create table _rivulet_position (epoch text, lsn text, lsn_int integer, commit_time text, applied_lsn text)',
  );
  database
    .prepare("insert into _rivulet_position values ('e1', @lsn, @int, '2026-11-21 03:00:00.123456Z', @lsn)")
    .run({ lsn: formatLsn(lsn), int: BigInt.asIntN(64, lsn) });
  return database;
}

function move(database: Database.Database, lsn: bigint): void {
  database
    .prepare('update _rivulet_position set lsn = @lsn, lsn_int = @int, applied_lsn = @lsn')
    .run({ lsn: formatLsn(lsn), int: BigInt.asIntN(64, lsn) });
}

describe('rivulet wait', () => {
  test('ends at once when the file is there already', async () => {
    makeFile(file, 0x16_0000_0010n).close();
    const host = fakeProcess();
    expect(await run(['wait', '--file', file, '--lsn', '16/10'], host)).toBe(0);
    expect(host.stdout.text).toBe(`${file} is at 16/10, which contains 16/10\n`);
    expect(host.listenerCount()).toBe(0);
  });

  test('ends when another connection has brought the file there', async () => {
    const database = makeFile(file, 0x10n);
    const host = fakeProcess();
    const waiting = run(['wait', '--file', file, '--lsn', '0/20', '--json'], host);
    await waitUntil('a progress line', () => host.stderr.text.includes('waiting'));
    expect(host.stdout.text).toBe('');
    move(database, 0x1fn);
    move(database, 0x20n);
    expect(await waiting).toBe(0);
    expect(JSON.parse(host.stdout.text)).toMatchObject({
      reached: true,
      epoch: 'e1',
      position: '0/20',
      lsn: '0/20',
    });
    database.close();
  });

  test('takes a token, of this history only', async () => {
    const database = makeFile(file, 0x10n);
    const waiting = run(['wait', '--file', file, '--lsn', '1.e1.20'], fakeProcess());
    move(database, 0x20n);
    expect(await waiting).toBe(0);
    database.close();
    const host = fakeProcess();
    expect(await run(['wait', '--file', file, '--lsn', '1.e2.20'], host)).toBe(1);
    expect(host.stderr.text).toContain('of another history');
    const forged = fakeProcess();
    expect(await run(['wait', '--file', file, '--lsn', '1.e1.xyz'], forged)).toBe(2);
    expect(forged.stderr.text).toContain('a token such as');
  });

  test('sees a file that has taken the place of the one it opened', async () => {
    // The path is a symbolic link, as SQLite's journal files belong to a name and must not meet another database.
    const [first, second] = [join(dir, 'app.db-1'), join(dir, 'app.db-2')];
    const old = makeFile(first, 0x10n);
    makeFile(second, 0x30n).close();
    symlinkSync(first, file);
    const host = fakeProcess();
    const waiting = run(['wait', '--file', file, '--lsn', '0/30'], host);
    await waitUntil('a progress line', () => host.stderr.text.includes('waiting'));
    symlinkSync(second, `${file}.next`);
    renameSync(`${file}.next`, file);
    expect(await waiting).toBe(0);
    old.close();
  });

  test('positions above 2^63 and with different numbers of digits compare as numbers', async () => {
    makeFile(file, 0xffff_ffff_0000_0000n).close();
    expect(await run(['wait', '--file', file, '--lsn', '9/0', '--timeout', '0s'], fakeProcess())).toBe(0);
    const other = join(dir, 'other.db');
    makeFile(other, 0x9_0000_0000n).close();
    expect(await run(['wait', '--file', other, '--lsn', '10/0', '--timeout', '0s'], fakeProcess())).toBe(3);
  });

  test('exits with 3 at the timeout, saying where the file is', async () => {
    makeFile(file, 0x10n).close();
    const host = fakeProcess();
    expect(await run(['wait', '--file', file, '--lsn', '0/1010', '--timeout', '20ms', '--json'], host)).toBe(
      3,
    );
    expect(host.stderr.text).toContain('is at 0/10, 4.0 kB of WAL behind 0/1010');
    expect(JSON.parse(host.stdout.text)).toMatchObject({ reached: false, position: '0/10' });
  });

  test('ends on a signal, and at once on the second', async () => {
    makeFile(file, 0x10n).close();
    const host = fakeProcess();
    const waiting = run(['wait', '--file', file, '--lsn', '0/20'], host);
    await waitUntil('a progress line', () => host.stderr.text.includes('waiting'));
    host.signal('SIGINT');
    host.signal('SIGTERM');
    expect(host.exits).toEqual([1]);
    expect(await waiting).toBe(1);
    expect(host.stderr.text).toContain('interrupted');
  });

  test.each([
    ['no file', () => undefined, 'there is no file'],
    [
      'a file that is not SQLite',
      (path: string) => writeFileSync(path, 'x'.repeat(5000)),
      'not a SQLite file',
    ],
    ['a directory', () => rmSync(file, { force: true }), 'is a directory'],
    [
      "somebody else's SQLite file",
      (path: string) => new Database(path).exec('create table t (a)').close(),
      'not one that Rivulet keeps',
    ],
  ])('%s is an error that says so', async (what, make, message) => {
    make(file);
    const host = fakeProcess();
    expect(await run(['wait', '--file', what === 'a directory' ? dir : file, '--lsn', '0/1'], host)).toBe(1);
    expect(host.stderr.text).toMatch(/^rivulet: /);
    expect(host.stderr.text).toContain(message);
    expect(host.stdout.text).toBe('');
  });

  test.each([
    [['wait', '--lsn', '0/1'], {}, '--file is missing'],
    [['wait', '--file', 'x', '--lsn', 'zero'], {}, '--lsn: '],
    [['wait', '--file', 'x', '--lsn', '0/1', '--timeout', 'soon'], {}, '--timeout: '],
    [['wait', '--file', 'x', '--lsn', '0/1', '--config', '/nowhere.yaml'], {}, '/nowhere.yaml'],
    [['wait', '--file', 'x', '--lsn', '0/1'], { RIVULET_TIMEOUT: 'soon' }, 'RIVULET_TIMEOUT: '],
    [['wait', '--bogus'], {}, "unknown option '--bogus'"],
    [['status'], {}, 'nothing to look at'],
    [
      ['verify'],
      {},
      'nothing to compare\n  hint: give --file PATH and --postgres URL; or --replicator URL alone',
    ],
    [['replica', '--file', 'x'], {}, 'either a replicator or Postgres'],
    [
      ['replica', '--file', 'x', '--replicator', 'http://h:1', '--postgres', 'postgres://h/d'],
      {},
      'either a replicator or Postgres',
    ],
    [['replicator', '--postgres', 'postgres://h/d', '--data', 'd', '--listen', '0.0.0.0:0'], {}, 'no token'],
    [
      ['replicator', '--postgres', 'postgres://h/d', '--data', 'd', '--durability', 'store'],
      {},
      'no --store\n  hint: give --store URL',
    ],
    [
      ['replica', '--file', 'x', '--postgres', 'postgres://h/d'],
      { RIVULET_DURABILITY: 'store' },
      '--durability store needs an object store',
    ],
    [
      ['replica', '--file', 'x', '--replicator', 'http://h:1', '--tables', 'a', '--slot', 's'],
      {},
      '--slot, --tables go with --postgres, not with --replicator\n  hint: ',
    ],
    [
      [
        'replica',
        '--file',
        'x',
        '--replicator',
        'http://h:1',
        '--durability',
        'store',
        '--store',
        'file:///s',
      ],
      {},
      '--durability goes with --postgres',
    ],
    [['setup'], {}, '--postgres is missing'],
  ])('%j with %j is bad usage: exit code 2', async (args, env, message) => {
    const host = fakeProcess(env);
    expect(await run(args, host)).toBe(2);
    expect(host.stderr.text).toContain(message);
    expect(host.stderr.text).not.toContain('    at ');
  });

  test('what an environment says of tables and slot is for the replicator: a replica beside it runs', async () => {
    const env = { RIVULET_TABLES: 'a', RIVULET_SLOT: 's', RIVULET_DURABILITY: 'store' };
    const host = fakeProcess(env);
    const running = run(['replica', '--file', file, '--replicator', 'http://127.0.0.1:1'], host);
    await waitUntil('a try', () => host.stderr.text.includes('"code":"REPLICATOR_UNREACHABLE"'));
    host.signal('SIGTERM');
    expect(await running).toBe(0);
  });
});
