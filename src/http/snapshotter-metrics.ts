import type { SnapshotterStatus } from '../snapshot/snapshotter.ts';
import type { Metric } from './metrics.ts';
import { lsnNumber } from './replicator-metrics.ts';

export function snapshotterMetrics(status: SnapshotterStatus): readonly Metric[] {
  const { position, newestSnapshot, isHealthy, upload } = status;
  return [
    {
      name: 'rivulet_snapshotter_healthy',
      help: '1 while /healthz answers 200',
      values: Number(isHealthy),
    },
    {
      name: 'rivulet_position_lsn',
      help: 'Position of the file, as a number',
      values: position === null ? null : lsnNumber(position),
    },
    {
      name: 'rivulet_snapshot_age_ms',
      help: 'Time since the newest snapshot was taken',
      values: newestSnapshot === null ? null : Date.now() - Date.parse(newestSnapshot.takenAt),
    },
    {
      name: 'rivulet_snapshot_sent_bytes',
      help: 'What the snapshot under way has sent; 0 while none is',
      values: upload?.sentBytes ?? 0,
    },
  ];
}
