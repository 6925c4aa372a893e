import { setTimeout as delay } from 'node:timers/promises';
import { FORMAT_VERSION, FrameSplitter, type Hello } from '../change/frame.ts';
import { giveBack } from '../change/give-back.ts';
import { ERROR_TABLE, type ErrorCode, ProtocolError, RivuletError } from '../errors.ts';
import type { Lsn } from '../lsn.ts';
import type { FollowerLink, FollowerReport, LinkStream } from './follower-link.ts';
import { scanFrames } from './frame-scan.ts';
import { monotonicMs } from './freshness.ts';

/** First and longest pause between attempts, ms: a replicator that restarts is back within a second or two. */
const FIRST_RETRY_MS = 100;
const LONGEST_RETRY_MS = 5000;

/** A replicator that says nothing about it is taken for dead after this. */
const DEFAULT_SILENCE_LIMIT_MS = 5000;

/** Positions without data are written at most this often, unless somebody waits for one. */
const DEFAULT_POSITION_INTERVAL_MS = 250;

/** More at once would fold no better, and readers would wait for it longer. */
const MAX_APPLY_BYTES = 16 * 1024 * 1024;
/**
 * So much in one apply, in so many transactions, means that the stream is dense (most of a socket's read buffer): a
 * backlog or a burst. A large transaction, or a table that is read again beside the others, folds nothing.
 */
const DENSE_BYTES = 48 * 1024;
const DENSE_TRANSACTIONS = 4;
/** How long the next apply then gathers. */
const GATHER_MS = 20;
/** Nor longer than until there is so much: behind an apply that took its time it is there at once. */
const GATHERED_BYTES = 1024 * 1024;

/** An error that comes back so often at the same position is not one of the connection. */
const MAX_FAILURES_IN_PLACE = 5;

/** Pause before attempt `attempt` + 1, doubling to a bound, with half of it left to chance so that a thousand do not come at once. */
export function reconnectDelayMs(attempt: number, random: () => number = Math.random): number {
  const longest = Math.min(LONGEST_RETRY_MS, FIRST_RETRY_MS * 2 ** Math.min(attempt, 16));
  return Math.round(longest * (0.5 + random() / 2));
}

/** The file that is kept, as the client needs it. */
export interface FollowedFile {
  readonly epoch: string;
  readonly position: Lsn;
  /**
   * Applies whole frames, synchronously. `commitTimesMs` are those of the transactions in them. The frames' memory is
   * this file's from then on: it gives it back, or keeps it.
   */
  apply(frames: Buffer, commitTimesMs: readonly number[]): void;
  /** The connection broke: the open transaction's parts will come again. */
  abandonParts(): void;
}

export interface FollowerClientOptions {
  readonly link: FollowerLink;
  readonly file: FollowedFile;
  readonly id: string;
  readonly name: string;
  readonly onConnected: (hello: Hello) => void;
  /**
   * The file holds everything that Postgres had sent at this moment of monotonicMs(): about once a second, and
   * when somebody waits. `clockMs`: what Postgres's clock showed then, ms since 1970, if it told, and all on the way
   * here passed it on at once; null otherwise, and where the same word was told already.
   */
  readonly onCurrent?: (asOfMs: number, clockMs: number | null) => void;
  /** The stream broke or was refused, and is tried again. */
  readonly onDisconnected: (reason: RivuletError, retryInMs: number) => void;
  readonly report: () => FollowerReport;
  /** Whether it makes digests when they are announced; default: yes. */
  readonly digests?: boolean;
  /** How often positions without data are applied, at most; default: 250 ms. */
  readonly positionIntervalMs?: number;
}

/**
 * Keeps one file following one replicator, through any number of connections.
 *
 * All that one turn of the event loop brings from the socket is applied together: a single transaction at once
 * when it is quiet, up to some megabytes when there is much. While it applies, this thread does not read, so
 * the socket fills and the replicator leaves the rest in its log; nothing is queued here.
 */
export class FollowerClient {
  readonly #options: FollowerClientOptions;
  #stream: LinkStream | null = null;
  #splitter = new FrameSplitter();
  #queue: Buffer[] = [];
  #queuedBytes = 0;
  #isScheduled = false;
  #gathering: NodeJS.Timeout | null = null;
  #isDense = false;
  #heardAtMs = 0;
  /** When the oldest of what is queued came. */
  #queuedSinceMs = 0;
  #isSuspect = false;
  #hello: Hello | null = null;
  #finish: ((error: Error) => void) | null = null;
  #appliedAtMs = Number.NEGATIVE_INFINITY;
  #positionTimer: NodeJS.Timeout | null = null;
  #eagerUntilMs = Number.NEGATIVE_INFINITY;
  #heartbeatMs = 0;
  #reporter: NodeJS.Timeout | undefined;

  constructor(options: FollowerClientOptions) {
    this.#options = options;
  }

