import type { LeftOut } from './left-out.ts';
import type { MissingLocalObject, NamedLocalObject } from './local-objects.ts';

export type ReplicaState =
  | 'opening'
  | 'bootstrapping'
  | 'catching-up'
  | 'live'
  /** The replicator is away: the segments in the object store are followed, some seconds behind. */
  | 'following-store'
  | 'disconnected'
  | 'failed'
  | 'closed';

export interface ReplicaLag {
  /**
   * How old what readers see may be, ms: while connected, from the newest transaction's commit to its being
   * readable; while not, the time since the file was last known to be current. Null before either is known.
   */
  readonly ms: number | null;
  /**
   * The file lacks nothing that was committed longer ago than this, ms, as far as the clocks of this machine and
   * of Postgres agree: grows until a transaction comes or the replicator says, once a second, that there is none.
   * Null before either.
   */
  readonly boundMs: number | null;
  /** From the file's position to the replicator's when it was last heard, bytes of WAL. */
  readonly bytes: number | null;
  /** Commit to readable, over about the last ten seconds. */
  readonly p50Ms: number | null;
  readonly p99Ms: number | null;
  readonly connected: boolean;
}

/** What GET /status answers. LSNs are text. */
export interface ReplicaStatus {
  readonly state: ReplicaState;
  readonly isHealthy: boolean;
  /** Why it is not all well; empty when it is. */
  readonly reasons: readonly string[];
  readonly file: string;
  readonly name: string;
  readonly epoch: string;
  readonly position: string;
  readonly lag: ReplicaLag;
  /** Since the start. */
  readonly transactions: number;
  readonly bootstraps: number;
  /** Size of the WAL while a long reader keeps it from starting over; otherwise 0. */
  readonly pinnedWalBytes: number;
  /**
   * Tables that are being read again after a schema change: they keep what they had, and the position stays where
   * it was, while the changes of all other tables are applied.
   */
  readonly reloading: readonly string[];
  /** Values that no row of SQLite can hold: NULL in the file. The first few. */
  readonly leftOut: readonly LeftOut[];
  /** Local objects that are declared and not there, and why. */
  readonly missingLocalObjects: readonly MissingLocalObject[];
  /** The local object that is being made now, and for how long already, ms: nothing is applied meanwhile. */
  readonly makingLocalObject: (NamedLocalObject & { readonly forMs: number }) | null;
}
