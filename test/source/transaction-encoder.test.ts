import { describe, expect, test } from 'vitest';
import type { Batch } from '../../src/change/batch.ts';
import {
  CHANGE,
  CHANGE_HEADER_BYTES,
  FRAME,
  FrameSplitter,
  PART_HEADER_BYTES,
  readTransactionHeader,
  TRANSACTION_HEADER_BYTES,
} from '../../src/change/frame.ts';
import type { Column, Relation } from '../../src/change/relation.ts';
import { type SchemaSource, TransactionEncoder } from '../../src/source/transaction-encoder.ts';
import { pgoutput, unchanged } from '../helpers/pgoutput.ts';

const column = (attnum: number, name: string, extra: Partial<Column> = {}): Column => ({
  attnum,
  name,
  typeName: 'text',
  typeOid: 25,
  typeModifier: -1,
  mapping: 'text',
  notNull: false,
  keyOrdinal: null,
  identity: false,
  ...extra,
});

const users: Relation = {
  oid: 10,
  schema: 'public',
  name: 'users',
  replicaIdentity: 'default',
  keyIsDeferrable: false,
  storage: '1',
  columns: [column(1, 'id', { mapping: 'int', keyOrdinal: 1, identity: true }), column(2, 'name')],
  indexes: [],
};

const schema: SchemaSource = {
  match: (message) => (message.schema === 'rivulet' ? 'ignored' : message.oid === 10 ? users : 'unknown'),
  message: (json) => (json === 'same' ? null : { changed: [users], dropped: [11] }),
  commit: () => 'state',
  rollback: () => undefined,
  reloaded: () => undefined,
  reread: () => null,
  losesValues: () => null,
  unread: () => null,
};

const usersMessage = pgoutput.relation(10, 'public', 'users', [
  { name: 'id', identity: true },
  { name: 'name' },
]);

function encode(encoder: TransactionEncoder, messages: readonly Buffer[]): void {
  for (const message of messages) {
    const padded = Buffer.concat([Buffer.alloc(3), message]);
    expect(encoder.handle(padded, 3, padded.length)).toBe(true);
  }
}

interface Frame {
  readonly type: number;
  readonly header: ReturnType<typeof readTransactionHeader> | null;
  readonly changes: readonly { kind: number; oid: number; body: string }[];
}

function framesOf(batches: readonly Batch[]): Frame[] {
  const bytes = Buffer.concat(batches.map((batch) => batch.bytes));
  if (bytes.length === 0) return [];
  expect(new FrameSplitter().push(bytes)?.length).toBe(bytes.length);
  const frames: Frame[] = [];
  for (let at = 0; at < bytes.length; ) {
    const end = at + bytes.readUInt32LE(at);
    const type = bytes[at + 4]!;
    const changes = [];
    let change = at + (type === FRAME.transaction ? TRANSACTION_HEADER_BYTES : PART_HEADER_BYTES);
    const count =
      type === FRAME.transaction ? readTransactionHeader(bytes, at).changeCount : bytes.readUInt32LE(at + 12);
    while (change < end) {
      const body = change + CHANGE_HEADER_BYTES;
      const length = bytes.readUInt32LE(body - 4);
      changes.push({
        kind: bytes[change]!,
        oid: bytes.readUInt32LE(change + 1),
        body: bytes.toString('latin1', body, body + length),
      });
      change = body + length;
    }
    expect(change).toBe(end);
    expect(changes.length).toBe(count);
    frames.push({
      type,
      header: type === FRAME.transaction ? readTransactionHeader(bytes, at) : null,
      changes,
    });
    at = end;
  }
  return frames;
}

