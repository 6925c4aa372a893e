import { expect, test } from 'vitest';
import { compareDigests, digestWarnings } from '../../src/fanout/digest-board.ts';

const table = (name: string, digest: string, rows = 1) => ({ table: name, rows, digest });

test('tables are compared among the replicas that told of them', () => {
  const report = compareDigests(
    new Map([
      ['a', { tables: [table('s', '1'), table('t', '1'), table('u', '5', 7)], left: 0 }],
      ['b', { tables: [table('s', '1'), table('t', '2')], left: 0 }],
      ['c', { tables: [table('s', '1'), table('t', '1')], left: 1 }],
    ]),
  );
  expect(report).toEqual({
    replicas: ['a', 'b', 'c'],
    tables: 3,
    differing: [
      {
        table: 't',
        groups: [
          { replicas: ['a', 'c'], rows: 1, digest: '1' },
          { replicas: ['b'], rows: 1, digest: '2' },
        ],
      },
      {
        table: 'u',
        groups: [
          { replicas: ['a'], rows: 7, digest: '5' },
          { replicas: ['b'], rows: null, digest: null },
        ],
      },
    ],
  });
  expect(digestWarnings({ position: '0/8', at: '', silent: [], ...report })).toEqual([
    'replicas differ in t at 0/8: a, c (1 rows) | b (1 rows)',
    'replicas differ in u at 0/8: a (7 rows) | b (lacks it)',
  ]);
});

test('a table that only one had time for is not compared', () => {
  const report = compareDigests(
    new Map([
      ['a', { tables: [table('t', '1')], left: 0 }],
      ['b', { tables: [], left: 1 }],
    ]),
  );
  expect(report).toMatchObject({ tables: 0, differing: [] });
});
