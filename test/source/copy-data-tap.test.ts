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

test('the memory of chunks is given back, and what is kept of them stays as it was', () => {
  const rows = Array.from({ length: 60 }, (_, index) => `d${String(index).repeat(3000)}`);
  const bytes = Buffer.concat(rows.map((each) => message('d', each.slice(1))));
  const stream = new FakeStream();
  const seen: string[] = [];
  let refused = 7;
  const tap = tapCopyData(
    { connection: { stream } } as unknown as pg.Client,
    (chunk, from, to) => {
      if (refused-- === 0) return false;
      seen.push(`d${chunk.toString('latin1', from, to)}`);
      return true;
    },
    () => undefined,
    (error) => {
      throw error;
    },
  );
  const memory: ArrayBuffer[] = [];
  for (let at = 0; at < bytes.length; at += 65_536) {
    const chunk = Buffer.allocUnsafeSlow(Math.min(65_536, bytes.length - at));
    bytes.copy(chunk, 0, at);
    memory.push(chunk.buffer as ArrayBuffer);
    stream.emit('data', chunk);
    if (refused < 0) tap.resume();
  }
  expect(seen).toEqual(rows);
  // The last one is too small to be worth it.
  expect(memory.filter(({ detached }) => !detached).map(({ byteLength }) => byteLength)).toEqual([
    bytes.length % 65_536,
  ]);
  expect(memory.length).toBeGreaterThan(4);
});

test('memory that pg has been given a part of is left alone', () => {
  const bytes = Buffer.concat([message('d', 'x'.repeat(20_000)), message('C', 'other')]);
  const chunk = Buffer.allocUnsafeSlow(bytes.length);
  bytes.copy(chunk);
  const stream = new FakeStream();
  const others: Buffer[] = [];
  stream.on('data', (other: Buffer) => others.push(other));
  tapCopyData(
    { connection: { stream } } as unknown as pg.Client,
    () => true,
    () => undefined,
    (error) => {
      throw error;
    },
  );
  stream.emit('data', chunk);
  expect(others.map((other) => other.toString('latin1', 5))).toEqual(['other']);
});
