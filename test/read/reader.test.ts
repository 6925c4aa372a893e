import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { formatLsn } from '../../src/lsn.ts';
import { readPolicy } from '../../src/read/read-policy.ts';
import { openReader } from '../../src/read/reader.ts';
import { openReplica } from '../../src/replica/replica.ts';
import { encodeToken } from '../../src/token.ts';
import { insertItem, START, TestReplicator, temporaryDirectory } from '../fanout/test-replicator.ts';
import { waitUntil } from '../helpers/wait-until.ts';

const items = 'SELECT count(*) FROM items';

test('a reader of a file that another keeps is woken by its writes, and asks for more', async () => {
  using dir = temporaryDirectory();
  await using replicator = await TestReplicator.start({ dir: dir.path });
  const file = join(dir.path, 'app.db');
  await using replica = await openReplica({ file, replicator: replicator.url });
  using reader = openReader({ file });
  expect([reader.epoch, reader.position]).toEqual(['e1', START]);
  expect(() => reader.db.exec('DELETE FROM items')).toThrow(/readonly/);
  const waits: number[] = [];
  for (let id = 1; id <= 20; id++) {
    const lsn = START + BigInt(id) * 0x100n;
    const waiting = reader.waitFor({ epoch: 'e1', lsn }, { timeoutMs: 5_000 });
    replicator.commit(insertItem(id));
    await replica.waitFor(lsn);
    const startedAtMs = performance.now();
    await waiting;
    waits.push(performance.now() - startedAtMs);
    expect(reader.db.prepare(items).pluck().get()).toBe(id);
    expect(reader.position).toBe(lsn);
  }
  // Looking would take up to 64 ms each.
  expect(waits.sort((a, b) => a - b)[10]).toBeLessThan(20);
  // On a quiet database the process that keeps the file hears that somebody waits.
  replicator.onHasten = () => replicator.advance(START + 0x2000n);
  await reader.waitFor(START + 0x2000n, { timeoutMs: 5_000 });
});

test('a directory is not taken for a damaged file', () => {
  using dir = temporaryDirectory();
  expect(() => openReader({ file: dir.path })).toThrow(
    expect.objectContaining({ code: 'FILE_UNUSABLE', message: `${dir.path} is a directory` }),
  );
});

test('a reader outlives a new bootstrap', async () => {
  using dir = temporaryDirectory();
  await using replicator = await TestReplicator.start({ dir: dir.path });
  const file = join(dir.path, 'app.db');
  await using _replica = await openReplica({ file, replicator: replicator.url });
  using reader = openReader({ file });
  const before = reader.db;
  const lost = expect(reader.waitFor({ epoch: 'e1', lsn: START + 0x5000n })).rejects.toMatchObject({
    code: 'EPOCH_MISMATCH',
  });
  const next = reader.waitFor(START + 0x100n, { timeoutMs: 10_000 });
  await replicator.newEpoch('e2');
  await lost;
  replicator.commit(insertItem(1));
  await next;
  expect(reader.epoch).toBe('e2');
  expect(reader.db).not.toBe(before);
  expect(reader.db.prepare(items).pluck().get()).toBe(1);
  // What was handed out before can be read to its end.
  expect(before.prepare(items).pluck().get()).toBe(0);
});

test('its waits end: at the timeout, with their signal, when it is closed; bad tokens are told', async () => {
  using dir = temporaryDirectory();
  await using replicator = await TestReplicator.start({ dir: dir.path });
  const file = join(dir.path, 'app.db');
  {
    await using _replica = await openReplica({ file, replicator: replicator.url });
  }
  expect(() => openReader({ file: join(dir.path, 'none.db') })).toThrow(
    expect.objectContaining({ code: 'FILE_UNUSABLE' }),
  );
  const reader = openReader({ file, maxWaiters: 1 });
  const ahead = encodeToken({ epoch: 'e1', lsn: START + 1n });
  await expect(reader.waitFor(ahead, { timeoutMs: 30 })).rejects.toMatchObject({ code: 'WAIT_TIMEOUT' });
  await expect(reader.waitFor(ahead, { signal: AbortSignal.abort(new Error('gone')) })).rejects.toThrow(
    'gone',
  );
  await expect(reader.waitFor('1.zz.1')).rejects.toMatchObject({ code: 'TOKEN_MALFORMED' });
  await expect(reader.waitUntilFresh()).rejects.toMatchObject({ code: 'CONFIG' });
  const waiting = expect(reader.waitFor(ahead)).rejects.toMatchObject({ code: 'CLOSED' });
  await expect(reader.waitFor(ahead)).rejects.toMatchObject({ code: 'TOO_MANY_WAITERS' });
  await reader.waitFor(null);
  reader.close();
  reader.close();
  await waiting;
  await expect(reader.waitFor(null)).rejects.toMatchObject({ code: 'CLOSED' });
  await expect(reader.waitFor(ahead)).rejects.toMatchObject({ code: 'CLOSED' });
  rmSync(file);
});

