import { EventEmitter } from 'node:events';
import type pg from 'pg';
import { expect, test } from 'vitest';
import { tapCopyData } from '../../src/source/copy-data-tap.ts';

class FakeStream extends EventEmitter {
  pause(): void {}
  resume(): void {}
}

function message(type: string, text: string): Buffer {
  const bytes = Buffer.alloc(5 + text.length);
  bytes.write(type, 0, 'latin1');
  bytes.writeUInt32BE(4 + text.length, 1);
  bytes.write(text, 5, 'latin1');
  return bytes;
}

const MESSAGES = ['dfirst', 'd', 'Cother', 'dthe second row', 'd3', 'Zend'];
const BYTES = Buffer.concat(MESSAGES.map((each) => message(each[0]!, each.slice(1))));

/** What arrives of MESSAGES in chunks that end at `cuts`; the handler refuses the row `refused` once. */
function received(cuts: readonly number[], refused: string | null = null): string[] {
  const seen: string[] = [];
  const stream = new FakeStream();
  stream.on('data', (bytes: Buffer) =>
    seen.push(bytes.toString('latin1', 0, 1) + bytes.toString('latin1', 5)),
  );
  let isRefused = refused === null;
  const tap = tapCopyData(
    { connection: { stream } } as unknown as pg.Client,
    (bytes, from, to) => {
      const text = `d${bytes.toString('latin1', from, to)}`;
      if (!isRefused && text === refused) {
        isRefused = true;
        return false;
      }
      seen.push(text);
      return true;
    },
    () => undefined,
    (error) => {
      throw error;
    },
  );
  let from = 0;
  for (const to of [...cuts, BYTES.length]) {
    stream.emit('data', BYTES.subarray(from, to));
    from = to;
  }
  tap.resume();
  return seen;
}

test('messages arrive whole and in order, wherever the chunks are cut', () => {
  for (let first = 0; first <= BYTES.length; first++) {
    for (let second = first; second <= BYTES.length; second++)
      expect(received([first, second])).toEqual(MESSAGES);
  }
});

test('a row that is refused comes again, and everything behind it, wherever the chunks are cut', () => {
  for (const refused of ['dfirst', 'd', 'd3']) {
    for (let first = 0; first <= BYTES.length; first++) {
      for (let second = first; second <= BYTES.length; second++)
        expect(received([first, second], refused)).toEqual(MESSAGES);
    }
  }
});
