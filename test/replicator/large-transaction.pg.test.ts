import { expect, test } from 'vitest';
import { largeTransaction } from '../soak/large-transaction.ts';

const ROWS = 1_000_000;

test('a million rows in one transaction: all or none of them, in bounded memory, with both processes killed on the way', async () => {
  const report = await largeTransaction({ major: 18, rows: ROWS });
  expect(report.countsSeen).toEqual([0, ROWS]);
  expect(report.replica).toEqual(report.postgres);
  expect(report.newReplica).toEqual(report.postgres);
  for (const [process, peakMiB] of Object.entries(report.peakMiB)) expect(peakMiB, process).toBeLessThan(300);
}, 300_000);
