import type { DigestReport } from '../fanout/digest-board.ts';
import type { CopyProgress } from '../source/initial-copy.ts';

export type ReplicatorState = 'starting' | 'copying' | 'streaming' | 'reconnecting' | 'failed';

/** What GET /v1/status answers. LSNs are text, times are ISO 8601, null means unknown. */
export interface ReplicatorStatus {
  readonly state: ReplicatorState;
  /** Why it is not all well; empty when it is. */
  readonly reasons: readonly string[];
  readonly epoch: string | null;
  readonly position: string | null;
  readonly durablePosition: string | null;
  readonly copy: CopyProgress | null;
  readonly postgres: {
    readonly version: string | null;
    readonly database: string | null;
    readonly walEnd: string | null;
    readonly connected: boolean;
    readonly lastError: string | null;
  };
  readonly slot: {
    readonly name: string;
    readonly active: boolean | null;
    readonly walStatus: string | null;
    readonly retainedBytes: number | null;
    /** What can still be written before the slot may be lost; null where the server sets no limit. */
    readonly safeWalBytes: number | null;
    /** Time until then at the rate of the last minute, ms. */
    readonly lostInMs: number | null;
  };
  readonly tables: {
    readonly mirrored: number;
    readonly notMirrored: readonly { readonly table: string; readonly reason: string }[];
    /** Being read again after a schema change, with the rows that have come so far. */
    readonly reloading: readonly { readonly table: string; readonly rows: number }[];
  };
  /** Large transactions that Postgres sends before their commit, and what is kept of them on the disk until then. */
  readonly openTransactions: { readonly count: number; readonly bytes: number };
  readonly log: {
    readonly bytes: number;
    readonly batches: number;
    readonly oldestPosition: string | null;
    readonly newestPosition: string | null;
  };
  readonly followers: readonly FollowerStatus[];
  /** The newest comparison of the replicas with each other; null before there was one. */
  readonly digest: DigestReport | null;
  readonly snapshot: { readonly position: string | null; readonly bytes: number | null };
  /** Null without an object store. */
  readonly store: StoreStatus | null;
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

export interface FollowerStatus {
  readonly id: string;
  readonly name: string;
  readonly state: string;
  readonly position: string | null;
  readonly lagMs: { readonly p50: number | null; readonly p99: number | null; readonly last: number | null };
  readonly lagBytes: number | null;
  readonly connectedAt: string;
  readonly lastSeenAt: string;
}
