import type { ChangeLog } from '../changelog/change-log.ts';

/** Whole batches of the log, and the number of the one behind them. */
export interface LogChunk {
  readonly bytes: Buffer;
  readonly nextSeq: number;
}

/** Some chunks are enough: followers that begin at the same place go on side by side. */
const MAX_CACHED_BYTES = 4 * 1024 * 1024;

/**
 * What was read of the log last. After a restart a thousand followers come within a second, all from about the same
 * place: it is read once, and the same memory is sent to all of them.
 */
export class ChunkCache {
  readonly #chunks = new Map<number, LogChunk>();
  #cachedBytes = 0;

  /** The batches from `seq` on, about `maxBytes` of them; null at the end of the log. */
  read(changeLog: ChangeLog, seq: number, maxBytes: number): LogChunk | null {
    const known = this.#chunks.get(seq);
    if (known !== undefined) return known;
    const cursor = changeLog.openCursorAt(seq);
    const bytes = cursor.next(maxBytes);
    if (bytes === null) return null;
    const chunk = { bytes, nextSeq: cursor.nextSeq };
    this.#chunks.set(seq, chunk);
    this.#cachedBytes += bytes.length;
    for (const [oldest, { bytes: old }] of this.#chunks) {
      if (this.#cachedBytes <= MAX_CACHED_BYTES) break;
      this.#chunks.delete(oldest);
      this.#cachedBytes -= old.length;
    }
    return chunk;
  }

  clear(): void {
    this.#chunks.clear();
    this.#cachedBytes = 0;
  }
}
