import type { Batch } from '../change/batch.ts';
import { FORMAT_VERSION, FRAME, type Hello, jsonFrame, positionFrame } from '../change/frame.ts';
import type { ChangeLog, SourceFacts } from '../changelog/change-log.ts';
import { ProtocolError, RivuletError } from '../errors.ts';
import type { Log } from '../log.ts';
import { formatLsn, type Lsn } from '../lsn.ts';
import {
  bufferLimitBytes,
  DEFAULT_BUFFER_LIMIT_BYTES,
  DEFAULT_STALL_LIMIT_MS,
  refusal,
  roundDelayMs,
} from './follower-policy.ts';
import { FollowerRegistry, type FollowerReport, type FollowerStatus } from './follower-registry.ts';
import type { FollowerSink } from './follower-sink.ts';
import { FollowerStream } from './follower-stream.ts';

/** A live follower hears the position at least this often, so that it can tell silence from quiet. */
export const DEFAULT_HEARTBEAT_INTERVAL_MS = 1000;
/** Five missed heartbeats. */
export const DEFAULT_SILENCE_LIMIT_MS = 5000;
export const DEFAULT_REPORT_INTERVAL_MS = 1000;

/** What reading the log for followers that catch up may take of one turn of the event loop, ms. */
const CATCH_UP_SLICE_MS = 4;
/** A round does not wait for the next while it is this large. */
const MAX_ROUND_BYTES = 1024 * 1024;

export interface PublisherOptions {
  readonly log: Log;
  readonly bufferLimitBytes?: number;
  readonly stallLimitMs?: number;
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

/**
 * Sends the change log to its followers, each from its own position: see FollowerStream for how one of them
 * goes from the log to the live rounds and back.
 *
 * A batch is published behind its append, in the same turn of the event loop, and the same buffer is written
 * to every socket. No follower is ever waited for: what it does not read stays in the log. So memory is bounded
 * by the buffer limits, whatever is published and whoever stalls.
 */
export class Publisher implements AsyncDisposable {
  readonly #options: Required<PublisherOptions>;
  readonly #streams = new Map<string, FollowerStream>();
  readonly #registry = new FollowerRegistry();
  readonly #ready = new Set<FollowerStream>();
  readonly #heartbeat: NodeJS.Timeout;
  #changeLog: ChangeLog | null = null;
  #isOpen = false;
  #isClosed = false;
  #streamingSinceMs: number | null = null;
  /** When the source last said where it stands. */
  #heardAtMs = performance.now();
  #isWanted = false;

  #pending: Buffer[] = [];
  #pendingBytes = 0;
  #pendingSeq = 0;
  #roundTimer: NodeJS.Timeout | null = null;
  /** Of the last rounds: a pause of the collector in one of them is not what a round costs. */
  readonly #roundsTookMs = [0, 0, 0];
  #roundEndedAtMs = 0;
  #isCatchUpScheduled = false;

  constructor(options: PublisherOptions) {
    this.#options = {
      bufferLimitBytes: DEFAULT_BUFFER_LIMIT_BYTES,
      stallLimitMs: DEFAULT_STALL_LIMIT_MS,
      heartbeatIntervalMs: DEFAULT_HEARTBEAT_INTERVAL_MS,
      silenceLimitMs: DEFAULT_SILENCE_LIMIT_MS,
      reportIntervalMs: DEFAULT_REPORT_INTERVAL_MS,
      ...options,
    };
    this.#heartbeat = setInterval(() => this.#beat(), this.#options.heartbeatIntervalMs);
    this.#heartbeat.unref();
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

