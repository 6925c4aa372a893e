import { expect, test } from 'vitest';
import { type BatchFacts, lastPrunable } from '../../src/changelog/retention.ts';

const batches = (
  count: number,
  change: (facts: BatchFacts) => Partial<BatchFacts> = () => ({}),
): BatchFacts[] =>
  Array.from({ length: count }, (_, index) => {
    const seq = index + 1;
    const facts = {
      seq,
      endLsn: BigInt(seq * 100),
      firstSeq: seq,
      appendedAtMs: seq * 1000,
      endOffset: seq * 10,
    };
    return { ...facts, ...change(facts) };
  });

const KEEP = { maxAgeMs: Number.POSITIVE_INFINITY, maxBytes: Number.POSITIVE_INFINITY, keepFrom: 1_000_000n };

test.each([
  ['nothing asks for it', KEEP, null],
  ['age', { ...KEEP, maxAgeMs: 6500 }, 3],
  ['size', { ...KEEP, maxBytes: 40 }, 6],
  ['age, as far as the rest is not needed', { ...KEEP, maxAgeMs: 0, keepFrom: 250n }, 2],
  ['all of it: the newest stays', { ...KEEP, maxBytes: 0 }, 9],
])('%s', (_name, retention, last) => {
  expect(lastPrunable({ oldest: batches(10), endOffset: 100, nowMs: 10_000 }, retention)?.seq ?? null).toBe(
    last,
  );
});

test('never cuts a transaction in parts', () => {
  // 3, 4 and 5 are one transaction.
  const oldest = batches(10, ({ seq }) => (seq === 4 || seq === 5 ? { firstSeq: 3 } : {}));
  const situation = { oldest, endOffset: 100, nowMs: 10_000 };
  expect(lastPrunable(situation, { ...KEEP, keepFrom: 300n, maxBytes: 0 })?.seq).toBe(2);
  expect(lastPrunable(situation, { ...KEEP, keepFrom: 400n, maxBytes: 0 })?.seq).toBe(2);
  expect(lastPrunable(situation, { ...KEEP, keepFrom: 500n, maxBytes: 0 })?.seq).toBe(5);
});
