import type { Batch } from '../change/batch.ts';
import { AGE_UNKNOWN, FORMAT_VERSION, FRAME, type Hello, jsonFrame, positionFrame } from '../change/frame.ts';
import type { ChangeLog, SourceFacts } from '../changelog/change-log.ts';
import { ProtocolError, RivuletError } from '../errors.ts';
import type { Log } from '../log.ts';
import { formatLsn, type Lsn } from '../lsn.ts';
import { ChunkCache } from './chunk-cache.ts';
import {
  bufferLimitBytes,
  chunkBytes,
  DEFAULT_AHEAD_GRACE_MS,
  DEFAULT_BUFFER_LIMIT_BYTES,
  DEFAULT_STALL_LIMIT_MS,
  DEFAULT_TOTAL_BUFFER_BYTES,
  refusal,
  reportIntervalMs,
  roundDelayMs,
} from './follower-policy.ts';
import { FollowerRegistry, type FollowerReport, type FollowerStatus } from './follower-registry.ts';
import type { FollowerSink } from './follower-sink.ts';
import { FollowerStream } from './follower-stream.ts';

/** A live follower hears the position at least this often, so that it can tell silence from quiet. */
export const DEFAULT_HEARTBEAT_INTERVAL_MS = 1000;
/** Five missed heartbeats. */
export const DEFAULT_SILENCE_LIMIT_MS = 5000;
export const DEFAULT_REPORT_INTERVAL_MS = 2000;

/** What reading the log for followers that catch up may take of one turn of the event loop, ms. */
const CATCH_UP_SLICE_MS = 4;
/** A round does not wait for the next while it is this large. */
const MAX_ROUND_BYTES = 1024 * 1024;
/** A follower that has reported before and then leaves out so many reports is gone. */
const MISSED_REPORTS = 5;

export interface PublisherOptions {
  readonly log: Log;
  /** What one live follower may leave unread before it is cut to catch-up. */
  readonly bufferLimitBytes?: number;
  /** What all followers together may. */
  readonly totalBufferBytes?: number;
  /** A follower that reads nothing, or does not report any more, for so long is disconnected. */
  readonly stallLimitMs?: number;
  /** See LogState. */
  readonly aheadGraceMs?: number;
  readonly heartbeatIntervalMs?: number;
  readonly silenceLimitMs?: number;
  readonly reportIntervalMs?: number;
}

export interface FollowRequest {
  /** Stays the same for one file. */
  readonly id: string;
  readonly name: string;
  readonly epoch: string;
  readonly position: Lsn;
  /** Whether it knows what a digest frame is. */
  readonly digests?: boolean;
}

/** Bytes that wait for followers to read them, and how many there may be (see BufferedBytes). */
export interface BufferStatus {
  readonly bufferedBytes: number;
  readonly totalBufferBytes: number;
}

/**
 * Sends the change log to its followers, each from its own position: see FollowerStream for how one of them
 * goes from the log to the live rounds and back.
 *
 * A batch is published behind its append, in the same turn of the event loop, and the same buffer is written
 * to every socket. No follower is ever waited for: what it does not read stays in the log. So memory is bounded
 * by the buffer limits, whatever is published and whoever stalls: over the limit of all, nothing more of the log is
 * read for anybody, and a beat later those who read nothing are disconnected, the fullest first.
 */
export class Publisher implements AsyncDisposable {
  readonly #options: Required<PublisherOptions>;
  readonly #streams = new Map<string, FollowerStream>();
  readonly #registry = new FollowerRegistry();
  readonly #ready = new Set<FollowerStream>();
  readonly #chunks = new ChunkCache();
  readonly #housekeeping: NodeJS.Timeout;
  /** Begins anew with each position that goes out. */
  readonly #heartbeat: NodeJS.Timeout;
  #changeLog: ChangeLog | null = null;
  #isOpen = false;
  #isClosed = false;
  #streamingSinceMs: number | null = null;
  /** As of when everything that the source had is published; null until it has said so. */
  #heardAtMs: number | null = null;
  #isWanted = false;
  /** The server's clock when it was heard, for the position that goes out next. */
  #clockUs = 0n;

