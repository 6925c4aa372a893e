import {
  AGE_UNKNOWN,
  type EndOfStream,
  FRAME,
  FRAME_HEADER_BYTES,
  type Hello,
  POSITION_FRAME_BYTES,
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
  return { hello, end, isPositionsOnly, commitTimesMs, sourceAgeMs, sourceClockMs };
}

function readJson(frames: Buffer, at: number, end: number): unknown {
  try {
    return JSON.parse(frames.toString('utf8', at + FRAME_HEADER_BYTES, end));
  } catch (cause) {
    throw new ProtocolError('a frame that should hold JSON does not', { cause });
  }
}
