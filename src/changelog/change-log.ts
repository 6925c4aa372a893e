import type { Batch } from '../change/batch.ts';
import type { Lsn } from '../lsn.ts';

/** What the log was made from. Another system or timeline is another history. */
export interface SourceFacts {
  readonly systemIdentifier: string;
  readonly timeline: number;
  readonly database: string;
  readonly slot: string;
  readonly publication: string;
}

/** A relay's log is of no slot of its own: nobody keeps WAL for it. */
export function relayedSource(identity: Pick<SourceFacts, 'systemIdentifier' | 'database'>): SourceFacts {
  return { ...identity, timeline: 0, slot: '', publication: '' };
}

export function isRelayed(source: SourceFacts): boolean {
  return source.slot === '';
}

export interface Retention {
  /** Batches appended longer ago may go. */
  readonly maxAgeMs: number;
  /** The oldest batches go while the log holds more than this. */
  readonly maxBytes: number;
  /** A file at this position must be able to go on from the log: what lies behind it stays, whatever the limits. */
  readonly keepFrom: Lsn;
}

export interface LogSize {
  readonly bytes: number;
  readonly batches: number;
}

/** Reads batches in order, from one place of the log on. Holds nothing open between two calls. */
export interface LogCursor {
  /** Sequence number of the batch that comes next. */
  readonly nextSeq: number;
  /**
   * The next batches as one buffer of whole frames: at least one, then as many as fit into `maxBytes`; null at
   * the head. Throws POSITION_TOO_OLD if they were pruned meanwhile, PROTOCOL if they are damaged.
   */
  next(maxBytes: number): Buffer | null;
}

/**
 * Every committed transaction, in commit order, from `oldestPosition` to `position`.
 *
 * One owner appends; batches are numbered without gaps. `append` and `advance` survive the death of this
 * process at once, the death of the machine only after `sync`; only what `durablePosition` covers may be
 * acknowledged to Postgres.
 */
export interface ChangeLog extends AsyncDisposable {
  readonly epoch: string;
  readonly source: SourceFacts;
  /** The newest state that came with a batch, or the one the log was made with (see Batch.sourceState). */
  readonly sourceState: string;
  readonly position: Lsn;
  readonly durablePosition: Lsn;
  /** A follower at or behind this position, and not behind its own end, finds all that it lacks. */
  readonly oldestPosition: Lsn;
  /** Number of the newest batch; 0 while there is none. */
  readonly headSeq: number;
  /**
   * Transactions of which the log holds parts but no end. Whoever (re)connects to Postgres, which then sends
   * them from their beginning, appends an abort frame for each first.
   */
  readonly openXids: readonly number[];

  /** A sync has failed, and what is on the disk is unknown: nothing more can be made durable before it is opened anew. */
  readonly isBroken: boolean;

  /** Throws DISK_FULL with nothing changed; the same batch can be appended again when there is space. */
  append(batch: Batch): void;
  /** Moves the position without data: nothing published lies between the old one and this. */
  advance(position: Lsn): void;
  /** Makes everything appended so far durable; concurrent calls share one disk sync. Gives durablePosition. */
  sync(): Promise<Lsn>;
  /** Begins where a follower at `position` has to. Throws POSITION_TOO_OLD or POSITION_AHEAD. */
  openCursor(position: Lsn): LogCursor;
  /** Begins with the batch `seq`. */
  openCursorAt(seq: number): LogCursor;
  size(): LogSize;
  /** Bytes of the batches that a follower at `position` has yet to read. */
  bytesAfter(position: Lsn): number;
  /** Removes what retention no longer asks for, in steps between which the event loop runs. Never rejects on a full disk. */
  prune(retention: Retention): Promise<void>;
  /** May be called twice. */
  close(): Promise<void>;
}
