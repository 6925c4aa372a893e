import { expect, test } from 'vitest';
import { FRAME, FrameSplitter } from '../../src/change/frame.ts';
import { giveBack } from '../../src/change/give-back.ts';

const FRAME_BYTES = 300_000;

function frame(fill: number): Buffer {
  const bytes = Buffer.alloc(FRAME_BYTES, fill);
  bytes.writeUInt32LE(FRAME_BYTES, 0);
  bytes[4] = FRAME.part;
  return bytes;
}

/** A piece of what a socket gives, in memory of its own. */
function chunk(bytes: Buffer, from: number, to: number): Buffer {
  const memory = Buffer.allocUnsafeSlow(to - from);
  bytes.copy(memory, 0, from, to);
  return memory;
}

test.each([FRAME_BYTES * 2 + 7, 65_536, 100_000, 7])(
  'frames come whole out of chunks of %i bytes',
  (size) => {
    const bytes = Buffer.concat([frame(1), frame(2), frame(3)]);
    const splitter = new FrameSplitter();
    const whole: Buffer[] = [];
    for (let at = 0; at < bytes.length; at += size) {
      const frames = splitter.push(chunk(bytes, at, Math.min(at + size, bytes.length)));
      if (frames === null) continue;
      whole.push(Buffer.from(frames));
      // Whoever has them may do so: nothing that is still to come lies in the same memory.
      giveBack(frames);
    }
    expect(Buffer.concat(whole).equals(bytes)).toBe(true);
  },
);

test('of a frame in many chunks no more than the frame is kept', () => {
  const bytes = frame(1);
  const splitter = new FrameSplitter();
  const chunks: Buffer[] = [];
  let frames: Buffer | null = null;
  for (let at = 0; at < bytes.length; at += 50_000) {
    chunks.push(chunk(bytes, at, at + 50_000));
    frames = splitter.push(chunks.at(-1)!);
  }
  expect(frames?.equals(bytes)).toBe(true);
  expect(chunks.map((each) => (each.buffer as ArrayBuffer).detached)).toEqual(chunks.map(() => true));
});
