import { crc32 } from 'node:zlib';
import type Database from 'better-sqlite3';
import { giveBack } from '../change/give-back.ts';
import { ProtocolError, RivuletError } from '../errors.ts';
import type { LogCursor } from './change-log.ts';

interface StoredBatch {
  readonly seq: number;
  readonly crc: number;
  readonly bytes: Buffer;
}

/** Reads on the connection that appends: nothing is in between, and pages just written are still in its cache. */
export class SqliteCursor implements LogCursor {
  readonly #read: Database.Statement<[number, number], StoredBatch>;
  readonly #bounds: () => { readonly oldestSeq: number; readonly headSeq: number };
  #nextSeq: number;

  constructor(db: Database.Database, nextSeq: number, bounds: () => { oldestSeq: number; headSeq: number }) {
    this.#read = db.prepare('SELECT seq, crc, bytes FROM batch WHERE seq BETWEEN ? AND ? ORDER BY seq');
    this.#nextSeq = nextSeq;
    this.#bounds = bounds;
  }

  get nextSeq(): number {
    return this.#nextSeq;
  }

  next(maxBytes: number): Buffer | null {
    const { oldestSeq, headSeq } = this.#bounds();
    if (this.#nextSeq > headSeq) return null;
    if (this.#nextSeq < oldestSeq) {
      throw new RivuletError(
        'POSITION_TOO_OLD',
        `batch ${this.#nextSeq} of the change log was pruned while a follower was still behind it`,
      );
    }
    const chunks: Buffer[] = [];
    let bytes = 0;
    let seq = this.#nextSeq;
    for (const batch of this.#read.iterate(seq, headSeq)) {
      if (batch.seq !== seq) throw new ProtocolError(`the change log lacks batch ${seq}`);
      if (crc32(batch.bytes) !== batch.crc)
        throw new ProtocolError(`batch ${seq} of the change log is damaged: its checksum is wrong`, {
          facts: { seq },
        });
      if (chunks.length > 0 && bytes + batch.bytes.length > maxBytes) break;
      chunks.push(batch.bytes);
      bytes += batch.bytes.length;
      seq++;
      if (bytes >= maxBytes) break;
    }
    if (chunks.length === 0) throw new ProtocolError(`the change log lacks batch ${seq}`);
    this.#nextSeq = seq;
    if (chunks.length === 1) return chunks[0]!;
    const joined = Buffer.concat(chunks, bytes);
    for (const chunk of chunks) giveBack(chunk);
    return joined;
  }
}
