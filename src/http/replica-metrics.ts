import type { ReplicaStatus } from '../replica/replica-status.ts';
import type { Metric } from './metrics.ts';
import { lsnNumber } from './replicator-metrics.ts';

export function replicaMetrics(status: ReplicaStatus): readonly Metric[] {
  const { lag } = status;
  return [
    {
      name: 'rivulet_replica_healthy',
      help: '1 while /healthz answers 200',
      values: Number(status.isHealthy),
    },
    {
      name: 'rivulet_replica_connected',
      help: '1 while changes are received',
      values: Number(lag.connected),
    },
    {
      name: 'rivulet_tables_reloading',
      help: 'Tables that keep what they had while they are read again',
      values: status.reloading.length,
    },
    {
      name: 'rivulet_position_lsn',
      help: 'Position of the file, as a number',
      values: lsnNumber(status.position),
    },
    {
      name: 'rivulet_replica_transactions_total',
      help: 'Transactions applied since the start',
      values: status.transactions,
    },
    {
      name: 'rivulet_replica_bootstraps_total',
      help: 'Times the file was made anew since the start',
      values: status.bootstraps,
    },
    {
      name: 'rivulet_replica_wal_bytes',
      help: "Size of the file's WAL while a reader keeps it from starting over",
      values: status.pinnedWalBytes,
    },
    {
      name: 'rivulet_replica_lag_ms',
      help: 'Commit to applied over about the last ten seconds',
      values: [
        { labels: { quantile: '0.5' }, value: lag.p50Ms },
        { labels: { quantile: '0.99' }, value: lag.p99Ms },
      ],
    },
    { name: 'rivulet_replica_age_ms', help: 'How old what readers see may be', values: lag.ms },
    {
      name: 'rivulet_replica_bound_ms',
      help: 'The file lacks nothing that was committed longer ago than this',
      values: lag.boundMs,
    },
  ];
}
