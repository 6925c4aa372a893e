import type pg from 'pg';
import { expect, test } from 'vitest';
import { CrashGuard } from '../../src/replicator/crash-guard.ts';

/** A server that tells since when it has its statistics. */
function serverSince(since: string): pg.ClientBase {
  return { query: () => Promise.resolve({ rows: [{ since }] }) } as unknown as pg.ClientBase;
}

test('three crashes in a row at one position are enough', async () => {
  const guard = new CrashGuard();
  for (const since of ['a', 'b', 'c']) {
    await guard.check(serverSince(since), 10n);
    guard.begun();
  }
  await expect(guard.check(serverSince('d'), 10n)).rejects.toMatchObject({ code: 'POSITION_GAP' });
  // Another history has its chances again.
  await guard.check(serverSince('e'), 10n);
});

test('crashes before the server was to decode anything are not', async () => {
  const guard = new CrashGuard();
  for (const since of ['a', 'b', 'c', 'd', 'e', 'f']) await guard.check(serverSince(since), 10n);
});

test('connections that break, and crashes between which the stream has gone on, are not', async () => {
  const guard = new CrashGuard();
  for (let attempt = 0; attempt < 10; attempt++) {
    await guard.check(serverSince('a'), 10n);
    guard.begun();
  }
  for (const [index, since] of ['b', 'c', 'd', 'e', 'f'].entries()) {
    await guard.check(serverSince(since), 10n + BigInt(index + 1));
    guard.begun();
  }
});
