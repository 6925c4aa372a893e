import type { Writable } from 'node:stream';
import { stripVTControlCharacters } from 'node:util';

/** Where nothing can be overwritten, a line of progress every so often is enough to see that it moves. */
const PLAIN_PROGRESS_INTERVAL_MS = 5_000;

/** A terminal is repainted at most so often: faster flickers, and nobody reads faster. */
const TTY_PROGRESS_INTERVAL_MS = 100;

/** A bar is for the eye: a log has the figures behind it. */
const BAR = /[█░]+ /;

export interface OutputStream extends Writable {
  readonly isTTY?: boolean;
  readonly columns?: number;
  readonly rows?: number;
}

/**
 * The one owner of a stream that shows both lines that stay (logs, messages) and one line that changes
 * (progress): a line that stays is written above the one that changes. Without a terminal, progress goes to
 * the log, a few seconds apart, and once more at the end of the job.
 */
export class Terminal {
  readonly #stream: OutputStream;
  readonly #now: () => number;
  #progress = '';
  #painted = false;
  #lastAt = Number.NEGATIVE_INFINITY;
  #log: (text: string) => void = () => undefined;
  /** What came after the line that was logged last. */
  #unsaid: (() => string) | null = null;

  constructor(stream: OutputStream, now: () => number = () => performance.now()) {
    this.#stream = stream;
    this.#now = now;
  }

  get isTty(): boolean {
    return this.#stream.isTTY === true;
  }

  /** Where progress goes without a terminal; nowhere until this is said. */
  logProgressTo(log: (text: string) => void): void {
    this.#log = log;
  }

  /** Writes a line that stays. */
  line(text: string): void {
    this.#erase();
    this.#stream.write(`${text}\n`);
    this.#paint();
  }

  /** Shows how far a long job is. Cheap enough to call for every row; the text may be asked for at the job's end. */
  progress(text: () => string): void {
    const now = this.#now();
    if (!this.isTty) {
      this.#unsaid = text;
      if (now - this.#lastAt >= PLAIN_PROGRESS_INTERVAL_MS) this.#say(now);
      return;
    }
    if (now - this.#lastAt < TTY_PROGRESS_INTERVAL_MS) return;
    this.#lastAt = now;
    this.#erase();
    this.#progress = text();
    this.#paint();
  }

  /** Takes the progress line away: the job has ended. */
  endProgress(): void {
    this.#erase();
    this.#progress = '';
    this.#say(Number.NEGATIVE_INFINITY);
  }

  #say(now: number): void {
    const text = this.#unsaid;
    this.#unsaid = null;
    this.#lastAt = now;
    if (text !== null) this.#log(stripVTControlCharacters(text()).replace(BAR, ''));
  }

  #erase(): void {
    if (this.#painted) this.#stream.write('\r\x1b[2K');
    this.#painted = false;
  }

  #paint(): void {
    if (this.#progress === '' || !this.isTty) return;
    // A line that wraps could not be erased any more.
    this.#stream.write(truncate(this.#progress, (this.#stream.columns ?? 80) - 1));
    this.#painted = true;
  }
}

/** Cuts a text that may hold colour codes to so many columns. */
export function truncate(text: string, columns: number): string {
  if (stripVTControlCharacters(text).length <= columns) return text;
  let visible = 0;
  let result = '';
  // biome-ignore lint/suspicious/noControlCharactersInRegex: the escape character starts a colour code
  for (const part of text.split(/(\x1b\[[0-9;]*m)/)) {
    if (part.startsWith('\x1b')) {
      result += part;
      continue;
    }
    result += part.slice(0, columns - visible);
    visible += Math.min(part.length, columns - visible);
  }
  return result;
}
