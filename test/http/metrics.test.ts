import { expect, test } from 'vitest';
import { type Metric, metricsText } from '../../src/http/metrics.ts';
import { replicaMetrics } from '../../src/http/replica-metrics.ts';
import { replicatorMetrics } from '../../src/http/replicator-metrics.ts';
import { openReplica } from '../../src/replica/replica.ts';
import { TestReplicator, temporaryDirectory } from '../fanout/test-replicator.ts';

const lines = async (metrics: readonly Metric[]): Promise<string[]> =>
  (await metricsText(metrics)).split('\n').filter((line) => line !== '');

test('what is not known is left out, as a whole if there is nothing else', async () => {
  const help = 'h';
  const text = await lines([
    { name: 'a_unknown', help, values: null },
    { name: 'b_nobody', help, values: [] },
    { name: 'c_nothing', help, values: [{ labels: { x: '1' }, value: null }] },
    { name: 'd_zero', help, values: 0 },
    {
      name: 'e_some',
      help,
      values: [
        { labels: { x: '1' }, value: null },
        { labels: { x: '2' }, value: 2 },
      ],
    },
  ]);
  expect(text.filter((line) => !line.includes('process_'))).toEqual([
    '# HELP d_zero h',
    '# TYPE d_zero gauge',
    'd_zero 0',
    '# HELP e_some h',
    '# TYPE e_some gauge',
    'e_some{x="2"} 2',
  ]);
});

test('what only grows is a counter', async () => {
  const text = await lines([
    { name: 'a_total', help: 'h', values: 3 },
    { name: 'b_total', help: 'h', values: [{ labels: { x: '1' }, value: 0 }] },
  ]);
  expect(text).toEqual(
    expect.arrayContaining([
      '# TYPE a_total counter',
      'a_total 3',
      '# TYPE b_total counter',
      'b_total{x="1"} 0',
      '# TYPE process_cpu_seconds_total counter',
    ]),
  );
});

test('a replica that has heard nothing does not say that it is fresh, nor a replicator what it has not', async () => {
  using dir = temporaryDirectory();
  await using replicator = await TestReplicator.start({ dir: dir.path });
  await using replica = await openReplica({ file: `${dir.path}/app.db`, replicator: replicator.url });
  const { lag } = replica.status();
  const of = (change: Partial<typeof lag>) =>
    metricsText(replicaMetrics({ ...replica.status(), lag: { ...lag, ...change } }));
  expect(await of({ ms: null, boundMs: null })).not.toMatch(/rivulet_replica_(age|bound)_ms/);
  const known = await of({ ms: 0, boundMs: 5 });
  expect(known).toContain('\nrivulet_replica_age_ms 0\n');
  expect(known).toContain('\nrivulet_replica_bound_ms 5\n');
  const status = { ...replicator.status(), slot: null, tables: null, store: null, followers: [] };
  expect(await metricsText(replicatorMetrics(status))).not.toMatch(
    /rivulet_(slot|store|tables|follower_(connected|lag))_?/,
  );
});
