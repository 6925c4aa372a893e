import { copyWords, MAX_WORDWISE_BYTES, viewOf } from './copy-words.ts';
import { CHANGE_HEADER_BYTES, MAX_SHORT_TEXT_BYTES, TAG } from './frame.ts';

/** Small transactions share a slab, so that one costs no allocation; a slab lives while a follower still needs it. */
const SLAB_BYTES = 1024 * 1024;

/** What is written grows by its own size until this, then by this. */
const MAX_GROWTH_BYTES = 16 * SLAB_BYTES;

const scratch = new DataView(new ArrayBuffer(8));

/**
 * Writes frames into memory that is handed out, once finished, without a copy. Everything from `take()`n
 * positions on is never written again, so readers on other sockets can go on using it.
 */
export class FrameWriter {
  bytes: Buffer = Buffer.allocUnsafeSlow(SLAB_BYTES);
  /** Where the next byte goes. */
  at = 0;
  #start = 0;
  #view = viewOf(this.bytes);
  /** What was copied from last. */
  #source: Buffer = this.bytes;
  #sourceView = this.#view;

  /** Makes room for `count` more bytes; moves what was not taken yet to a new slab if need be. */
  reserve(count: number): void {
    if (this.at + count <= this.bytes.length) return;
    const used = this.at - this.#start;
    // A huge value comes alone: twice its size would be for nothing.
    const next = Buffer.allocUnsafeSlow(
      used + count + Math.max(SLAB_BYTES, Math.min(used + count, MAX_GROWTH_BYTES)),
    );
    this.bytes.copy(next, 0, this.#start, this.at);
    this.bytes = next;
    this.#view = viewOf(next);
    this.#start = 0;
    this.at = used;
  }

  /** Bytes written and not taken yet. */
  get pendingBytes(): number {
    return this.at - this.#start;
  }

  /** Offset of the first byte that was not taken yet. Moves with reserve(): keep distances, not offsets. */
  get start(): number {
    return this.#start;
  }

  /** Hands out `count` bytes from the start, without a copy. */
  take(count: number): Buffer {
    const taken = this.bytes.subarray(this.#start, this.#start + count);
    this.#start += count;
    return taken;
  }

  /** Nobody reads what was taken any more: its memory is written again. Nothing may be pending. */
  rewind(): void {
    if (this.bytes.length > MAX_GROWTH_BYTES) {
      this.bytes = Buffer.allocUnsafeSlow(SLAB_BYTES);
      this.#view = viewOf(this.bytes);
    }
    this.#start = 0;
    this.at = 0;
  }

  /** Forgets everything from distance `count` behind the start on. */
  truncate(count: number): void {
    this.at = this.#start + count;
  }

  writeUInt32(value: number): void {
    this.reserve(4);
    this.setUInt32(this.at, value);
    this.at += 4;
  }

  setUInt32(offset: number, value: number): void {
    const { bytes } = this;
    bytes[offset] = value;
    bytes[offset + 1] = value >>> 8;
    bytes[offset + 2] = value >>> 16;
    bytes[offset + 3] = value >>> 24;
  }

  /** Writes a change's header; the caller fills in the length with `endChange`. Returns the body's distance. */
  beginChange(kind: number, oid: number): number {
    this.reserve(CHANGE_HEADER_BYTES);
    this.bytes[this.at] = kind;
    this.setUInt32(this.at + 1, oid);
    this.at += CHANGE_HEADER_BYTES;
    return this.at - this.#start;
  }

  writeJsonChange(kind: number, oid: number, value: object): void {
    const json = Buffer.from(JSON.stringify(value));
    const body = this.beginChange(kind, oid);
    this.reserve(json.length);
    this.at += json.copy(this.bytes, this.at);
    this.endChange(body);
  }

  endChange(bodyDistance: number): void {
    const body = this.#start + bodyDistance;
    this.setUInt32(body - 4, this.at - body);
  }

  writeTag(tag: number): void {
    this.reserve(1);
    this.bytes[this.at++] = tag;
  }

  writeInt32(value: number): void {
    this.reserve(5);
    this.bytes[this.at] = TAG.int32;
    this.setUInt32(this.at + 1, value);
    this.at += 5;
  }

  /** An integer that a double holds exactly. */
  writeInteger(value: number): void {
    if ((value | 0) === value) {
      this.writeInt32(value);
      return;
    }
    this.reserve(9);
    this.bytes[this.at] = TAG.int64;
    const high = Math.floor(value / 0x1_0000_0000);
    this.setUInt32(this.at + 1, value - high * 0x1_0000_0000);
    this.setUInt32(this.at + 5, high);
    this.at += 9;
  }

  writeInt64(value: bigint): void {
    this.reserve(9);
    this.bytes[this.at] = TAG.int64;
    this.bytes.writeBigInt64LE(value, this.at + 1);
    this.at += 9;
  }

  writeReal(value: number): void {
    this.reserve(9);
    this.bytes[this.at] = TAG.real;
    scratch.setFloat64(0, value, true);
    this.setUInt32(this.at + 1, scratch.getUint32(0, true));
    this.setUInt32(this.at + 5, scratch.getUint32(4, true));
    this.at += 9;
  }

  /** UTF-8 text as it stands in `source`. */
  writeText(source: Buffer, from: number, to: number): void {
    const length = to - from;
    this.reserve(length + 5);
    if (length <= MAX_SHORT_TEXT_BYTES) {
      this.bytes[this.at++] = TAG.shortText + length;
    } else {
      this.bytes[this.at] = TAG.text;
      this.setUInt32(this.at + 1, length);
      this.at += 5;
    }
    this.writeRaw(source, from, to);
  }

  /** Bytes without a tag; room must be reserved. */
  writeRaw(source: Buffer, from: number, to: number): void {
    const length = to - from;
    if (length > MAX_WORDWISE_BYTES) {
      this.at += source.copy(this.bytes, this.at, from, to);
    } else if (length >= 8) {
      if (source !== this.#source) {
        this.#source = source;
        this.#sourceView = viewOf(source);
      }
      copyWords(this.#view, this.at, this.#sourceView, from, length);
      this.at += length;
    } else {
      const { bytes } = this;
      let { at } = this;
      for (let index = from; index < to; index++) bytes[at++] = source[index]!;
      this.at = at;
    }
  }
}
