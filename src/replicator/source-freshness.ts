import type { Lsn } from '../lsn.ts';
import { POSTGRES_EPOCH_US } from '../source/postgres-epoch.ts';

/** Of a pgoutput message: https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html */
const COMMIT = 0x43; // C
const COMMIT_TIME_AT = 18;
const STREAM_COMMIT = 0x63; // c
const STREAM_COMMIT_TIME_AT = 22;
/** In front of each message, at the end of the header that the walsender puts there: when it sent this. */
const SENT_AT = -8;

/** A walsender that sent no data for so long before a keepalive had none to send: it is at the end of the WAL. */
const QUIET_MS = 100;

/** The distance of two clocks is looked at anew in each such window: they drift, and are set. */
const WINDOW_MS = 5 * 60_000;

/** Messages come in the order in which they were sent: one that was sent so long before another was so by a clock that was set back. */
const SET_BACK_MS = 1000;

/** What the source has said of how old that is which has come. */
export interface Heard {
  /** Everything that was committed this long before has come, ms. */
  readonly agoMs: number;
  /** The server's clock when it said so, µs since 1970; 0 if that says nothing of how long it was on its way. */
  readonly clockUs: bigint;
}

/**
 * Knows how far what comes from the source lies behind, by the server's clock alone, so that clocks of two machines
 * need not agree. Every message says when it was sent: what took longest to come (a backlog in the socket, a process
 * that stood still) is told from what came at once.
 *
 * A transaction tells when it was committed: with a backlog that is long ago, also between two of its transactions,
 * and so is every keepalive among them. Only one behind a pause, of a walsender that has come to where the WAL ended
 * when it was connected to, says that there is no more.
 */
export class SourceFreshness {
  readonly #position: () => Lsn;
  readonly #now: () => number;
  #walEnd: Lsn = 0n;
  /** When the newest message was sent, by the server's clock, ms since 2000. */
  #sentMs = 0;
  /** The same, of the newest that was no keepalive: those come as often as somebody asks. */
  #dataSentMs = 0;
  /** As of when everything has come, by the server's clock; null until it has said so. */
  #asOfMs: number | null = null;
  #clockUs = 0n;
  #hasNews = false;
  /** Our clock less the server's, and the shortest way, of this window and of the one before. */
  #distanceMs = Number.POSITIVE_INFINITY;
  #distanceBeforeMs = Number.POSITIVE_INFINITY;
  #windowEndsAtMs = Number.NEGATIVE_INFINITY;

  /** `position`: the server's, behind what has come. `now`: ms of a clock that does not go back. */
  constructor(position: () => Lsn, now: () => number = () => performance.now()) {
    this.#position = position;
    this.#now = now;
  }

  /** The server begins to stream; its WAL ends there. */
  begun(walEnd: Lsn): void {
    this.#walEnd = walEnd;
  }

  /** A message of the stream, which begins at `from`. */
  message(bytes: Buffer, from: number): void {
    this.#sent(readTimeMs(bytes, from + SENT_AT));
    this.#dataSentMs = this.#sentMs;
    const type = bytes[from];
    if (type !== COMMIT && type !== STREAM_COMMIT) return;
    this.#measure();
    this.#know(readTimeMs(bytes, from + (type === COMMIT ? COMMIT_TIME_AT : STREAM_COMMIT_TIME_AT)), 0n);
  }

  /** A keepalive that the server sent at `sentUs`, µs since 2000. */
  keepalive(sentUs: number): void {
    this.#sent(sentUs / 1000);
    const isQuiet = this.#sentMs - this.#dataSentMs >= QUIET_MS;
    this.#measure();
    if (isQuiet && this.#position() >= this.#walEnd)
      this.#know(this.#sentMs, BigInt(sentUs) + POSTGRES_EPOCH_US);
    else if (this.#asOfMs !== null) this.#hasNews = true;
  }

  /** How old what came last was when the server sent it, ms: large in a backlog, however fast that comes. */
  get sentAgeMs(): number {
    return this.#asOfMs === null ? 0 : this.#sentMs - this.#asOfMs;
  }

  /** What was said since the last call; null if nothing. */
  take(): Heard | null {
    if (!this.#hasNews || this.#asOfMs === null) return null;
    const distanceMs = Math.min(this.#distanceMs, this.#distanceBeforeMs);
    const heard = {
      agoMs: Math.max(0, this.#now() - this.#asOfMs - distanceMs),
      clockUs: this.#clockUs,
    };
    this.#hasNews = false;
    this.#clockUs = 0n;
    return heard;
  }

  #sent(sentMs: number): void {
    if (sentMs < this.#sentMs - SET_BACK_MS) {
      // By the new time it would be of the future.
      this.#asOfMs = null;
      this.#dataSentMs = sentMs;
      this.#distanceMs = Number.POSITIVE_INFINITY;
      this.#distanceBeforeMs = Number.POSITIVE_INFINITY;
    }
    this.#sentMs = sentMs;
  }

  #know(asOfMs: number, clockUs: bigint): void {
    // Two that commit at once may come the other way round.
    if (this.#asOfMs === null || asOfMs > this.#asOfMs) this.#asOfMs = asOfMs;
    this.#clockUs = clockUs;
    this.#hasNews = true;
  }

  #measure(): void {
    const nowMs = this.#now();
    if (nowMs >= this.#windowEndsAtMs) {
      this.#windowEndsAtMs = nowMs + WINDOW_MS;
      this.#distanceBeforeMs = this.#distanceMs;
      this.#distanceMs = Number.POSITIVE_INFINITY;
    }
    this.#distanceMs = Math.min(this.#distanceMs, nowMs - this.#sentMs);
  }
}

/** A time of the protocol, µs since 2000: a double holds it exactly. */
function readTimeMs(bytes: Buffer, at: number): number {
  return (bytes.readInt32BE(at) * 0x1_0000_0000 + bytes.readUInt32BE(at + 4)) / 1000;
}
