import { FRAME } from '../change/frame.ts';

/** Keeps track, along the log, of the transactions of which parts have come and the end has not. */
export class OpenParts {
  readonly #xids = new Set<number>();
  #firstSeq: number | null = null;

  get xids(): readonly number[] {
    return [...this.#xids];
  }

  /** The batch where the oldest open part lies, or where one lay that closed while another was still open. */
  get firstSeq(): number | null {
    return this.#firstSeq;
  }

  /** Takes the frames of batch `seq`, the next one. */
  follow(bytes: Buffer, seq: number): void {
    for (let at = 0; at < bytes.length; at += bytes.readUInt32LE(at)) {
      const type = bytes[at + 4];
      if (type === FRAME.part) this.#xids.add(bytes.readUInt32LE(at + 8));
      else if (type === FRAME.abort) this.#xids.delete(bytes.readUInt32LE(at + 8));
      else if (type === FRAME.transaction) this.#xids.delete(bytes.readUInt32LE(at + 32));
    }
    if (this.#xids.size === 0) this.#firstSeq = null;
    else this.#firstSeq ??= seq;
  }
}
