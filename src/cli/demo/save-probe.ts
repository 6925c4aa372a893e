import type { Statement } from 'better-sqlite3';
import { RivuletError } from '../../errors.ts';
import { openReader, type Reader } from '../../read/reader.ts';
import { Percentiles } from './percentiles.ts';

const SAVES_PER_ROUND = 3;
const WINDOW = 1_000;
const WAIT_MS = 5_000;

/** Saves a note at the example app, and reads it from another node's file, with the token of the answer. */
export class SaveProbe implements Disposable {
  /** From the app's answer until the note has been read, ms. */
  readonly times = new Percentiles(WINDOW);
  saved = 0;
  /** Read with the token, and not there. */
  missing = 0;
  readonly #url: string;
  readonly #reader: Reader;

  /** `file`: of a node that the app knows nothing of. */
  constructor(url: string, file: string) {
    this.#url = url;
    this.#reader = openReader({ file });
  }

  async round(signal: AbortSignal): Promise<void> {
    for (let save = 0; save < SAVES_PER_ROUND && !signal.aborted; save++) {
      const answer = await fetch(`${this.#url}/notes`, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify({ text: `note ${this.saved + 1}` }),
      });
      const { id } = (await answer.json()) as { id: number };
      const startedAt = performance.now();
      const token = answer.headers.get('rivulet-token') ?? '';
      try {
        await this.#reader.waitFor(token, { timeoutMs: WAIT_MS });
      } catch (error) {
        // A machine that stands still for so long breaks no promise: nothing was shown.
        if (error instanceof RivuletError && error.code === 'WAIT_TIMEOUT') continue;
        throw error;
      }
      const note: Statement<[number]> = this.#reader.db.prepare('select text from note where id = ?');
      const isThere = note.get(id) !== undefined;
      this.times.add(performance.now() - startedAt);
      this.saved++;
      if (!isThere) this.missing++;
    }
  }

  [Symbol.dispose](): void {
    this.#reader.close();
  }
}
