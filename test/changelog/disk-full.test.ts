import { execFileSync } from 'node:child_process';
import { rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { openChangeLog } from '../../src/changelog/sqlite-change-log.ts';
import { batch, insertItem, newChangeLog, START, temporaryDirectory } from '../fanout/test-replicator.ts';
import { readAll } from './change-log-contract.ts';

function smallDisk(path: string): Disposable | null {
  try {
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=4m', 'tmpfs', path], { stdio: 'ignore' });
  } catch {
    return null;
  }
  return { [Symbol.dispose]: () => execFileSync('umount', ['-l', path]) };
}

test('a full disk refuses an append and changes nothing; when there is space again the same batch fits', async (context) => {
  using dir = temporaryDirectory();
  using disk = smallDisk(dir.path);
  if (disk === null) return context.skip('mounting a tmpfs needs root');
  const filler = join(dir.path, 'filler');
  writeFileSync(filler, Buffer.alloc(2 * 1024 * 1024));
  const log = newChangeLog(dir.path);
  const next = (index: number) =>
    batch(START + BigInt(index) * 0x100n, [insertItem(index, 'x'.repeat(50_000))]);
  let appended = 0;
  const fill = (): void => {
    for (;;) {
      log.append(next(appended + 1));
      appended++;
    }
  };
  expect(fill).toThrow(expect.objectContaining({ code: 'DISK_FULL' }));
  expect(appended).toBeGreaterThan(3);
  const { position, headSeq } = log;
  // Again, and again: nothing of a refused append stays, and followers go on reading.
  expect(() => log.append(next(appended + 1))).toThrow(expect.objectContaining({ code: 'DISK_FULL' }));
  expect(() => log.append({ ...next(appended + 1), sourceState: 'new' })).toThrow(
    expect.objectContaining({ code: 'DISK_FULL' }),
  );
  expect(log).toMatchObject({ position, headSeq, sourceState: '{}' });
  expect(readAll(log.openCursor(START))).toHaveLength(appended);
  rmSync(filler);
  log.append(next(appended + 1));
  expect(await log.sync()).toBe(next(appended + 1).endLsn);
  expect(readAll(log.openCursor(START))).toHaveLength(appended + 1);
  await log.close();
  const after = openChangeLog({ dir: dir.path });
  expect(readAll(after.openCursor(START))).toHaveLength(appended + 1);
  await after.close();
});
