import type { Batch } from '../change/batch.ts';
import { abortFrame, FRAME } from '../change/frame.ts';
import type { ChangeLog } from '../changelog/change-log.ts';
import type { Publisher } from '../fanout/publisher.ts';
import type { Lsn } from '../lsn.ts';
import type { FollowedFile } from '../replica/follower-client.ts';

/** A relay that is far behind gets megabytes at once; its own followers read the log batch by batch. */
const MAX_BATCH_BYTES = 512 * 1024;

export interface RelayedLogOptions {
  readonly changeLog: ChangeLog;
  readonly publisher: Publisher;
  /** Transactions were appended, with their commit times, ms since 1970. */
  readonly onTransactions: (commitTimesMs: readonly number[]) => void;
}

/**
 * Takes a stream as a follower's file would, and keeps it as it is: the same frames, at the same positions of the
 * same epoch, go into a log and from there to followers.
 *
 * After a connection broke, what was sent of open transactions comes again from its beginning: their parts are
 * aborted first. What comes twice all the same (the batch in which a connection broke) is left out where it is a
 * whole transaction, and otherwise recognised by every follower by its position.
 */
export class RelayedLog implements FollowedFile {
  readonly #options: RelayedLogOptions;
  #isBroken = true;

  constructor(options: RelayedLogOptions) {
    this.#options = options;
  }

  get epoch(): string {
    return this.#options.changeLog.epoch;
  }

  get position(): Lsn {
    return this.#options.changeLog.position;
  }

  apply(frames: Buffer, commitTimesMs: readonly number[]): void {
    const { changeLog, publisher, onTransactions } = this.#options;
    if (this.#isBroken) this.#abortParts();
    let position: Lsn = 0n;
    const batch = new BatchCut(changeLog.position, (each) => this.#append(each));
    for (let at = 0; at < frames.length; ) {
      const next = at + frames.readUInt32LE(at);
      switch (frames[at + 4]) {
        case FRAME.transaction:
          batch.transaction(frames, at, next);
          break;
        case FRAME.part:
        case FRAME.abort:
          batch.part(frames, at, next);
          break;
        case FRAME.position:
          position = frames.readBigUInt64LE(at + 8);
          break;
      }
      at = next;
    }
    batch.finish();
    if (commitTimesMs.length > 0) onTransactions(commitTimesMs);
    if (position <= changeLog.position) return;
    changeLog.advance(position);
    publisher.advance();
  }

  abandonParts(): void {
    this.#isBroken = true;
  }

  #abortParts(): void {
    const { changeLog } = this.#options;
    for (const xid of [...changeLog.openXids])
      this.#append({ bytes: abortFrame(xid), endLsn: changeLog.position, closes: 0, opensParts: false });
    this.#isBroken = false;
  }

  #append(batch: Batch): void {
    this.#options.changeLog.append(batch);
    this.#options.publisher.publish(batch);
  }
}

/** Cuts frames of the log out of a stream, as batches of neighbours: without a copy where nothing lies between. */
class BatchCut {
  readonly #give: (batch: Batch) => void;
  #endLsn: Lsn;
  #runs: Buffer[] = [];
  #runsBytes = 0;
  /** The run that grows. */
  #frames: Buffer | null = null;
  #from = 0;
  #to = 0;
  #closes = 0;
  #opensParts = false;

  constructor(position: Lsn, give: (batch: Batch) => void) {
    this.#endLsn = position;
    this.#give = give;
  }

  transaction(frames: Buffer, at: number, next: number): void {
    const endLsn = frames.readBigUInt64LE(at + 16);
    const hasParts = frames[at + 40] === 1;
    if (endLsn <= this.#endLsn && !hasParts) return;
    if (endLsn > this.#endLsn) this.#endLsn = endLsn;
    this.#closes++;
    this.#take(frames, at, next);
  }

  part(frames: Buffer, at: number, next: number): void {
    this.#opensParts = true;
    this.#take(frames, at, next);
  }

  finish(): void {
    this.#endRun();
    if (this.#runs.length === 0) return;
    const bytes = this.#runs.length === 1 ? this.#runs[0]! : Buffer.concat(this.#runs, this.#runsBytes);
    const batch = { bytes, endLsn: this.#endLsn, closes: this.#closes, opensParts: this.#opensParts };
    this.#runs = [];
    this.#runsBytes = 0;
    this.#closes = 0;
    this.#opensParts = false;
    this.#give(batch);
  }

  #take(frames: Buffer, at: number, next: number): void {
    if (this.#frames === null || this.#to !== at) {
      this.#endRun();
      this.#frames = frames;
      this.#from = at;
    }
    this.#to = next;
    if (this.#runsBytes + this.#to - this.#from >= MAX_BATCH_BYTES) this.finish();
  }

  #endRun(): void {
    if (this.#frames === null) return;
    this.#runs.push(this.#frames.subarray(this.#from, this.#to));
    this.#runsBytes += this.#to - this.#from;
    this.#frames = null;
  }
}
