import { FORMAT_VERSION, FRAME, readTransactionHeader } from '../change/frame.ts';
import { ProtocolError } from '../errors.ts';
import type { Lsn } from '../lsn.ts';
import { formatCommitTime } from '../replica/schema.ts';
import type { Blob, Segment } from '../store/manifest.ts';

/** A segment whose last part has still to be stored. */
export interface SegmentPlan {
  /** `parts` holds those that were stored already. */
  readonly segment: Segment;
  readonly lastPart: Buffer;
}

/**
 * Cuts the change log into segments: whole transactions, without a gap. A cut never lies inside a transaction that
 * came in parts; one that is larger than `maxBytes` is handed out in several parts, so memory stays bounded.
 */
export class SegmentBuilder {
  readonly #epoch: string;
  readonly #maxBytes: number;
  #from: Lsn;
  /** Whole transactions behind `from`. */
  #closed: Buffer[] = [];
  #closedBytes = 0;
  /** Parts of a transaction whose end has not come. */
  #open: Buffer[] = [];
  #openBytes = 0;
  /** What of that transaction was handed out and stored already. */
  #parts: Blob[] = [];
  #to: Lsn;
  #transactions = 0;
  #firstCommitUs = 0n;
  #lastCommitUs = 0n;

  constructor(options: { readonly epoch: string; readonly from: Lsn; readonly maxBytes: number }) {
    this.#epoch = options.epoch;
    this.#from = options.from;
    this.#to = options.from;
    this.#maxBytes = options.maxBytes;
  }

  /** Where the next segment begins. */
  get from(): Lsn {
    return this.#from;
  }

  /** End of the last transaction that came whole. */
  get to(): Lsn {
    return this.#to;
  }

  /** Enough has come for a segment. */
  get isFull(): boolean {
    return this.#closedBytes >= this.#maxBytes;
  }

  /** Takes whole frames, in the log's order; what lies at or before `from` is left out. Keeps the buffer. */
  push(frames: Buffer): void {
    let start = 0;
    for (let at = 0; at < frames.length; ) {
      const end = at + frames.readUInt32LE(at);
      const type = frames[at + 4];
      if (type === FRAME.transaction) {
        const header = readTransactionHeader(frames, at);
        this.#keepOpen(frames.subarray(start, end));
        if (header.endLsn > this.#to) this.#close(header.endLsn, header.commitTimeUs);
        else this.#dropOpen();
        start = end;
      } else if (type === FRAME.abort) {
        // It comes again from its beginning, or was rolled back.
        this.#dropOpen();
        start = end;
      } else if (type !== FRAME.part) {
        throw new ProtocolError(`a frame of type ${type} does not belong into the change log`);
      }
      at = end;
    }
    if (start < frames.length) this.#keepOpen(frames.subarray(start));
  }

  /**
   * A part of a transaction that is larger than a segment may be, or null: to be stored, and given to partStored().
   * Call after every push, once takeSegment() has nothing to give.
   */
  takePart(): Buffer | null {
    if (this.#closedBytes > 0 || this.#openBytes < this.#maxBytes) return null;
    const content = Buffer.concat(this.#open, this.#openBytes);
    this.#forgetOpen();
    return content;
  }

  partStored(part: Blob): void {
    this.#parts.push(part);
  }

  /** All that came whole, or null. `evenIfSmall` false: only if it is enough, or in the way of a large one. */
  takeSegment(evenIfSmall: boolean): SegmentPlan | null {
    const isInTheWay = this.#openBytes >= this.#maxBytes;
    if (this.#transactions === 0 || !(evenIfSmall || this.isFull || isInTheWay)) return null;
    const plan: SegmentPlan = {
      segment: {
        epoch: this.#epoch,
        from: this.#from,
        to: this.#to,
        firstCommitTime: formatCommitTime(this.#firstCommitUs),
        lastCommitTime: formatCommitTime(this.#lastCommitUs),
        transactions: this.#transactions,
        frameVersion: FORMAT_VERSION,
        parts: this.#parts,
      },
      lastPart: Buffer.concat(this.#closed, this.#closedBytes),
    };
    this.#from = this.#to;
    this.#closed = [];
    this.#closedBytes = 0;
    this.#transactions = 0;
    this.#parts = [];
    return plan;
  }

  #close(endLsn: Lsn, commitTimeUs: bigint): void {
    this.#closed.push(...this.#open);
    this.#closedBytes += this.#openBytes;
    this.#forgetOpen();
    if (this.#transactions++ === 0) {
      this.#firstCommitUs = commitTimeUs;
      this.#lastCommitUs = commitTimeUs;
    }
    // The clock of the server may be set back; the order of the log stays.
    if (commitTimeUs > this.#lastCommitUs) this.#lastCommitUs = commitTimeUs;
    if (commitTimeUs < this.#firstCommitUs) this.#firstCommitUs = commitTimeUs;
    this.#to = endLsn;
  }

  #keepOpen(bytes: Buffer): void {
    if (bytes.length === 0) return;
    this.#open.push(bytes);
    this.#openBytes += bytes.length;
  }

  #dropOpen(): void {
    this.#forgetOpen();
    // Behind a whole transaction they are its own.
    if (this.#transactions === 0) this.#parts = [];
  }

  #forgetOpen(): void {
    this.#open = [];
    this.#openBytes = 0;
  }
}
