/** Odd constants of MurmurHash3 (x86, 32 and 128 bit variants): https://github.com/aappleby/smhasher */
const C1 = 0xcc9e2d51 | 0;
const C2 = 0x1b873593;
const C3 = 0xab0e9789 | 0;
const C4 = 0x38b34ae5;
const SEED_LOW = 0x9747b28c | 0;
const SEED_HIGH = 0x3c6ef372;

/**
 * 64 bits over a row's bytes in the change format, which is canonical: equal rows have equal bytes, whether they
 * came from Postgres or are stored in SQLite. Rows are added up by it, so that neither their order nor their
 * number matters.
 *
 * Two lanes of 32 bits, because JavaScript multiplies those fast: each sees every word, with constants and
 * rotations of its own, and they are mixed at the end as MurmurHash3 does it. Not for use against somebody who
 * makes up rows to collide; two given rows that differ collide once in 2^64.
 */
export class RowHash {
  /** Of the last run, as unsigned 32 bits each. */
  low = 0;
  high = 0;

  run(view: DataView, from: number, to: number): void {
    let a = SEED_LOW;
    let b = SEED_HIGH;
    let at = from;
    for (; at + 4 <= to; at += 4) {
      const word = view.getInt32(at, true);
      let k = Math.imul(word, C1);
      a ^= Math.imul((k << 15) | (k >>> 17), C2);
      a = (Math.imul((a << 13) | (a >>> 19), 5) + 0xe6546b64) | 0;
      k = Math.imul(word, C3);
      b ^= Math.imul((k << 16) | (k >>> 16), C4);
      b = (Math.imul((b << 17) | (b >>> 15), 5) + 0x561ccd1b) | 0;
    }
    if (at < to) {
      let word = 0;
      for (let shift = 0; at < to; at++, shift += 8) word |= view.getUint8(at) << shift;
      let k = Math.imul(word, C1);
      a ^= Math.imul((k << 15) | (k >>> 17), C2);
      k = Math.imul(word, C3);
      b ^= Math.imul((k << 16) | (k >>> 16), C4);
    }
    a ^= to - from;
    b ^= to - from;
    a = (a + b) | 0;
    b = (b + a) | 0;
    a = mix(a);
    b = mix(b);
    a = (a + b) | 0;
    b = (b + a) | 0;
    this.low = a >>> 0;
    this.high = b >>> 0;
  }
}

/** Every bit of the input changes every bit of the result with probability one half. */
function mix(value: number): number {
  let h = value;
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return h ^ (h >>> 16);
}
