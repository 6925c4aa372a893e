/** From about so many bytes on, a call into native code is faster. */
export const MAX_WORDWISE_BYTES = 200;

/**
 * Copies at least eight bytes, eight at a time: several times as fast as byte by byte, or as a native copy of so few.
 * V8 keeps these BigInts in registers.
 */
export function copyWords(
  target: DataView,
  at: number,
  source: DataView,
  from: number,
  length: number,
): void {
  const last = length - 8;
  for (let index = 0; index < last; index += 8)
    target.setBigInt64(at + index, source.getBigInt64(from + index, true), true);
  target.setBigInt64(at + last, source.getBigInt64(from + last, true), true);
}

export function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
}
