import type { Lsn } from '../lsn.ts';

/** What is appended to the log and sent to followers in one go: whole frames, in stream order. */
export interface Batch {
  /** Transaction, part and abort frames. Never written again once it is here: many sockets share it. */
  readonly bytes: Buffer;
  /** Position behind this batch: end LSN of its last transaction frame, or the position before if it has none. */
  readonly endLsn: Lsn;
  /** Number of transaction frames. */
  readonly closes: number;
  /** Whether it ends with a part of a transaction whose end is still to come. */
  readonly opensParts: boolean;
  /**
   * The published schema behind this batch, as the source's own JSON, where the batch changes it. The log keeps
   * the newest one, in the same SQLite transaction, so that a restarted source knows where the stream stands.
   */
  readonly sourceState?: string;
}