test('policies: wait, then fail, read the file as it is, or read elsewhere', async () => {
  using dir = temporaryDirectory();
  await using replicator = await TestReplicator.start({ dir: dir.path });
  await using replica = await openReplica({ file: join(dir.path, 'app.db'), replicator: replicator.url });
  const reads = readPolicy(replica, { waitMs: 20 });
  const replicaRead = (db: typeof replica.db): unknown => db.prepare(items).pluck().get();
  const after = { epoch: 'e1', lsn: START + 0x100n };
  const postgres = async (): Promise<number> => 1000;
  await expect(reads.read({ after, replica: replicaRead })).rejects.toMatchObject({ code: 'WAIT_TIMEOUT' });
  expect(await reads.read({ after, onLate: 'stale', replica: replicaRead })).toMatchObject({
    value: 0,
    from: 'stale',
    reason: { code: 'WAIT_TIMEOUT' },
  });
  const elsewhere = await reads.read({ after, onLate: 'fallback', replica: replicaRead, postgres });
  expect(elsewhere).toMatchObject({ value: 1000, from: 'postgres' });
  expect(JSON.parse(JSON.stringify(elsewhere))).toMatchObject({
    value: 1000,
    reason: { code: 'WAIT_TIMEOUT', facts: { position: formatLsn(START) } },
  });
  await expect(reads.read({ after, onLate: 'fallback', replica: replicaRead })).rejects.toMatchObject({
    code: 'WAIT_TIMEOUT',
  });
  const other = { epoch: 'ee', lsn: 1n };
  expect(
    await reads.read({ after: other, onLate: 'fallback', replica: replicaRead, postgres }),
  ).toMatchObject({
    from: 'postgres',
    reason: { code: 'EPOCH_MISMATCH' },
  });
  const waiting = reads.read({ after, waitMs: 5_000, onLate: 'stale', replica: replicaRead });
  replicator.commit(insertItem(1));
  expect(await waiting).toMatchObject({ value: 1, from: 'replica', reason: null });
  // Who gave up is not given a stale answer.
  await expect(
    reads.read({
      after: { epoch: 'e1', lsn: START + 0x1000n },
      onLate: 'stale',
      signal: AbortSignal.timeout(5),
      waitMs: 1000,
      replica: replicaRead,
    }),
  ).rejects.toThrow(/timeout/);
  expect(() => readPolicy(replica, { waitMs: -1 })).toThrow(expect.objectContaining({ code: 'CONFIG' }));
  expect(() => readPolicy(replica, { onLate: 'never' as 'fail' })).toThrow(/onLate/);
});

test('bounded staleness: the file is as fresh as was last heard, and says how fresh that is', async () => {
  using dir = temporaryDirectory();
  await using replicator = await TestReplicator.start({
    dir: dir.path,
    // It says nothing by itself for an hour.
    publisher: { heartbeatIntervalMs: 3_600_000, silenceLimitMs: 3_600_000 },
  });
  replicator.publisher.heard();
  await using replica = await openReplica({ file: join(dir.path, 'app.db'), replicator: replicator.url });
  const reads = readPolicy(replica, { maxLagMs: 50, waitMs: 30 });
  await waitUntil('the file to grow old', () => (replica.lag.boundMs ?? 0) > 60);
  await expect(reads.ready(null)).rejects.toMatchObject({ code: 'TOO_STALE' });
  expect((await reads.ready(null, { onLate: 'stale' })).from).toBe('stale');
  expect((await reads.ready(null, { maxLagMs: 60_000 })).from).toBe('replica');
  // Asked, the source answers that there is nothing more: the same file is fresh then.
  replicator.onHasten = () => {
    replicator.publisher.hasten();
    replicator.publisher.heard();
  };
  expect(await reads.ready(null, { waitMs: 5_000 })).toMatchObject({ from: 'replica' });
  expect(replica.lag.boundMs).toBeLessThan(50);
});