describe('TransactionEncoder', () => {
  test('a transaction becomes one frame with its changes in order', () => {
    const encoder = new TransactionEncoder({ schema, position: 5n, atWatermark: () => null });
    encode(encoder, [
      pgoutput.begin(100n, 7),
      usersMessage,
      pgoutput.insert(10, ['1', 'Ada']),
      pgoutput.update(10, ['1', null]),
      pgoutput.update(10, ['2', unchanged], { kind: 'K', values: ['1', null] }),
      pgoutput.update(10, ['2', 'x'], { kind: 'O', values: ['2', 'Ada'] }),
      pgoutput.delete(10, 'K', ['2', null]),
      pgoutput.delete(10, 'O', ['3', 'y']),
      pgoutput.truncate([10]),
      pgoutput.commit(100n, 130n, 1_000_000n),
    ]);
    expect(encoder.position).toBe(130n);
    const batches = encoder.takeBatches();
    expect(batches).toMatchObject([{ endLsn: 130n, closes: 1, opensParts: false }]);
    const [frame] = framesOf(batches);
    expect(frame!.header).toEqual({
      commitLsn: 100n,
      endLsn: 130n,
      commitTimeUs: 946_684_801_000_000n,
      xid: 7,
      changeCount: 7,
      hasParts: false,
    });
    const id = (value: number): string => `\x02${String.fromCharCode(value)}\0\0\0`;
    const text = (value: string): string => String.fromCharCode(16 + value.length) + value;
    expect(frame!.changes).toEqual([
      { kind: CHANGE.insert, oid: 10, body: `\x02\0${id(1)}${text('Ada')}` },
      { kind: CHANGE.update, oid: 10, body: `\x02\0${id(1)}\0` },
      { kind: CHANGE.updateKey, oid: 10, body: `\x01\0${id(1)}\x02\0${id(2)}\x01` },
      { kind: CHANGE.updateFull, oid: 10, body: `\x02\0${id(2)}${text('Ada')}\x02\0${id(2)}${text('x')}` },
      { kind: CHANGE.deleteKey, oid: 10, body: `\x01\0${id(2)}` },
      { kind: CHANGE.deleteFull, oid: 10, body: `\x02\0${id(3)}${text('y')}` },
      { kind: CHANGE.truncate, oid: 10, body: '' },
    ]);
  });

  test('transactions that lie back to back are one batch; empty ones only move the position', () => {
    const encoder = new TransactionEncoder({ schema, position: 5n, atWatermark: () => null });
    encode(encoder, [
      pgoutput.begin(100n, 7),
      usersMessage,
      pgoutput.insert(10, ['1', 'a']),
      pgoutput.commit(100n, 130n),
      pgoutput.begin(130n, 8),
      pgoutput.insert(10, ['2', 'b']),
      pgoutput.commit(130n, 160n),
      pgoutput.begin(160n, 9),
      pgoutput.commit(160n, 190n),
    ]);
    const batches = encoder.takeBatches();
    expect(batches.map(({ endLsn, closes }) => [endLsn, closes])).toEqual([[190n, 2]]);
    expect(framesOf(batches).map((frame) => frame.header!.endLsn)).toEqual([130n, 160n]);
    expect(encoder.takeBatches()).toEqual([]);
  });

  test('a batch never holds the beginning of a transaction that is not over', () => {
    const encoder = new TransactionEncoder({ schema, position: 5n, atWatermark: () => null });
    encode(encoder, [
      pgoutput.begin(100n, 7),
      usersMessage,
      pgoutput.insert(10, ['1', 'a']),
      pgoutput.commit(100n, 130n),
      pgoutput.begin(130n, 8),
      pgoutput.insert(10, ['2', 'b']),
    ]);
    expect(framesOf(encoder.takeBatches()).map((frame) => frame.changes.length)).toEqual([1]);
    encode(encoder, [pgoutput.insert(10, ['3', 'c']), pgoutput.commit(130n, 160n)]);
    expect(framesOf(encoder.takeBatches()).map((frame) => frame.changes.length)).toEqual([2]);
  });

  test('a large transaction is handed on in parts', () => {
    const encoder = new TransactionEncoder({
      schema,
      position: 5n,
      atWatermark: () => null,
      partBytes: 1000,
    });
    encode(encoder, [
      pgoutput.begin(90n, 6),
      usersMessage,
      pgoutput.insert(10, ['0', 'before']),
      pgoutput.commit(90n, 100n),
      pgoutput.begin(100n, 7),
    ]);
    for (let row = 0; row < 100; row++) encode(encoder, [pgoutput.insert(10, [String(row), 'x'.repeat(50)])]);
    const parts = encoder.takeBatches();
    expect(parts[0]).toMatchObject({ endLsn: 100n, closes: 1, opensParts: false });
    for (const part of parts.slice(1))
      expect(part).toMatchObject({ endLsn: 100n, closes: 0, opensParts: true });
    encode(encoder, [pgoutput.commit(100n, 130n)]);
    const end = encoder.takeBatches();
    expect(end).toMatchObject([{ endLsn: 130n, closes: 1, opensParts: false }]);
    const frames = framesOf([...parts, ...end]);
    expect(frames.slice(1, -1).every((frame) => frame.type === FRAME.part)).toBe(true);
    expect(frames.at(-1)!.header).toMatchObject({ hasParts: true, endLsn: 130n });
    expect(frames.slice(1).reduce((sum, frame) => sum + frame.changes.length, 0)).toBe(100);
  });

  test('a broken connection forgets the open transaction, and takes its parts back', () => {
    const encoder = new TransactionEncoder({
      schema,
      position: 5n,
      atWatermark: () => null,
      partBytes: 1000,
    });
    const begin = [pgoutput.begin(100n, 7), usersMessage];
    encode(encoder, [...begin, pgoutput.insert(10, ['1', 'a'])]);
    expect(encoder.abandon()).toEqual([]);
    encode(encoder, [
      ...begin,
      pgoutput.insert(10, ['1', 'y'.repeat(2000)]),
      pgoutput.insert(10, ['2', 'b']),
    ]);
    const frames = framesOf(encoder.abandon());
    expect(frames.map((frame) => frame.type)).toEqual([FRAME.part, FRAME.abort]);
    // Behind a new connection, relations are described again before their rows.
    encode(encoder, [pgoutput.begin(100n, 7)]);
    expect(() => encode(encoder, [pgoutput.insert(10, ['1', 'a'])])).toThrow(/before its description/);
  });

  test('an unknown relation stops the stream until it is resolved', () => {
    const encoder = new TransactionEncoder({ schema, position: 5n, atWatermark: () => null });
    encode(encoder, [pgoutput.begin(100n, 7)]);
    const message = pgoutput.relation(12, 'public', 'new', [{ name: 'id' }]);
    expect(encoder.handle(message, 0, message.length)).toBe(false);
    expect(encoder.blockedBy).toMatchObject({ oid: 12, name: 'new' });
    encoder.resolve({ changed: [users], dropped: [] });
    expect(encoder.blockedBy).toBe(null);
  });

  test('hook messages become schema changes; other messages and our own tables are ignored', () => {
    const encoder = new TransactionEncoder({ schema, position: 5n, atWatermark: () => null });
    encode(encoder, [
      pgoutput.begin(100n, 7),
      pgoutput.relation(99, 'rivulet', 'migration', [{ name: 'id' }]),
      pgoutput.insert(99, ['1']),
      pgoutput.truncate([99]),
      pgoutput.message('other', 'x'),
      pgoutput.message('rivulet', 'same'),
      pgoutput.message('rivulet', 'changed'),
      pgoutput.message('rivulet', 'changed', false),
      pgoutput.commit(100n, 130n),
    ]);
    const batches = encoder.takeBatches();
    expect(batches).toMatchObject([{ sourceState: 'state' }]);
    const [frame] = framesOf(batches);
    expect(frame!.changes).toMatchObject([
      { kind: CHANGE.schema, oid: 0, body: expect.stringContaining('"dropped":[11]') },
    ]);
  });

  test('of rows in binary only their tables count, once for each transaction', () => {
    const told: [number, number][] = [];
    const encoder = new TransactionEncoder({
      schema: {
        ...schema,
        unread: (oid, xid) => {
          told.push([oid, xid]);
          return told.length === 1 ? { changed: [], dropped: [], reloading: [users] } : null;
        },
      },
      position: 5n,
      atWatermark: () => null,
      isBinary: true,
    });
    encode(encoder, [
      pgoutput.begin(100n, 7),
      usersMessage,
      pgoutput.relation(99, 'rivulet', 'migration', [{ name: 'id' }]),
      pgoutput.insert(99, ['1']),
      pgoutput.insert(10, ['not', 'a', 'row']),
      pgoutput.update(10, ['2', null]),
      pgoutput.delete(10, 'K', ['2', null]),
      pgoutput.commit(100n, 130n),
    ]);
    const [frame] = framesOf(encoder.takeBatches());
    expect(told).toEqual([
      [10, 7],
      [10, 7],
      [10, 7],
    ]);
    expect(frame!.changes).toMatchObject([
      { kind: CHANGE.schema, body: expect.stringContaining('"reloading":[{"oid":10') },
    ]);
  });

  test('bytes that make no sense are an error', () => {
    const encoder = new TransactionEncoder({ schema, position: 5n, atWatermark: () => null });
    expect(() => encode(encoder, [Buffer.from('?')])).toThrow(/unknown type/);
    expect(() => encode(encoder, [pgoutput.commit(1n, 2n)])).toThrow(/did not begin/);
    encode(encoder, [pgoutput.begin(100n, 7), usersMessage]);
    expect(() => encode(encoder, [pgoutput.insert(10, ['1'])])).toThrow(/1 columns where 2/);
  });
});
