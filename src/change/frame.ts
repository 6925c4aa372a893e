import { ProtocolError } from '../errors.ts';
import type { Lsn } from '../lsn.ts';
import { giveBack } from './give-back.ts';

/**
 * The format of the change log and of the wire between replicator and followers: they are the same bytes, so
 * a transaction is encoded once. All integers are little-endian. docs/formats.md shows the layout as tables.
 *
 *   frame        u32 length of the whole frame · u8 type · 3 bytes zero · payload
 *   change       u8 kind · u32 relation OID · u32 length of the body · body
 *   tuple        u16 number of values · values
 *   value        u8 tag · payload
 *
 * The relation OID stands in front of every change, so a relay can pick tables without decoding rows.
 */
export const FORMAT_VERSION = 1;

export const FRAME_HEADER_BYTES = 8;

export const FRAME = {
  /** JSON: the first frame of every stream (see Hello). */
  hello: 1,
  /**
   * u64 position: everything up to here has been sent · i64 age, µs: so long ago that was all there is, or AGE_UNKNOWN · i64 clock:
   * what Postgres's clock showed when it said so, µs since 1970, if that was just now; otherwise 0
   */
  position: 2,
  /**
   * u64 commit LSN · u64 end LSN · i64 commit time, µs since 1970 · u32 xid · u32 number of changes ·
   * u8 whether parts of it came before · 7 bytes zero · changes
   */
  transaction: 3,
  /**
   * u32 xid · u32 number of changes · changes: of a transaction whose end is still to come. The initial copy's rows
   * pass between threads as such frames, with the number of a COPY in the place of xid.
   */
  part: 4,
  /** u32 xid · u32 zero: its parts are to be forgotten; they will come again, or were rolled back. */
  abort: 5,
  /** JSON: why the sender ends the stream (see EndOfStream). */
  end: 6,
  /** JSON: a digest is to be made of the state before this frame, or prepared for (see DigestAnnouncement). */
  digest: 7,
} as const;

export const TRANSACTION_HEADER_BYTES = FRAME_HEADER_BYTES + 40;
export const PART_HEADER_BYTES = FRAME_HEADER_BYTES + 8;
export const POSITION_FRAME_BYTES = FRAME_HEADER_BYTES + 24;
export const CHANGE_HEADER_BYTES = 9;

export const CHANGE = {
  /** tuple */
  insert: 1,
  /** new tuple; the row is found by the locator columns in it */
  update: 2,
  /** old key (identity columns only), new tuple */
  updateKey: 3,
  /** old tuple (all columns), new tuple */
  updateFull: 4,
  /** old key (identity columns only) */
  deleteKey: 5,
  /** old tuple (all columns) */
  deleteFull: 6,
  /** nothing: one such change for each relation of the TRUNCATE */
  truncate: 7,
  /** JSON: SchemaChange; relation OID 0 */
  schema: 8,
  /** JSON: Snapshot. A table is read again from here on: what was read of it before is void. */
  reloadBegin: 9,
  /** tuple: a row as that snapshot has it */
  reloadRow: 10,
  /** nothing: all rows of the snapshot have come */
  reloadEnd: 11,
  /** JSON: LeftOutValue, behind the change that brings its row */
  leftOut: 12,
  /** JSON: RowMove, in front of the schema change that drops the relation, or behind the one that makes the other */
  move: 13,
} as const;

export const TAG = {
  null: 0,
  /** An out-of-line (TOAST) value that the UPDATE did not touch: Postgres does not send it. */
  unchanged: 1,
  /** i32 */
  int32: 2,
  /** i64 */
  int64: 3,
  /** f64 */
  real: 4,
  /** u32 length · UTF-8 */
  text: 5,
  /** u32 length · bytes */
  blob: 6,
  /** Text of `tag - shortText` bytes (0 to 239), without a length of its own. */
  shortText: 16,
} as const;

export const MAX_SHORT_TEXT_BYTES = 255 - TAG.shortText;

/** Beside the answer to a follower's report: when to send the next, ms. Many followers report less often each. */
export const REPORT_INTERVAL_HEADER = 'rivulet-report-interval';

/** First frame of a stream. */
export interface Hello {
  readonly version: number;
  readonly epoch: string;
  /** Position of the log when the stream began, as LSN text. */
  readonly position: string;
  /** How often the follower should report its position, ms. */
  readonly reportIntervalMs: number;
  /** A follower that hears nothing for this long takes the replicator for dead, ms. */
  readonly silenceLimitMs: number;
}

