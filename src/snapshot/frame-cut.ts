import { FRAME, readTransactionHeader, type TransactionHeader } from '../change/frame.ts';

/** Frames up to a transaction that is not wanted any more. */
export interface FrameCut {
  /** Of whole transactions; it may end with parts of one whose end has not come. */
  readonly frames: Buffer;
  /** The transaction that is not wanted has been met: nothing behind it counts, and open parts are its own. */
  readonly isOver: boolean;
}

/** Cuts before the first transaction that is not `wanted`, with its parts as far as they are in the same frames. */
export function cutFrames(frames: Buffer, wanted: (header: TransactionHeader) => boolean): FrameCut {
  let boundary = 0;
  for (let at = 0; at < frames.length; ) {
    const end = at + frames.readUInt32LE(at);
    if (frames[at + 4] === FRAME.transaction) {
      if (!wanted(readTransactionHeader(frames, at)))
        return { frames: frames.subarray(0, boundary), isOver: true };
      boundary = end;
    }
    at = end;
  }
  return { frames, isOver: false };
}
