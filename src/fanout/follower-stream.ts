import { FRAME, jsonFrame } from '../change/frame.ts';
import type { RivuletError } from '../errors.ts';
import type { LogChunk } from './chunk-cache.ts';
import { isStalled, nextProgress, type Progress } from './follower-policy.ts';
import type { FollowerSink } from './follower-sink.ts';

export type FollowerState = 'catching-up' | 'live' | 'gone';

/** Batches just published, in order, by the sequence number of the first. */
export interface Round {
  readonly firstSeq: number;
  readonly batches: readonly Buffer[];
  /** All of them and the position in one buffer, made once for all followers. */
  readonly joined: Buffer;
  /** Where that leaves the log, as a frame, if it is told in this round. */
  readonly position: Buffer | null;
}

/**
 * One follower's stream.
 *
 *                  cursor at the head
 *   catching up ─────────────────────────▶ live
 *        ▲  reads the log, a chunk at a     │  gets every round as it is published
 *        │  time, as fast as it is drained  │
 *        └──────────────────────────────────┘
 *           its buffer is over the limit: the rest stays in the log until the buffer is empty
 *
 * Any state ends in `gone`: the connection closed, nothing drained for too long, or the log cannot serve it.
 *
 * Invariant: the sink was given exactly the batches before `nextSeq`, in order, each once. Going live is
 * decided and done in one turn of the event loop, in which the log is found to end, so no batch can come
 * in between.
 */
export class FollowerStream {
  readonly #sink: FollowerSink;
  /** Whether it knows what a digest frame is. */
  readonly takesDigests: boolean;
  readonly #onReady: (stream: FollowerStream) => void;
  readonly #onGone: (stream: FollowerStream, reason: string) => void;
  #state: FollowerState = 'catching-up';
  #nextSeq: number;
  #writtenBytes = 0;
  #isFull = false;
  #progress: Progress;
  #sentAtBeat = 0;
  #isIdle = false;

  constructor(options: {
    readonly sink: FollowerSink;
    /** Number of the batch that it needs first. */
    readonly nextSeq: number;
    readonly nowMs: number;
    readonly takesDigests?: boolean;
    /** The sink has room for more of the log. */
    readonly onReady: (stream: FollowerStream) => void;
    readonly onGone: (stream: FollowerStream, reason: string) => void;
  }) {
    this.#sink = options.sink;
    this.takesDigests = options.takesDigests ?? false;
    this.#nextSeq = options.nextSeq;
    this.#onReady = options.onReady;
    this.#onGone = options.onGone;
    this.#progress = { sentBytes: 0, atMs: options.nowMs };
    this.#sink.onDrain = () => {
      this.#isFull = false;
      if (this.#state === 'catching-up') this.#onReady(this);
    };
    this.#sink.onGone = () => this.#leave('the connection closed');
  }

  get state(): FollowerState {
    return this.#state;
  }

  get nextSeq(): number {
    return this.#nextSeq;
  }

  get bufferedBytes(): number {
    return this.#sink.bufferedBytes;
  }

  /** Nothing of what waits for it was read between the last two beats. */
  get isIdle(): boolean {
    return this.#isIdle && this.#writtenBytes - this.bufferedBytes === this.#sentAtBeat;
  }

  /** It could be given more of the log. */
  get wantsMore(): boolean {
    return this.#state === 'catching-up' && !this.#isFull;
  }

  noteBeat(): void {
    const sentBytes = this.#writtenBytes - this.bufferedBytes;
    this.#isIdle = sentBytes === this.#sentAtBeat && this.bufferedBytes > 0;
    this.#sentAtBeat = sentBytes;
  }

  /** A frame that is no part of the log: hello, or a position. */
  writeFrame(frame: Buffer): void {
    if (this.#state !== 'gone') this.#write(frame);
  }

  /** Catching up: writes the next chunk. True once it went live; the caller then sends the position. */
  catchUp(read: (seq: number) => LogChunk | null): boolean {
    if (this.#state !== 'catching-up' || this.#isFull) return false;
    const chunk = read(this.#nextSeq);
    if (chunk === null) {
      this.#state = 'live';
      return true;
    }
    this.#nextSeq = chunk.nextSeq;
    this.#write(chunk.bytes);
    if (!this.#isFull) this.#onReady(this);
    return false;
  }

  /** Live: takes what was published, without what the log has given it already. */
  deliver(round: Round, limitBytes: number): void {
    if (this.#state !== 'live') return;
    const { firstSeq, batches, joined, position } = round;
    const skip = batches.length === 0 ? 0 : Math.min(batches.length, this.#nextSeq - firstSeq);
    if (batches.length > 0) this.#nextSeq = firstSeq + batches.length;
    if (skip === 0) {
      this.#write(joined);
    } else {
      for (const batch of batches.slice(skip)) this.#write(batch);
      if (position !== null) this.#write(position);
    }
    if (this.#sink.bufferedBytes <= limitBytes) return;
    this.#state = 'catching-up';
    if (!this.#isFull) this.#onReady(this);
  }

  /** Called about every second. True if the follower was given up. */
  checkProgress(nowMs: number, limitMs: number): boolean {
    const { bufferedBytes } = this.#sink;
    this.#progress = nextProgress(this.#progress, {
      sentBytes: this.#writtenBytes - bufferedBytes,
      bufferedBytes,
      nowMs,
    });
    if (!isStalled(this.#progress, nowMs, limitMs)) return false;
    this.drop(`it has read nothing for ${Math.round(limitMs / 1000)} s`);
    return true;
  }

  /** Gives the follower up, with all that waits for it. */
  drop(reason: string): void {
    if (this.#state === 'gone') return;
    this.#sink.destroy();
    this.#leave(reason);
  }

  /** Says why, as far as the other side still listens, and ends. */
  end(reason: RivuletError): void {
    if (this.#state === 'gone') return;
    this.#write(jsonFrame(FRAME.end, { code: reason.code, message: reason.message }));
    if (this.#sink.bufferedBytes > 0 && this.#isFull) this.#sink.destroy();
    else this.#sink.end();
    this.#leave(reason.message);
  }

  #write(bytes: Buffer): void {
    this.#writtenBytes += bytes.length;
    if (!this.#sink.write(bytes)) this.#isFull = true;
  }

  #leave(reason: string): void {
    if (this.#state === 'gone') return;
    this.#state = 'gone';
    this.#onGone(this, reason);
  }
}
