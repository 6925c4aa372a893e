import type { Database } from 'better-sqlite3';
import type { Lsn } from '../lsn.ts';
import type { WaitOptions, WaitTarget } from '../replica/position-waiters.ts';

/** A file to read from, as a policy sees it: a Replica, which keeps it, or a Reader, which only looks. */
export interface ReadSource {
  /** Reads the file. Another object after a new bootstrap: take it anew for every read. */
  readonly db: Database;
  readonly epoch: string;
  readonly position: Lsn;
  /** `boundMs`: the file lacks nothing that was committed longer ago, ms; null while that is not known. */
  readonly lag: { readonly boundMs: number | null };
  waitFor(target: WaitTarget, options?: WaitOptions): Promise<void>;
  waitUntilFresh(maxLagMs: number, options?: WaitOptions): Promise<void>;
}
