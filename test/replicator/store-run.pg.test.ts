import { expect, test } from 'vitest';
import { storeRun } from '../soak/store-run.ts';

test.each([
  [15, 's3'],
  [18, 'file'],
] as const)(
  'Postgres %i, %s store: bootstrap under load, kills, restores, no replicator',
  async (major, kind) => {
    const report = await storeRun({ major, kind, kills: 4, moments: 3 });
    expect(report.problems).toEqual([]);
    expect(report).toMatchObject({ restores: 3, kills: { snapshotter: 2, bootstrap: 2 } });
    expect(report.snapshots).toBeGreaterThan(1);
  },
  240_000,
);
