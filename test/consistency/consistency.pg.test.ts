import { afterAll, beforeAll, expect, test } from 'vitest';
import { checkConsistency } from './checker.ts';
import { Nodes } from './nodes.ts';

let nodes: Nodes;
beforeAll(async () => {
  nodes = await Nodes.start({
    major: 18,
    sessions: 24,
    libraryNodes: [2, 1],
    proxyNodes: ['file', 'process'],
  });
});
afterAll(() => nodes?.[Symbol.asyncDispose]());

const NONE = { 'read-your-writes': 0, 'monotonic-reads': 0, atomicity: 0 };

test('readers see what they wrote, never go back in time, and see whole transactions, whatever breaks', async () => {
  const report = await checkConsistency(nodes, {
    operations: { library: 8_000, middleware: 300, proxy: 300 },
    maxMs: 15_000,
  });
  expect(report.violations, JSON.stringify(report.examples)).toEqual(NONE);
  for (const { reads, writes } of Object.values(report.operations)) expect(reads * writes).toBeGreaterThan(0);
  expect(Object.values(report.faults).reduce((sum, count) => sum + count, 0)).toBeGreaterThan(5);
});

test.each([
  ['library', ['read-your-writes', 'monotonic-reads']],
  ['middleware', ['read-your-writes', 'monotonic-reads']],
  ['proxy', ['read-your-writes']],
] as const)('the same check finds it when nobody carries a token: %s', async (path, until) => {
  const report = await checkConsistency(nodes, {
    operations: { library: 0, middleware: 0, proxy: 0, [path]: 1_000_000 },
    usesTokens: false,
    until,
    maxMs: 60_000,
  });
  for (const kind of until) expect(report.violations[kind]).toBeGreaterThan(0);
  expect(report.violations.atomicity).toBe(0);
});

test('the same check finds it when an app reads statement by statement', async () => {
  const report = await checkConsistency(nodes, {
    operations: { library: 200_000, middleware: 0, proxy: 0 },
    isTorn: true,
    hasFaults: false,
    until: ['atomicity'],
  });
  expect(report.violations.atomicity).toBeGreaterThan(0);
});
