import { ProtocolError } from '../errors.ts';

/**
 * Which transactions a moment of the database contains. Ids are 64 bits wide in Postgres, of which the stream
 * gives the lower half; 2^53 of them would take longer to use up than anybody waits.
 * https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-PG-SNAPSHOT
 */
export interface Snapshot {
  /** Every transaction with a lower id is over. */
  readonly xmin: number;
  /** No transaction with this or a higher id had begun to write. */
  readonly xmax: number;
  /** Those between that were under way. */
  readonly inProgress: readonly number[];
}

/** What CHANGE.reloadBegin carries. */
export interface ReloadBegin {
  /** The rows that follow are of this moment. */
  readonly snapshot: Snapshot;
  /** Rows that came before are void: the table is read from its beginning. */
  readonly isFirst: boolean;
}

const TWO_31 = 2 ** 31;
const TWO_32 = 2 ** 32;

/** As pg_snapshot prints: `xmin:xmax:xid,xid,…`. */
export function parseSnapshot(text: string): Snapshot {
  const match = /^(\d+):(\d+):((?:\d+(?:,\d+)*)?)$/.exec(text);
  if (match === null) throw new ProtocolError(`'${text}' is not a snapshot`);
  return {
    xmin: Number(match[1]),
    xmax: Number(match[2]),
    inProgress: match[3] === '' ? [] : match[3]!.split(',').map(Number),
  };
}

/** Whether a committed transaction of the stream (the lower 32 bits of its id) is in the snapshot. */
export function isInSnapshot(snapshot: Snapshot, xid: number): boolean {
  // The half that is missing is the newest transaction's, give or take one: ids in use span less than 2^31.
  let id = Math.floor(snapshot.xmax / TWO_32) * TWO_32 + xid;
  if (id > snapshot.xmax + TWO_31) id -= TWO_32;
  else if (id < snapshot.xmax - TWO_31) id += TWO_32;
  if (id >= snapshot.xmax) return false;
  return id < snapshot.xmin || !snapshot.inProgress.includes(id);
}