  /** Follows until `signal` aborts (resolves), or trying again cannot help (rejects). */
  async run(signal: AbortSignal): Promise<void> {
    const { file, onDisconnected } = this.#options;
    let attempt = 0;
    let failuresInPlace = 0;
    while (!signal.aborted) {
      const before = file.position;
      const startedAtMs = performance.now();
      try {
        await this.#followOnce(signal);
        return;
      } catch (cause) {
        if (signal.aborted) return;
        const error = explain(cause);
        if (error.recovery === 'resnapshot' || (error.recovery === 'stop' && error.code !== 'UNAUTHORIZED'))
          throw error;
        const hasMoved = file.position > before;
        // A connection that broke as soon as it stood does not count as a success.
        if (hasMoved || performance.now() - startedAtMs > LONGEST_RETRY_MS) attempt = 0;
        failuresInPlace = error.code === 'PROTOCOL' && !hasMoved ? failuresInPlace + 1 : 0;
        if (failuresInPlace >= MAX_FAILURES_IN_PLACE) {
          throw new RivuletError(
            'SNAPSHOT_CORRUPT',
            `the file cannot be brought forward from where it is: ${error.message}`,
            { cause: error },
          );
        }
        const retryInMs = reconnectDelayMs(attempt++);
        onDisconnected(error, retryInMs);
        await delay(retryInMs, undefined, { signal }).catch(() => undefined);
      }
    }
  }

