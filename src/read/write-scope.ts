import type { RivuletError } from '../errors.ts';
import { laterToken, type Position } from '../token.ts';

/** What one piece of work (a request, say) has written, over all connections that it used. */
export class WriteScope {
  readonly #takes = new Set<Promise<void>>();
  #position: Position | null = null;
  #error: RivuletError | null = null;
  #isMarked = false;
  #hasWritten = false;

  /** Something was committed, whether its token is there yet or not. */
  get hasWritten(): boolean {
    return this.#hasWritten;
  }

  /** What covers all commits so far, as far as their tokens are there. */
  get position(): Position | null {
    return this.#position;
  }

  /** A token is being taken, or has to be. */
  get isPending(): boolean {
    return this.#takes.size > 0 || this.#isMarked;
  }

  /** Why a token could not be had; the writes are committed nevertheless. */
  get error(): RivuletError | null {
    return this.#error;
  }

  get isMarked(): boolean {
    return this.#isMarked;
  }

  /** Something was written in a way that nobody notices: see WriteTracker.markWrite(). */
  mark(): void {
    this.#isMarked = true;
    this.#hasWritten = true;
  }

  /** A commit whose token is being taken. */
  expect(take: Promise<void>): void {
    this.#hasWritten = true;
    this.#takes.add(take);
    void take.finally(() => this.#takes.delete(take));
  }

  reached(position: Position): void {
    // Of two histories the one that was met last is the one that goes on.
    this.#position = this.#position === null ? position : (laterToken(this.#position, position) ?? position);
    this.#isMarked = false;
    this.#error = null;
  }

  failed(error: RivuletError): void {
    this.#error = error;
  }

  /** Once every commit so far has its token: the position that covers all of them, or null. */
  async settled(): Promise<Position | null> {
    while (this.#takes.size > 0) await Promise.all(this.#takes);
    return this.#position;
  }
}
