import { expect, test } from 'vitest';
import { type Observation, PAIR_SUM, SessionHistory } from './history.ts';

const observed = (versions: Observation['versions'], sum = PAIR_SUM): Observation => ({
  node: 'a node',
  versions,
  sums: versions.map(([session]) => [session, sum]),
});

test('a session reads its answered writes, and nothing older than it has read', () => {
  const session = new SessionHistory(1, 1);
  const kinds = (observation: Observation): string[] => session.judge(observation).map(({ kind }) => kind);
  expect(session.attempt()).toBe(1);
  // Not answered: it may be there or not.
  expect(kinds(observed([[1, 0]]))).toEqual([]);
  session.answered(1);
  expect(kinds(observed([[1, 0]]))).toEqual(['read-your-writes']);
  expect(
    kinds(
      observed([
        [1, 1],
        [2, 7],
      ]),
    ),
  ).toEqual([]);
  expect(session.attempt()).toBe(2);
  // Seen, although it was never answered: from now on it is there.
  expect(kinds(observed([[1, 2]]))).toEqual([]);
  expect(
    kinds(
      observed([
        [1, 1],
        [2, 6],
      ]),
    ),
  ).toEqual(['monotonic-reads', 'monotonic-reads']);
  expect(kinds(observed([[3, 0]], PAIR_SUM - 1))).toEqual(['atomicity']);
  expect(kinds(observed([[1, -1]], -2))).toEqual(['read-your-writes', 'monotonic-reads', 'atomicity']);
});