  /** Somebody waits: for a moment positions are written as they come. */
  hasten(): void {
    this.#eagerUntilMs = performance.now() + 1000;
    if (this.#positionTimer !== null) this.#apply();
    this.#options.link.hasten().catch(() => undefined);
  }

  async #followOnce(signal: AbortSignal): Promise<void> {
    const { link, file, id, name, digests = true } = this.#options;
    this.#splitter = new FrameSplitter();
    this.#queue = [];
    this.#queuedBytes = 0;
    this.#hello = null;
    this.#isDense = false;
    this.#heardAtMs = monotonicMs();
    this.#isSuspect = false;
    const ended = new Promise<never>((_resolve, reject) => {
      this.#finish = reject;
    });
    ended.catch(() => undefined);
    const onAbort = (): void => this.#finish?.(new RivuletError('CLOSED', 'the replica was closed'));
    let watchdog: NodeJS.Timeout | undefined;
    signal.addEventListener('abort', onAbort, { once: true });
    try {
      this.#stream = await link.open(
        { id, name, epoch: file.epoch, position: file.position, digests },
        { onBytes: (bytes) => this.#receive(bytes), onEnd: (error) => this.#ended(error) },
        signal,
      );
      watchdog = setInterval(() => this.#watch(), DEFAULT_SILENCE_LIMIT_MS / 5);
      await ended;
    } finally {
      signal.removeEventListener('abort', onAbort);
      clearInterval(watchdog);
      clearTimeout(this.#reporter);
      clearTimeout(this.#positionTimer ?? undefined);
      this.#positionTimer = null;
      this.#finish = null;
      this.#queue = [];
      this.#stream?.close();
      this.#stream = null;
      file.abandonParts();
    }
  }

  #receive(bytes: Buffer): void {
    this.#heardAtMs = monotonicMs();
    this.#isSuspect = false;
    try {
      const frames = this.#splitter.push(bytes);
      if (frames === null) {
        // A frame larger than all credit must still be able to arrive.
        this.#stream?.consumed(bytes.length);
        return;
      }
      if (this.#queue.length === 0) this.#queuedSinceMs = this.#heardAtMs;
      this.#queue.push(frames);
      this.#queuedBytes += bytes.length;
    } catch (error) {
      this.#finish?.(error as Error);
      return;
    }
    if (this.#queuedBytes >= MAX_APPLY_BYTES) {
      this.#apply();
    } else if (!this.#isScheduled) {
      this.#isScheduled = true;
      // From a dense stream it gathers more: repeated changes of a row then cost one write.
      if (this.#isDense && this.#queuedBytes < GATHERED_BYTES)
        this.#gathering = setTimeout(() => this.#applyScheduled(), GATHER_MS);
      else this.#scheduleNow();
    } else if (this.#gathering !== null && this.#queuedBytes >= GATHERED_BYTES) {
      clearTimeout(this.#gathering);
      this.#scheduleNow();
    }
  }

  /** Right behind the phase that reads sockets: whatever else it brings joins in, and nothing waits. */
  #scheduleNow(): void {
    this.#gathering = null;
    setImmediate(() => this.#applyScheduled());
  }

  #applyScheduled(): void {
    this.#gathering = null;
    this.#isScheduled = false;
    if (this.#finish !== null) this.#apply();
  }

  #apply(): void {
    clearTimeout(this.#positionTimer ?? undefined);
    this.#positionTimer = null;
    if (this.#queue.length === 0) return;
    try {
      const frames = joined(this.#queue);
      const scan = scanFrames(frames);
      if (scan.hello !== null) this.#greet(scan.hello);
      const asOfMs = scan.sourceAgeMs === null ? null : this.#queuedSinceMs - scan.sourceAgeMs;
      const { positionIntervalMs = DEFAULT_POSITION_INTERVAL_MS } = this.#options;
      if (this.#hello === null) throw new ProtocolError('the stream does not begin with hello');
      const sinceAppliedMs = performance.now() - this.#appliedAtMs;
      if (
        scan.isPositionsOnly &&
        scan.end === null &&
        sinceAppliedMs < positionIntervalMs &&
        performance.now() > this.#eagerUntilMs
      ) {
        this.#queue = [frames];
        this.#current(asOfMs, scan.sourceClockMs);
        this.#positionTimer = setTimeout(() => this.#apply(), positionIntervalMs - sinceAppliedMs);
        return;
      }
      const consumedBytes = this.#queuedBytes;
      const { transactions, bytes } = scan.foldable;
      this.#isDense = transactions >= DENSE_TRANSACTIONS && bytes >= DENSE_BYTES;
      this.#queue = [];
      this.#queuedBytes = 0;
      this.#options.file.apply(frames, scan.commitTimesMs);
      this.#current(asOfMs, scan.sourceClockMs);
      this.#appliedAtMs = performance.now();
      this.#stream?.consumed(consumedBytes);
      if (scan.end !== null) {
        const code = Object.hasOwn(ERROR_TABLE, scan.end.code) ? (scan.end.code as ErrorCode) : 'PROTOCOL';
        // What ends the stream there need not end the follower here.
        this.#finish?.(
          new RivuletError(
            code === 'CLOSED' || code === 'PROTOCOL' ? 'REPLICATOR_UNREACHABLE' : code,
            `the replicator ended the stream: ${scan.end.message}`,
          ),
        );
      }
    } catch (error) {
      this.#finish?.(error as Error);
    }
  }

  #current(asOfMs: number | null, clockMs: number | null): void {
    if (asOfMs === null) return;
    // A position that waits to be written is looked at again.
    const isNew = clockMs !== null && clockMs !== this.#heartbeatMs;
    if (isNew) this.#heartbeatMs = clockMs;
    this.#options.onCurrent?.(asOfMs, isNew ? clockMs : null);
  }

  #greet(hello: Hello): void {
    if (hello.version !== FORMAT_VERSION) {
      throw new RivuletError(
        'VERSION_MISMATCH',
        `the replicator speaks version ${hello.version} of the format, this program version ${FORMAT_VERSION}`,
        {
          hint: 'use the same version of rivulet on both sides',
        },
      );
    }
    const { epoch } = this.#options.file;
    if (hello.epoch !== epoch)
      throw new RivuletError(
        'EPOCH_MISMATCH',
        `the stream is of epoch ${hello.epoch}, the file of epoch ${epoch}`,
      );
    this.#hello = hello;
    this.#options.onConnected(hello);
    this.#reportIn(hello.reportIntervalMs);
  }

  #ended(error: Error): void {
    // What came before the end still counts, also a frame that says why.
    this.#apply();
    this.#finish?.(error);
  }

  #watch(): void {
    const limitMs = this.#hello?.silenceLimitMs ?? DEFAULT_SILENCE_LIMIT_MS;
    if (monotonicMs() - this.#heardAtMs <= limitMs) return;
    // After a long apply, or a stopped process, timers run before sockets are read: the first look only suspects.
    if (!this.#isSuspect) {
      this.#isSuspect = true;
      return;
    }
    this.#finish?.(
      new RivuletError(
        'REPLICATOR_UNREACHABLE',
        `the replicator has said nothing for ${Math.round(limitMs / 1000)} s`,
      ),
    );
  }

  /** One report at a time; how long after it the next one follows, the replicator says. */
  #reportIn(intervalMs: number): void {
    clearTimeout(this.#reporter);
    const hello = this.#hello;
    this.#reporter = setTimeout(() => {
      const { link, id, report } = this.#options;
      void link
        .report(id, report())
        .catch(() => null)
        .then((nextMs) => {
          // Of a connection that is over nobody is told any more.
          if (this.#hello === hello && this.#finish !== null) this.#reportIn(nextMs ?? intervalMs);
        });
    }, intervalMs);
  }
}

function joined(parts: readonly Buffer[]): Buffer {
  if (parts.length === 1) return parts[0]!;
  const whole = Buffer.concat(parts);
  for (const part of parts) giveBack(part);
  return whole;
}

/** What applying or receiving threw, in our words. */
function explain(cause: unknown): RivuletError {
  if (cause instanceof RivuletError) return cause;
  const code = String((cause as { code?: unknown }).code ?? '');
  const message = cause instanceof Error ? cause.message : String(cause);
  if (code === 'SQLITE_FULL' || code === 'ENOSPC' || code === 'EDQUOT' || code === 'SQLITE_IOERR_SHMSIZE') {
    return new RivuletError('DISK_FULL', 'no space is left beside the file', {
      cause,
      hint: 'free some space: the work goes on by itself',
    });
  }
  if (code.startsWith('SQLITE_CORRUPT') || code === 'SQLITE_NOTADB' || code.startsWith('SQLITE_CONSTRAINT')) {
    return new RivuletError('SNAPSHOT_CORRUPT', `the file is damaged: ${message}`, { cause });
  }
  return new ProtocolError(`applying failed: ${message}`, { cause });
}
