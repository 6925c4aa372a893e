import { expect, test } from 'vitest';
import { RivuletError } from '../../src/errors.ts';
import { PoisonGuard } from '../../src/replicator/poison-guard.ts';

function failure(sqlstate?: string): RivuletError {
  return new RivuletError('POSTGRES_ERROR', 'failed', sqlstate === undefined ? {} : { facts: { sqlstate } });
}

/** What the guard makes of failures in a row. */
function codes(
  failures: readonly (readonly [sqlstate: string | undefined, position: bigint | null])[],
): unknown[] {
  const guard = new PoisonGuard();
  return failures.map(
    ([sqlstate, position]) => (guard.judge(failure(sqlstate), position) as RivuletError).code,
  );
}

const [SAME, GAP] = ['POSTGRES_ERROR', 'POSITION_GAP'];

test('five failures in a row on the same data are enough, and another history has its chances again', () => {
  expect(codes(Array.from({ length: 10 }, () => ['22012', 7n] as const))).toEqual([
    SAME,
    SAME,
    SAME,
    SAME,
    GAP,
    SAME,
    SAME,
    SAME,
    SAME,
    GAP,
  ]);
});

test('not if the stream has gone on, the reason is another, or it is how the server is at the moment', () => {
  expect(
    codes([
      ['22012', 7n],
      ['22012', 7n],
      ['22012', 7n],
      ['22012', 7n],
      ['22012', 8n],
    ]),
  ).not.toContain(GAP);
  expect(
    codes([
      ['22012', 7n],
      ['22012', 7n],
      ['22P05', 7n],
      ['22012', 7n],
      ['22012', 7n],
    ]),
  ).not.toContain(GAP);
  for (const sqlstate of ['57P01', '53200', '42501', undefined])
    expect(codes(Array.from({ length: 9 }, () => [sqlstate, 7n] as const))).not.toContain(GAP);
  expect(codes(Array.from({ length: 9 }, () => ['22012', null] as const))).not.toContain(GAP);
});