  #pending: Buffer[] = [];
  #pendingBytes = 0;
  #pendingSeq = 0;
  #isPositionDue = false;
  #bufferedBytes = 0;
  #roundTimer: NodeJS.Timeout | null = null;
  /** Of the last rounds: a pause of the collector in one of them is not what a round costs. */
  readonly #roundsTookMs = [0, 0, 0];
  #roundEndedAtMs = 0;
  #isCatchUpScheduled = false;

  constructor(options: PublisherOptions) {
    this.#options = {
      bufferLimitBytes: DEFAULT_BUFFER_LIMIT_BYTES,
      totalBufferBytes: DEFAULT_TOTAL_BUFFER_BYTES,
      stallLimitMs: DEFAULT_STALL_LIMIT_MS,
      aheadGraceMs: DEFAULT_AHEAD_GRACE_MS,
      heartbeatIntervalMs: DEFAULT_HEARTBEAT_INTERVAL_MS,
      silenceLimitMs: DEFAULT_SILENCE_LIMIT_MS,
      reportIntervalMs: DEFAULT_REPORT_INTERVAL_MS,
      ...options,
    };
    const { heartbeatIntervalMs } = this.#options;
    this.#housekeeping = setInterval(() => this.#beat(), heartbeatIntervalMs).unref();
    this.#heartbeat = setInterval(() => this.#sendPosition(), heartbeatIntervalMs).unref();
  }

  /** The log to serve from now on. Followers are admitted after open(). */
  attach(changeLog: ChangeLog): void {
    this.detach();
    this.#changeLog = changeLog;
  }

  /** The history ends, or the replicator does; followers come again and are told what is then the case. */
  detach(): void {
    this.#endAll(new RivuletError('NOT_READY', 'the replicator begins a new history'));
    this.#dropRound();
    this.#chunks.clear();
    this.#changeLog = null;
    this.#isOpen = false;
    this.#streamingSinceMs = null;
  }

  /** From now on a snapshot exists that the log continues. */
  open(): void {
    this.#isOpen = true;
  }

  get isOpen(): boolean {
    return this.#isOpen && this.#changeLog !== null && !this.#isClosed;
  }

  get epoch(): string | null {
    return this.#changeLog?.epoch ?? null;
  }

  /** The database that the log is made from. */
  get source(): SourceFacts | null {
    return this.#changeLog?.source ?? null;
  }

  get position(): Lsn | null {
    return this.#changeLog?.position ?? null;
  }

  /** Number of followers connected now. */
  get size(): number {
    return this.#streams.size;
  }

  /**
   * All that the source had `agoMs` ago is published. `clockUs`: what its own clock showed when it said so just now;
   * such a word is passed on at once, as a heartbeat.
   */
  heard(agoMs = 0, clockUs = 0n): void {
    const atMs = performance.now() - agoMs;
    if (this.#heardAtMs === null || atMs > this.#heardAtMs) this.#heardAtMs = atMs;
    if (this.#changeLog === null || !(this.#isWanted || clockUs > 0n)) return;
    this.#isWanted = false;
    this.#clockUs = clockUs;
    this.#sendPosition();
  }

  /** Somebody waits to hear that there is no more: the next word of the source is passed on, whatever it says. */
  hasten(): void {
    this.#isWanted = true;
  }

  /** How long ago that was, ms; null until the source was heard. */
  get heardAgoMs(): number | null {
    return this.#heardAtMs === null ? null : performance.now() - this.#heardAtMs;
  }

  /** Takes the batch that was just appended. */
  publish(batch: Batch): void {
    const seq = this.#log().headSeq;
    this.#streamingSinceMs ??= performance.now();
    if (this.#streams.size === 0) {
      // A round that was still gathered would no longer be without a gap. Who comes reads the log.
      this.#dropRound();
      return;
    }
    if (this.#pending.length === 0) this.#pendingSeq = seq;
    this.#pending.push(batch.bytes);
    this.#pendingBytes += batch.bytes.length;
    this.#sendSoon();
  }

  /** At once, unless the last rounds were so dear that this one has to wait for its turn. */
  #sendSoon(): void {
    const waitMs = roundDelayMs({
      tookMs: Math.min(...this.#roundsTookMs),
      endedAgoMs: performance.now() - this.#roundEndedAtMs,
    });
    if (waitMs === 0 || this.#pendingBytes >= MAX_ROUND_BYTES) this.#sendRound();
    else this.#roundTimer ??= setTimeout(() => this.#sendRound(), Math.ceil(waitMs));
  }

  /** The position moved without data, and the log knows it. */
  advance(): void {
    this.#streamingSinceMs ??= performance.now();
    this.#sendPosition();
  }

  /** Postgres's connection broke: until it is back, a follower ahead of the log is asked for patience. */
  paused(): void {
    this.#streamingSinceMs = null;
  }

  /** Throws, with nothing written to the sink, if this follower cannot be served. A stream with the same id is replaced. */
  follow(request: FollowRequest, sink: FollowerSink): void {
    const changeLog = this.#changeLog;
    if (this.#isClosed) throw new RivuletError('CLOSED', 'the replicator is stopping');
    if (changeLog === null || !this.#isOpen)
      throw new RivuletError('NOT_READY', 'the initial copy is under way');
    const refused = refusal(request, {
      epoch: changeLog.epoch,
      position: changeLog.position,
      oldestPosition: changeLog.oldestPosition,
      streamingForMs: this.#streamingSinceMs === null ? null : performance.now() - this.#streamingSinceMs,
      aheadGraceMs: this.#options.aheadGraceMs,
    });
    if (refused !== null) throw refused;
    const { nextSeq } = changeLog.openCursor(request.position);
    const { id, name, position } = request;
    this.#streams.get(id)?.end(new RivuletError('CLOSED', 'the same follower has connected again'));
    const stream = new FollowerStream({
      sink,
      nextSeq,
      nowMs: performance.now(),
      takesDigests: request.digests ?? false,
      onReady: (ready) => this.#scheduleCatchUp(ready),
      onGone: (gone, reason) => this.#gone(id, gone, reason),
    });
    this.#streams.set(id, stream);
    this.#registry.connected({ id, name, position, nowMs: Date.now() });
    this.#options.log.info({ follower: name, position: formatLsn(position) }, 'follower connected');
    stream.writeFrame(jsonFrame(FRAME.hello, this.#hello(changeLog)));
    // The short way: who has missed nothing, or little, is live at once.
    if (this.#hasRoom || stream.nextSeq > changeLog.headSeq) this.#catchUp(stream);
    else this.#scheduleCatchUp(stream);
  }

  /**
   * Puts a digest frame at the same place into the stream of every follower that is live and knows of digests:
   * all of them have been sent exactly what is published. Gives that position, and who they are, by id.
   */
  announceDigest(frame: Buffer): {
    readonly position: Lsn;
    readonly followers: ReadonlyMap<string, { readonly name: string; isGone(): boolean }>;
  } {
    this.#sendRound();
    const followers = new Map<string, { readonly name: string; isGone(): boolean }>();
    const names = new Map(this.followers().map(({ id, name }) => [id, name]));
    for (const [id, stream] of this.#streams) {
      if (stream.state !== 'live' || !stream.takesDigests) continue;
      stream.writeFrame(frame);
      followers.set(id, { name: names.get(id) ?? id, isGone: () => stream.state === 'gone' });
    }
    return { position: this.#log().position, followers };
  }

  report(id: string, report: FollowerReport): void {
    this.#registry.report(id, report, Date.now(), performance.now());
  }

  /** How often each follower should report, ms. */
  get reportIntervalMs(): number {
    return reportIntervalMs(this.#streams.size, this.#options.reportIntervalMs);
  }

  get buffers(): BufferStatus {
    this.#weigh();
    return { bufferedBytes: this.#bufferedBytes, totalBufferBytes: this.#options.totalBufferBytes };
  }

  followers(): readonly FollowerStatus[] {
    for (const [id, stream] of this.#streams) this.#registry.changed(id, stream.state);
    return this.#registry.status(this.position);
  }

  /** May be called twice. */
  async close(): Promise<void> {
    if (this.#isClosed) return;
    this.#isClosed = true;
    clearInterval(this.#housekeeping);
    clearInterval(this.#heartbeat);
    this.#sendRound();
    this.#endAll(new RivuletError('CLOSED', 'the replicator is stopping'));
    this.#dropRound();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #log(): ChangeLog {
    if (this.#changeLog === null) throw new ProtocolError('the publisher has no change log');
    return this.#changeLog;
  }

  #hello(changeLog: ChangeLog): Hello {
    const { silenceLimitMs } = this.#options;
    return {
      version: FORMAT_VERSION,
      epoch: changeLog.epoch,
      position: formatLsn(changeLog.position),
      reportIntervalMs: this.reportIntervalMs,
      silenceLimitMs,
    };
  }

  #sendRound(): void {
    if (this.#roundTimer !== null) clearTimeout(this.#roundTimer);
    this.#roundTimer = null;
    const batches = this.#pending;
    if (batches.length === 0 && !this.#isPositionDue) return;
    const startedAtMs = performance.now();
    const position = this.#isPositionDue
      ? positionFrame(this.#log().position, this.#ageUs(), this.#clockUs)
      : null;
    const parts = position === null ? batches : [...batches, position];
    const round = {
      firstSeq: this.#pendingSeq,
      batches,
      joined: parts.length === 1 ? parts[0]! : Buffer.concat(parts),
      position,
    };
    this.#pending = [];
    this.#pendingBytes = 0;
    this.#isPositionDue = false;
    this.#clockUs = 0n;
    const limitBytes = bufferLimitBytes(this.#streams.size, this.#options);
    for (const stream of this.#streams.values()) stream.deliver(round, limitBytes);
    this.#roundEndedAtMs = performance.now();
    if (position !== null) this.#heartbeat.refresh();
    this.#roundsTookMs.shift();
    this.#roundsTookMs.push(this.#roundEndedAtMs - startedAtMs);
  }

  #dropRound(): void {
    if (this.#roundTimer !== null) clearTimeout(this.#roundTimer);
    this.#roundTimer = null;
    this.#pending = [];
    this.#pendingBytes = 0;
    this.#isPositionDue = false;
    this.#clockUs = 0n;
  }

  #ageUs(): bigint {
    const { heardAgoMs } = this;
    return heardAgoMs === null ? AGE_UNKNOWN : BigInt(Math.round(heardAgoMs * 1000));
  }

  /** Where the log then stands goes out behind the batches of the next round, and be there none. */
  #sendPosition(): void {
    if (this.#changeLog === null || this.#streams.size === 0) return;
    this.#isPositionDue = true;
    this.#sendSoon();
  }

  #beat(): void {
    const nowMs = performance.now();
    const { stallLimitMs } = this.#options;
    for (const stream of [...this.#streams.values()]) stream.checkProgress(nowMs, stallLimitMs);
    this.#dropSilent();
    this.#registry.forgetOld(Date.now());
    if (this.#changeLog === null) return;
    this.#makeRoom();
    // Whatever the source says next goes out at once, too. Without a word from it, the age grows.
    this.#isWanted = true;
  }

  /** A peer that is gone without a word may take the few bytes of heartbeats for a quarter of an hour. */
  #dropSilent(): void {
    const limitMs = Math.max(this.#options.stallLimitMs, MISSED_REPORTS * this.reportIntervalMs);
    for (const id of this.#registry.silent(performance.now() - limitMs)) {
      this.#streams.get(id)?.drop(`it has not reported for ${Math.round(limitMs / 1000)} s`);
    }
  }

  /**
   * What waits to be read: live followers were all sent the same, so the fullest of them counts for all; what the
   * others were sent is their own.
   */
  #weigh(): void {
    let shared = 0;
    let own = 0;
    for (const { state, bufferedBytes } of this.#streams.values()) {
      if (state === 'live') shared = Math.max(shared, bufferedBytes);
      else own += bufferedBytes;
    }
    this.#bufferedBytes = shared + own;
  }

  get #hasRoom(): boolean {
    return this.#bufferedBytes < this.#options.totalBufferBytes;
  }

  /** Those who have read nothing since the last beat go first; all others get on with what they leave. */
  #makeRoom(): void {
    this.#weigh();
    if (!this.#hasRoom) {
      const idle = [...this.#streams.values()]
        .filter((stream) => stream.state === 'catching-up' && stream.isIdle)
        .sort((a, b) => b.bufferedBytes - a.bufferedBytes);
      for (const stream of idle) {
        if (this.#hasRoom) break;
        this.#bufferedBytes -= stream.bufferedBytes;
        stream.drop('it reads nothing, and what waits to be read by all has reached its limit');
      }
    }
    for (const stream of this.#streams.values()) {
      stream.noteBeat();
      if (this.#hasRoom && stream.wantsMore) this.#scheduleCatchUp(stream);
    }
  }

  #scheduleCatchUp(stream: FollowerStream): void {
    this.#ready.add(stream);
    if (this.#isCatchUpScheduled) return;
    this.#isCatchUpScheduled = true;
    setImmediate(() => {
      this.#isCatchUpScheduled = false;
      // One chunk each in turn; the slice bounds what a crowd of them takes from the live ones.
      const endMs = performance.now() + CATCH_UP_SLICE_MS;
      this.#weigh();
      for (const next of [...this.#ready]) {
        // The others wait until somebody has read something, or the next beat has made room.
        if (!this.#hasRoom) return;
        this.#ready.delete(next);
        this.#catchUp(next);
        if (performance.now() > endMs) break;
      }
      const [rest] = this.#ready;
      if (rest !== undefined) this.#scheduleCatchUp(rest);
    });
  }

  #catchUp(stream: FollowerStream): void {
    const changeLog = this.#changeLog;
    if (changeLog === null) return;
    const before = stream.bufferedBytes;
    try {
      const maxBytes = chunkBytes(this.#streams.size, this.#options.totalBufferBytes);
      const isLive = stream.catchUp((seq) => this.#chunks.read(changeLog, seq, maxBytes));
      if (isLive) stream.writeFrame(positionFrame(changeLog.position, this.#ageUs()));
    } catch (error) {
      const reason =
        error instanceof RivuletError
          ? error
          : new ProtocolError('reading the change log failed', { cause: error });
      this.#options.log.error(
        { code: reason.code, err: reason.cause },
        `a follower cannot be served: ${reason.message}`,
      );
      stream.end(reason);
    } finally {
      this.#bufferedBytes += stream.bufferedBytes - before;
    }
  }

  #gone(id: string, stream: FollowerStream, reason: string): void {
    this.#ready.delete(stream);
    // One that was replaced leaves no trace: its successor has the id now.
    if (this.#streams.get(id) !== stream) return;
    this.#streams.delete(id);
    this.#registry.changed(id, 'gone');
    this.#options.log.info({ follower: id, reason }, 'follower disconnected');
  }

  #endAll(reason: RivuletError): void {
    for (const stream of [...this.#streams.values()]) stream.end(reason);
    this.#ready.clear();
  }
}