/** Goes to followers that asked for it when they connected: others would not know the frame. */
export interface DigestAnnouncement {
  readonly id: string;
  /** How long it may take, ms; null: it is to come soon. */
  readonly limitMs: number | null;
}

export interface EndOfStream {
  readonly code: string;
  readonly message: string;
}

export function jsonFrame(type: number, payload: object): Buffer {
  const json = Buffer.from(JSON.stringify(payload));
  const frame = Buffer.alloc(FRAME_HEADER_BYTES + json.length);
  frame.writeUInt32LE(frame.length, 0);
  frame[4] = type;
  json.copy(frame, FRAME_HEADER_BYTES);
  return frame;
}

/** In a position frame of a replicator that has not heard from Postgres since it started. */
export const AGE_UNKNOWN = -1n;

export function positionFrame(position: Lsn, ageUs: bigint, clockUs = 0n): Buffer {
  const frame = Buffer.alloc(POSITION_FRAME_BYTES);
  frame.writeUInt32LE(frame.length, 0);
  frame[4] = FRAME.position;
  frame.writeBigUInt64LE(position, 8);
  frame.writeBigInt64LE(ageUs, 16);
  frame.writeBigInt64LE(clockUs, 24);
  return frame;
}

export function abortFrame(xid: number): Buffer {
  const frame = Buffer.alloc(PART_HEADER_BYTES);
  frame.writeUInt32LE(frame.length, 0);
  frame[4] = FRAME.abort;
  frame.writeUInt32LE(xid, 8);
  return frame;
}

/** What stands in a transaction frame before its changes. */
export interface TransactionHeader {
  readonly commitLsn: Lsn;
  /** The transaction is contained in a file if and only if this is at or below the file's position. */
  readonly endLsn: Lsn;
  readonly commitTimeUs: bigint;
  readonly xid: number;
  readonly changeCount: number;
  readonly hasParts: boolean;
}

/** Reads the header of the transaction frame that starts at `offset`. */
export function readTransactionHeader(bytes: Buffer, offset: number): TransactionHeader {
  return {
    commitLsn: bytes.readBigUInt64LE(offset + 8),
    endLsn: bytes.readBigUInt64LE(offset + 16),
    commitTimeUs: bytes.readBigInt64LE(offset + 24),
    xid: bytes.readUInt32LE(offset + 32),
    changeCount: bytes.readUInt32LE(offset + 36),
    hasParts: bytes[offset + 40] === 1,
  };
}

/** No frame is larger: larger transactions come in parts. A single huge row may still fill one alone. */
export const MAX_FRAME_BYTES = 0x7fff_ffff;

/**
 * Cuts a stream of bytes into whole frames, wherever the chunks break. `push` takes a chunk over, memory and all, and
 * gives back a buffer of one or more whole frames (no copy where the chunk holds whole frames already), or null while
 * the first is incomplete. What it gives shares its memory with nothing else: giveBack() may be called on it.
 */
export class FrameSplitter {
  #pending: Buffer[] = [];
  #pendingBytes = 0;
  #neededBytes = FRAME_HEADER_BYTES;

  push(chunk: Buffer): Buffer | null {
    if (this.#pendingBytes > 0) {
      this.#pending.push(chunk);
      this.#pendingBytes += chunk.length;
      // Joining only once the frame is whole keeps a frame of many chunks linear.
      if (this.#pendingBytes < this.#neededBytes) return null;
      chunk = Buffer.concat(this.#pending, this.#pendingBytes);
      for (const part of this.#pending) giveBack(part);
      this.#pending = [];
      this.#pendingBytes = 0;
    }
    let end = 0;
    this.#neededBytes = FRAME_HEADER_BYTES;
    while (chunk.length - end >= FRAME_HEADER_BYTES) {
      const length = chunk.readUInt32LE(end);
      if (length < FRAME_HEADER_BYTES || length > MAX_FRAME_BYTES) {
        throw new ProtocolError(`a frame says that it is ${length} bytes long`);
      }
      if (chunk.length - end < length) {
        this.#neededBytes = length;
        break;
      }
      end += length;
    }
    if (end < chunk.length) {
      // The beginning of a frame is small beside what it came in, or has that for itself.
      const rest = end === 0 ? chunk : Buffer.from(chunk.subarray(end));
      this.#pending = [rest];
      this.#pendingBytes = rest.length;
    }
    return end === 0 ? null : chunk.subarray(0, end);
  }
}
