import type { Lsn } from '../lsn.ts';

/** Of a pgoutput message: https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html */
const COMMIT = 0x43; // C
const COMMIT_TIME_AT = 18;
const STREAM_COMMIT = 0x63; // c
const STREAM_COMMIT_TIME_AT = 22;
/** In front of each message, at the end of the header that the walsender puts there: when it sent this. */
const SENT_AT = -8;

/** A walsender that sent nothing for so long before a keepalive had nothing to send: it is at the end of the WAL. */
const QUIET_US = 100_000;

/** Postgres counts from the beginning of 2000. */
const EPOCH_OFFSET_US = 946_684_800_000_000n;

/** What the source has said of how old that is which has come. */
export interface Heard {
  /** Everything that was committed this long before has come, ms. */
  readonly agoMs: number;
  /** The server's clock as of a moment ago, µs since 1970; 0 if that is not known. */
  readonly clockUs: bigint;
}

/**
 * Knows by the server's own clock how far what comes from it lies behind, so that clocks of two machines need not
 * agree. A transaction that is sent tells when it was committed: with a backlog that is long ago, also between two of
 * its transactions, and so is every keepalive among them. Only one behind a pause, of a walsender that has come to
 * where the WAL ended when it was connected to, says that there is no more.
 */
export class SourceFreshness {
  readonly #position: () => Lsn;
  #walEnd: Lsn = 0n;
  #sentUs = 0;
  #behindMs: number | null = null;
  #news: Heard | null = null;
  #newsAtMs = 0;
  readonly #now: () => number;

  /** `position`: the server's, behind what has come. */
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
    this.#sentUs = readTime(bytes, from + SENT_AT);
    const type = bytes[from];
    if (type !== COMMIT && type !== STREAM_COMMIT) return;
    const committedUs = readTime(bytes, from + (type === COMMIT ? COMMIT_TIME_AT : STREAM_COMMIT_TIME_AT));
    this.#behindMs = Math.max(0, (this.#sentUs - committedUs) / 1000);
    this.#note({ agoMs: this.#behindMs, clockUs: 0n });
  }

  /** A keepalive that the server sent at `sentUs`, µs since 2000. */
  keepalive(sentUs: number): void {
    const isQuiet = sentUs - this.#sentUs >= QUIET_US;
    if (isQuiet && this.#position() >= this.#walEnd)
      this.#note({ agoMs: 0, clockUs: BigInt(sentUs) + EPOCH_OFFSET_US });
    else if (this.#behindMs !== null) this.#note({ agoMs: this.#behindMs, clockUs: 0n });
  }

  /** What was said since the last call; null if nothing. */
  take(): Heard | null {
    const news = this.#news;
    this.#news = null;
    // It may have had to wait for the end of a transaction.
    return news === null ? null : { ...news, agoMs: news.agoMs + this.#now() - this.#newsAtMs };
  }

  #note(news: Heard): void {
    this.#news = news;
    this.#newsAtMs = this.#now();
  }
}

/** A time of the protocol, µs since 2000: a double holds it exactly. */
export function readTime(bytes: Buffer, at: number): number {
  return bytes.readInt32BE(at) * 0x1_0000_0000 + bytes.readUInt32BE(at + 4);
}
