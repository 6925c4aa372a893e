import type { ChangeLog } from '../changelog/change-log.ts';
import type { DigestReport } from '../fanout/digest-board.ts';
import type { FollowerStatus, LagSummary } from '../fanout/follower-registry.ts';
import type { BufferStatus } from '../fanout/publisher.ts';
import { formatLsn } from '../lsn.ts';
import type { CopyProgress } from '../source/initial-copy.ts';

export type ReplicatorState = 'starting' | 'copying' | 'streaming' | 'reconnecting' | 'failed';

/** What GET /v1/status answers. LSNs are text, times are ISO 8601, null means unknown. */
export interface ReplicatorStatus {
  readonly state: ReplicatorState;
  /** Why it is not all well; empty when it is. */
  readonly reasons: readonly string[];
  /** Of a relay, which knows neither slot nor tables: whom it follows. Otherwise null. */
  readonly upstream: UpstreamStatus | null;
  readonly epoch: string | null;
  readonly position: string | null;
  readonly durablePosition: string | null;
  readonly copy: CopyProgress | null;
  readonly postgres: PostgresConnection | null;
  readonly slot: SlotStatus | null;
  readonly tables: TablesStatus | null;
  /** Large transactions that Postgres sends before their commit, and what is kept of them on the disk until then. */
  readonly openTransactions: OpenTransactionsStatus | null;
  readonly log: ChangeLogStatus;
  readonly followers: readonly FollowerStatus[];
  /** What waits for followers to read it. */
  readonly buffers: BufferStatus;
  /** The newest comparison of the replicas with each other; null before there was one. */
  readonly digest: DigestReport | null;
  readonly snapshot: { readonly position: string | null; readonly bytes: number | null };
  /** Null without an object store. */
  readonly store: StoreStatus | null;
}

export interface ChangeLogStatus {
  readonly bytes: number;
  readonly batches: number;
  readonly oldestPosition: string | null;
  readonly newestPosition: string | null;
}

/** `log`: null before there is one. */
export function changeLogStatus(log: ChangeLog | null): ChangeLogStatus {
  if (log === null) return { bytes: 0, batches: 0, oldestPosition: null, newestPosition: null };
  return {
    ...log.size(),
    oldestPosition: formatLsn(log.oldestPosition),
    newestPosition: formatLsn(log.position),
  };
}

export interface UpstreamStatus {
  readonly url: string;
  readonly connected: boolean;
  readonly lastError: string | null;
  /** As of so long ago everything that Postgres had is here, ms. */
  readonly postgresHeardAgoMs: number | null;
  /** Commit to its being in the relay's log, over about the last ten seconds. */
  readonly lagMs: LagSummary;
}

export interface StoreStatus {
  readonly url: string;
  readonly durability: 'local' | 'store';
  /** `fenced`: another replicator writes there now. */
  readonly state: 'opening' | 'archiving' | 'fenced';
  /** Everything up to here is in segments. */
  readonly archivedPosition: string | null;
  /** Of the log, not yet in segments. */
  readonly behindBytes: number | null;
  readonly snapshots: number | null;
  /** Of the present epoch. */
  readonly newestSnapshot: {
    readonly position: string;
    readonly takenAt: string;
    readonly fileBytes: number;
  } | null;
  /** The snapshot under way: how much of the file is done, and what of it had to be sent. */
  readonly upload: {
    readonly bytes: number;
    readonly totalBytes: number;
    readonly sentBytes: number;
  } | null;
  readonly lastError: string | null;
}

export interface PostgresConnection {
  readonly version: string | null;
  readonly database: string | null;
  readonly walEnd: string | null;
  /** When the server was last asked: what is said of it, its slot and its tables is as of then. Null: not yet. */
  readonly asOf: string | null;
  readonly connected: boolean;
  readonly lastError: string | null;
}

export interface SlotStatus {
  readonly name: string;
  readonly active: boolean | null;
  readonly walStatus: string | null;
  readonly retainedBytes: number | null;
  /** What can still be written before the slot may be lost; null where the server sets no limit. */
  readonly safeWalBytes: number | null;
  /** Time until then at the rate of the last minute, ms. */
  readonly lostInMs: number | null;
}

export interface TablesStatus {
  readonly mirrored: number;
  readonly notMirrored: readonly { readonly table: string; readonly reason: string }[];
  /** Being read again after a schema change. */
  readonly reloading: readonly {
    readonly table: string;
    /** Those that have come so far. */
    readonly rows: number;
    /** Why it fails again and again; null while it does not. */
    readonly problem: string | null;
  }[];
}

/** Whether what the replicas get is whole and goes on: the state, and that no table waits in vain to be read again. */
export function isHealthy({ state, tables }: Pick<ReplicatorStatus, 'state' | 'tables'>): boolean {
  return state === 'streaming' && (tables?.reloading ?? []).every(({ problem }) => problem === null);
}

export interface OpenTransactionsStatus {
  readonly count: number;
  readonly bytes: number;
}
