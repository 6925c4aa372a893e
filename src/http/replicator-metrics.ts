import { parseLsn } from '../lsn.ts';
import type { ReplicatorState, ReplicatorStatus } from '../replicator/status.ts';
import type { Metric } from './metrics.ts';

const STATES: readonly ReplicatorState[] = ['starting', 'copying', 'streaming', 'reconnecting', 'failed'];

export function replicatorMetrics(status: ReplicatorStatus): readonly Metric[] {
  const { slot, log, followers, tables, copy } = status;
  const ofFollowers = (value: (follower: ReplicatorStatus['followers'][number]) => number | null) =>
    followers.map((follower) => ({
      labels: { follower: follower.id, name: follower.name },
      value: value(follower),
    }));
  return [
    {
      name: 'rivulet_replicator_state',
      help: '1 for the state that the replicator is in',
      values: STATES.map((state) => ({ labels: { state }, value: Number(state === status.state) })),
    },
    {
      name: 'rivulet_position_lsn',
      help: 'Position of the change log, as a number',
      values: lsnNumber(status.position),
    },
    {
      name: 'rivulet_durable_position_lsn',
      help: 'Position up to which the change log is on the disk',
      values: lsnNumber(status.durablePosition),
    },
    { name: 'rivulet_log_bytes', help: 'Bytes in the change log', values: log.bytes },
    {
      name: 'rivulet_open_transactions',
      help: 'Large transactions that Postgres sends before their commit',
      values: status.openTransactions?.count ?? null,
    },
    {
      name: 'rivulet_open_transactions_bytes',
      help: 'Bytes of them that wait on the disk for the commit',
      values: status.openTransactions?.bytes ?? null,
    },
    { name: 'rivulet_log_batches', help: 'Batches in the change log', values: log.batches },
    {
      name: 'rivulet_slot_retained_bytes',
      help: 'WAL that Postgres keeps for the slot',
      values: slot?.retainedBytes ?? null,
    },
    {
      name: 'rivulet_slot_safe_bytes',
      help: 'WAL that can still be written before the slot may be lost',
      values: slot?.safeWalBytes ?? null,
    },
    { name: 'rivulet_tables_mirrored', help: 'Tables that are mirrored', values: tables?.mirrored ?? null },
    {
      name: 'rivulet_tables_not_mirrored',
      help: 'Tables that are not',
      values: tables?.notMirrored.length ?? null,
    },
    {
      name: 'rivulet_tables_reloading',
      help: 'Tables that are being read again after a schema change',
      values: tables?.reloading.length ?? null,
    },
    {
      name: 'rivulet_digest_tables',
      help: 'Tables that the newest digests of two or more replicas told of',
      values: status.digest?.tables ?? null,
    },
    {
      name: 'rivulet_digest_tables_differing',
      help: 'Of these, tables that are not the same on all of them',
      values: status.digest?.differing.length ?? null,
    },
    { name: 'rivulet_copy_rows', help: 'Rows of the initial copy so far', values: copy?.rows ?? null },
    {
      name: 'rivulet_store_archived_lsn',
      help: 'Position up to which everything is in the object store',
      values: lsnNumber(status.store?.archivedPosition ?? null),
    },
    {
      name: 'rivulet_store_behind_bytes',
      help: 'Bytes of the change log that are not in the object store yet',
      values: status.store?.behindBytes ?? null,
    },
    {
      name: 'rivulet_store_snapshot_lsn',
      help: 'Position of the newest snapshot in the object store',
      values: lsnNumber(status.store?.newestSnapshot?.position ?? null),
    },
    {
      name: 'rivulet_store_snapshot_time_seconds',
      help: 'When the newest snapshot in the object store was taken, seconds since 1970',
      values:
        status.store?.newestSnapshot == null ? null : Date.parse(status.store.newestSnapshot.takenAt) / 1000,
    },
    {
      name: 'rivulet_follower_buffer_bytes',
      help: 'Bytes that wait for followers to read them, in memory',
      values: status.buffers.bufferedBytes,
    },
    {
      name: 'rivulet_follower_buffer_limit_bytes',
      help: 'How many there may be: --buffer-total',
      values: status.buffers.totalBufferBytes,
    },
    {
      name: 'rivulet_relay_age_ms',
      help: 'Of a relay: everything that Postgres had so long ago is here',
      values: status.upstream?.postgresHeardAgoMs ?? null,
    },
    {
      name: 'rivulet_relay_lag_ms',
      help: "Commit to its being in the relay's log over about the last ten seconds",
      values:
        status.upstream === null
          ? null
          : [
              { labels: { quantile: '0.5' }, value: status.upstream.lagMs.p50 },
              { labels: { quantile: '0.99' }, value: status.upstream.lagMs.p99 },
            ],
    },
    {
      name: 'rivulet_follower_connected',
      help: '1 while the follower is connected, here or to a relay that is',
      values: ofFollowers(({ state }) => Number(state !== 'gone' && state !== 'unknown')),
    },
    {
      name: 'rivulet_follower_lag_bytes',
      help: "From the follower's position to the log's",
      values: ofFollowers(({ lagBytes }) => lagBytes),
    },
    {
      name: 'rivulet_follower_lag_ms',
      help: 'Commit to applied over about the last ten seconds, as the follower measured it',
      values: followers.flatMap(({ id, name, lagMs }) => [
        { labels: { follower: id, name, quantile: '0.5' }, value: lagMs.p50 },
        { labels: { follower: id, name, quantile: '0.99' }, value: lagMs.p99 },
      ]),
    },
  ];
}

/** A double holds positions below 2^53 exactly, some years of WAL; as a rate it does beyond as well. */
export function lsnNumber(lsn: string | null): number | null {
  return lsn === null ? null : Number(parseLsn(lsn));
}
