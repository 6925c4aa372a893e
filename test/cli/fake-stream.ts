import { Writable } from 'node:stream';
import type { OutputStream } from '../../src/cli/terminal.ts';

export interface FakeStream extends OutputStream {
  readonly text: string;
}

/** A stream that keeps what is written to it. */
export function fakeStream(shape: { isTTY?: boolean; columns?: number; rows?: number }): FakeStream {
  let text = '';
  const stream = new Writable({
    write(chunk, _encoding, done) {
      text += String(chunk);
      done();
    },
  });
  return Object.defineProperty(Object.assign(stream, shape), 'text', {
    get: () => text,
  }) as unknown as FakeStream;
}
