import { expect, test } from 'vitest';
import { manyFollowers } from '../soak/many-followers.ts';

test('forty followers, of which some read nothing, some are dead and some come late, get every transaction in order', async () => {
  const report = await manyFollowers({ major: 18, followers: 40, perSecond: 200, seconds: 4 });
  expect(report.problems).toEqual([]);
  expect(report.committed).toBe(800);
  // All but one that stalls for good.
  expect(report.whole).toBe(43);
});
