export {
  ConfigError,
  ERROR_TABLE,
  type ErrorCode,
  ProtocolError,
  type Recovery,
  RivuletError,
} from './errors.ts';
export { formatLsn, type Lsn, parseLsn, sortableLsn } from './lsn.ts';
export {
  type Commit,
  openReplica,
  type Replica,
  type ReplicaEvents,
  type ReplicaOptions,
} from './replica/replica.ts';
export type { ReplicaLag, ReplicaState, ReplicaStatus } from './replica/replica-status.ts';