  /** The source has said where it stands, and all of that is published. */
  heard(): void {
    this.#heardAtMs = performance.now();
    if (!this.#isWanted || this.#changeLog === null) return;
    this.#isWanted = false;
    this.#sendRound();
    this.#sendPosition(this.#changeLog.position);
  }

  /** Somebody waits to hear that there is no more: the next word of the source is passed on, whatever it says. */
  hasten(): void {
    this.#isWanted = true;
  }

  /** How long ago that was, ms. */
  get heardAgoMs(): number {
    return performance.now() - this.#heardAtMs;
  }

  /** Takes the batch that was just appended. */
  publish(batch: Batch): void {
    const seq = this.#log().headSeq;
    this.#streamingSinceMs ??= performance.now();
    if (this.#streams.size === 0) return;
    if (this.#pending.length === 0) this.#pendingSeq = seq;
    this.#pending.push(batch.bytes);
    this.#pendingBytes += batch.bytes.length;
    const waitMs = roundDelayMs({
      tookMs: Math.min(...this.#roundsTookMs),
      endedAgoMs: performance.now() - this.#roundEndedAtMs,
    });
    if (waitMs === 0 || this.#pendingBytes >= MAX_ROUND_BYTES) this.#sendRound();
    else this.#roundTimer ??= setTimeout(() => this.#sendRound(), Math.ceil(waitMs));
  }

  /** The position moved without data, and the log knows it. */
  advance(position: Lsn): void {
    this.#streamingSinceMs ??= performance.now();
    this.#sendRound();
    this.#sendPosition(position);
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
    });
    if (refused !== null) throw refused;
    const cursor = changeLog.openCursor(request.position);
    const { id, name, position } = request;
    this.#streams.get(id)?.end(new RivuletError('CLOSED', 'the same follower has connected again'));
    const stream = new FollowerStream({
      sink,
      cursor,
      nowMs: performance.now(),
      takesDigests: request.digests ?? false,
      onReady: (ready) => this.#scheduleCatchUp(ready),
      onGone: (gone, reason) => this.#gone(id, gone, reason),
    });
    this.#streams.set(id, stream);
    this.#registry.connected({ id, name, position, nowMs: Date.now() });
    this.#options.log.info({ follower: name, position: formatLsn(position) }, 'follower connected');
    stream.writeFrame(jsonFrame(FRAME.hello, this.#hello(changeLog)));
    // The short way: who has missed nothing is live at once.
    this.#catchUp(stream);
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
    this.#registry.report(id, report, Date.now());
  }

  followers(): readonly FollowerStatus[] {
    for (const [id, stream] of this.#streams) this.#registry.changed(id, stream.state, Date.now());
    return this.#registry.status(this.position);
  }

  /** May be called twice. */
  async close(): Promise<void> {
    if (this.#isClosed) return;
    this.#isClosed = true;
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
    const { reportIntervalMs, silenceLimitMs } = this.#options;
    return {
      version: FORMAT_VERSION,
      epoch: changeLog.epoch,
      position: formatLsn(changeLog.position),
      reportIntervalMs,
      silenceLimitMs,
    };
  }

  #sendRound(): void {
    if (this.#roundTimer !== null) clearTimeout(this.#roundTimer);
    this.#roundTimer = null;
    const batches = this.#pending;
    if (batches.length === 0) return;
    const startedAtMs = performance.now();
    const round = {
      firstSeq: this.#pendingSeq,
      batches,
      joined: batches.length === 1 ? batches[0]! : Buffer.concat(batches, this.#pendingBytes),
    };
    this.#pending = [];
    this.#pendingBytes = 0;
    const limitBytes = bufferLimitBytes(this.#streams.size, this.#options.bufferLimitBytes);
    for (const stream of this.#streams.values()) stream.deliver(round, limitBytes);
    this.#roundEndedAtMs = performance.now();
    this.#roundsTookMs.shift();
    this.#roundsTookMs.push(this.#roundEndedAtMs - startedAtMs);
  }

  #dropRound(): void {
    if (this.#roundTimer !== null) clearTimeout(this.#roundTimer);
    this.#roundTimer = null;
    this.#pending = [];
    this.#pendingBytes = 0;
  }

  #ageUs(): bigint {
    return BigInt(Math.round(this.heardAgoMs * 1000));
  }

  #sendPosition(position: Lsn): void {
    const frame = positionFrame(position, this.#ageUs());
    for (const stream of this.#streams.values()) if (stream.state === 'live') stream.writeFrame(frame);
  }

  #beat(): void {
    const nowMs = performance.now();
    for (const stream of [...this.#streams.values()]) stream.checkProgress(nowMs, this.#options.stallLimitMs);
    this.#registry.forgetOld(Date.now());
    if (this.#changeLog === null) return;
    this.#sendRound();
    this.#sendPosition(this.#changeLog.position);
  }

  #scheduleCatchUp(stream: FollowerStream): void {
    this.#ready.add(stream);
    if (this.#isCatchUpScheduled) return;
    this.#isCatchUpScheduled = true;
    setImmediate(() => {
      this.#isCatchUpScheduled = false;
      // One chunk each in turn; the slice bounds what a crowd of them takes from the live ones.
      const endMs = performance.now() + CATCH_UP_SLICE_MS;
      for (const next of [...this.#ready]) {
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
    try {
      const isLive = stream.catchUp((seq) => changeLog.openCursorAt(seq));
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
    }
  }

  #gone(id: string, stream: FollowerStream, reason: string): void {
    this.#ready.delete(stream);
    // One that was replaced leaves no trace: its successor has the id now.
    if (this.#streams.get(id) !== stream) return;
    this.#streams.delete(id);
    this.#registry.changed(id, 'gone', Date.now());
    this.#options.log.info({ follower: id, reason }, 'follower disconnected');
  }

  #endAll(reason: RivuletError): void {
    for (const stream of [...this.#streams.values()]) stream.end(reason);
    this.#ready.clear();
  }
}
