import { expect, test } from 'vitest';
import { stoppedReplica } from '../soak/stopped-replica.ts';

test('a stopped replica delays neither Postgres nor the others, and catches up', async () => {
  const report = await stoppedReplica({ major: 18, stopMs: 10_000, rate: 300 });
  // Bounds that hold on a busy machine; what an effect of the stop would add is seconds.
  expect(report.stopped.commitMs.p99).toBeLessThan(500);
  expect(report.stopped.visibleMs.p99).toBeLessThan(1_500);
  expect(report.slotBehindBytes).toBeLessThan(16 * 1024 * 1024);
  // Far more than sockets and buffers hold, so it was the log that it caught up from.
  expect(report.behindBytes).toBeGreaterThan(10 * 1024 * 1024);
  expect(report.differences).toEqual([]);
});
