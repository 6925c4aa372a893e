import {
  AGE_UNKNOWN,
  CHANGE,
  type EndOfStream,
  FRAME,
  FRAME_HEADER_BYTES,
  type Hello,
  POSITION_FRAME_BYTES,
  TRANSACTION_HEADER_BYTES,
} from '../change/frame.ts';
import { ProtocolError } from '../errors.ts';

/** What a buffer of whole frames holds, as far as the one who hands it to the applier wants to know. */
export interface FrameScan {
  readonly hello: Hello | null;
  readonly end: EndOfStream | null;
  /** Nothing but positions (and hello): applying it changes no row. */
  readonly isPositionsOnly: boolean;
  /** Commit times of the transactions that end here, ms since 1970. */
  readonly commitTimesMs: readonly number[];
  /** Whole transactions in which rows may be changed that others change, too: not what is read again of a table. */
  readonly foldable: { readonly transactions: number; readonly bytes: number };
  /** From the newest position frame: how long ago the replicator last heard from Postgres, ms. */
  readonly sourceAgeMs: number | null;
  /** From the newest position frame that tells: what Postgres's clock showed when it said so, ms since 1970. */
  readonly sourceClockMs: number | null;
}

/** Looks at the frames' headers only. */
export function scanFrames(frames: Buffer): FrameScan {
  let hello: Hello | null = null;
  let end: EndOfStream | null = null;
  let isPositionsOnly = true;
  const commitTimesMs: number[] = [];
  const foldable = { transactions: 0, bytes: 0 };
  let sourceAgeMs: number | null = null;
  let sourceClockMs: number | null = null;
  for (let at = 0; at < frames.length; ) {
    const next = at + frames.readUInt32LE(at);
    switch (frames[at + 4]) {
      case FRAME.transaction:
        isPositionsOnly = false;
        commitTimesMs.push(
          (frames.readUInt32LE(at + 24) + frames.readInt32LE(at + 28) * 0x1_0000_0000) / 1000,
        );
        if (!isReloadStep(frames, at, next)) {
          foldable.transactions++;
          foldable.bytes += next - at;
        }
        break;
      case FRAME.position: {
        const ageUs = frames.readBigInt64LE(at + 16);
        sourceAgeMs = ageUs === AGE_UNKNOWN ? null : Number(ageUs) / 1000;
        // Older replicators do not tell.
        if (next - at >= POSITION_FRAME_BYTES) {
          const clockMs = Number(frames.readBigInt64LE(at + 24)) / 1000;
          if (clockMs > 0) sourceClockMs = clockMs;
        }
        break;
      }
      case FRAME.hello:
        hello = readJson(frames, at, next) as Hello;
        break;
      case FRAME.end:
        end = readJson(frames, at, next) as EndOfStream;
        break;
      default:
        isPositionsOnly = false;
    }
    at = next;
  }
  return { hello, end, isPositionsOnly, commitTimesMs, foldable, sourceAgeMs, sourceClockMs };
}

/** The replicator writes them in transactions of their own. */
function isReloadStep(frames: Buffer, at: number, end: number): boolean {
  const first = at + TRANSACTION_HEADER_BYTES;
  if (first >= end) return false;
  const kind = frames[first];
  return kind === CHANGE.reloadBegin || kind === CHANGE.reloadRow || kind === CHANGE.reloadEnd;
}

function readJson(frames: Buffer, at: number, end: number): unknown {
  try {
    return JSON.parse(frames.toString('utf8', at + FRAME_HEADER_BYTES, end));
  } catch (cause) {
    throw new ProtocolError('a frame that should hold JSON does not', { cause });
  }
}
