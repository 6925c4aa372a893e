import { expect, test } from 'vitest';
import {
  bufferLimitBytes,
  chunkBytes,
  DEFAULT_AHEAD_GRACE_MS,
  DEFAULT_TOTAL_BUFFER_BYTES,
  isStalled,
  nextProgress,
  refusal,
  reportIntervalMs,
  roundDelayMs,
} from '../../src/fanout/follower-policy.ts';

const MB = 1024 * 1024;

test.each([
  [1, 4 * MB],
  [16, 4 * MB],
  [64, 1 * MB],
  [100_000, 128 * 1024],
])('%i followers may leave %i bytes unread each', (followers, limit) => {
  expect(
    bufferLimitBytes(followers, { bufferLimitBytes: 4 * MB, totalBufferBytes: DEFAULT_TOTAL_BUFFER_BYTES }),
  ).toBe(limit);
});

test('a limit that was set low stays low', () => {
  expect(bufferLimitBytes(1000, { bufferLimitBytes: 1000, totalBufferBytes: 64 * MB })).toBe(1000);
});

test('cheap rounds never wait; dear ones leave three fifths of the time to others', () => {
  expect(roundDelayMs({ tookMs: 0.05, endedAgoMs: 0 })).toBe(0);
  expect(roundDelayMs({ tookMs: 8, endedAgoMs: 0 })).toBe(12);
  expect(roundDelayMs({ tookMs: 8, endedAgoMs: 6 })).toBe(6);
  expect(roundDelayMs({ tookMs: 8, endedAgoMs: 40 })).toBe(0);
  expect(roundDelayMs({ tookMs: 5000, endedAgoMs: 0 })).toBe(25);
});

test('the more followers, the smaller the pieces of the log that each is given', () => {
  expect(chunkBytes(1, 64 * MB)).toBe(256 * 1024);
  expect(chunkBytes(200, 64 * MB)).toBeLessThan(100 * 1024);
  expect(chunkBytes(1000, 64 * MB)).toBe(32 * 1024);
});

test('only a follower with unread bytes that stay unread is stalled', () => {
  const start = { sentBytes: 100, atMs: 0 };
  const quiet = nextProgress(start, { sentBytes: 100, bufferedBytes: 0, nowMs: 70_000 });
  expect(isStalled(quiet, 70_000, 60_000)).toBe(false);
  const slow = nextProgress(start, { sentBytes: 101, bufferedBytes: 5000, nowMs: 70_000 });
  expect(isStalled(slow, 70_000, 60_000)).toBe(false);
  const stuck = nextProgress(start, { sentBytes: 100, bufferedBytes: 5000, nowMs: 70_000 });
  expect(isStalled(stuck, 70_000, 60_000)).toBe(true);
});

const LOG = {
  epoch: 'e1',
  position: 1000n,
  oldestPosition: 100n,
  streamingForMs: DEFAULT_AHEAD_GRACE_MS * 2,
  aheadGraceMs: DEFAULT_AHEAD_GRACE_MS,
} as const;

test.each([
  ['at the head', { epoch: 'e1', position: 1000n }, LOG, null],
  ['at the oldest position', { epoch: 'e1', position: 100n }, LOG, null],
  ['behind it', { epoch: 'e1', position: 99n }, LOG, 'POSITION_TOO_OLD'],
  ['of another epoch, whatever its position', { epoch: 'e2', position: 500n }, LOG, 'EPOCH_MISMATCH'],
  [
    'ahead, while Postgres is about to send the rest again',
    { epoch: 'e1', position: 1001n },
    { ...LOG, streamingForMs: 10 },
    'NOT_READY',
  ],
  [
    'ahead, while Postgres is not there',
    { epoch: 'e1', position: 1001n },
    { ...LOG, streamingForMs: null },
    'NOT_READY',
  ],
  ['ahead for good', { epoch: 'e1', position: 1001n }, LOG, 'POSITION_AHEAD'],
  [
    'ahead of a relay, which will get there',
    { epoch: 'e1', position: 1001n },
    { ...LOG, aheadGraceMs: Number.POSITIVE_INFINITY },
    'NOT_READY',
  ],
])('a follower %s', (_name, follower, log, code) => {
  expect(refusal(follower, log)?.code ?? null).toBe(code);
});

test('a thousand followers report a hundred times a second all together', () => {
  expect(reportIntervalMs(1, 1000)).toBe(1000);
  expect(reportIntervalMs(1000, 1000)).toBe(10_000);
});
