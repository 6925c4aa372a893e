import { expect, test } from 'vitest';
import { killStorm } from '../soak/kill-storm.ts';

test('kill -9 at random moments: nothing missing, nothing twice, no hand needed', async () => {
  const report = await killStorm({ major: 18, kills: 4 });
  expect(report.differences).toEqual([]);
  expect(report.applicationErrors).toEqual([]);
  expect(report.committed).toBeGreaterThan(0);
}, 240_000);
