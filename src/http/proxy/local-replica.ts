import type { Position } from '../../token.ts';

export interface ReplicaHealth {
  readonly reasons: readonly string[];
  /** The file lacks nothing that was committed longer ago; null where nobody can tell. */
  readonly lagMs: number | null;
}

/** `other-epoch`: the file is of another history than the wanted position, now. */
export type WaitOutcome = 'reached' | 'other-epoch' | 'timeout';

/** The replica that the app behind the proxy reads: where it is, and waiting until it is somewhere. */
export interface LocalReplica extends AsyncDisposable {
  /** Requests that wait now. */
  readonly waiting: number;
  /** Why nothing can be said about the replica at the moment, if so. */
  readonly failure: Error | null;
  /** Where the replica is now: at least where any reader of the file has seen it. Rejects if it cannot be asked. */
  position(): Position | Promise<Position>;
  /** Whether it is known, without asking anybody, that the file has the position. */
  hasReached(wanted: Position): boolean;
  /** Never rejects; an aborted signal gives `timeout`. */
  wait(
    wanted: Position,
    options: { readonly timeoutMs: number; readonly signal: AbortSignal },
  ): Promise<WaitOutcome>;
  health(): Promise<ReplicaHealth>;
}
