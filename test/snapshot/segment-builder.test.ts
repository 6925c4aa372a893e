import { expect, test } from 'vitest';
import type { Lsn } from '../../src/lsn.ts';
import { SegmentBuilder } from '../../src/snapshot/segment-builder.ts';
import { abortBatch, batch, insertItem, partBatch, START } from '../fanout/test-replicator.ts';

const at = (index: number): Lsn => START + BigInt(index) * 0x100n;
const tx = (index: number, label?: string): Buffer =>
  batch(at(index), [insertItem(index, label)], { commitTimeUs: BigInt(index) * 1_000_000n }).bytes;
const blob = (content: Buffer) => ({ hash: 'f'.repeat(64), bytes: content.length, storedBytes: 1 });

function builder(maxBytes = 1_000_000, from: Lsn = START): SegmentBuilder {
  return new SegmentBuilder({ epoch: 'e1', from, maxBytes });
}

test('takes whole transactions, and says from where to where', () => {
  const it = builder();
  expect(it.takeSegment(true)).toBeNull();
  it.push(Buffer.concat([tx(1), tx(2)]));
  it.push(tx(3));
  expect(it.takeSegment(false)).toBeNull();
  const { segment, lastPart } = it.takeSegment(true)!;
  expect(segment).toMatchObject({
    epoch: 'e1',
    from: START,
    to: at(3),
    transactions: 3,
    firstCommitTime: '1970-01-01 00:00:01.000000Z',
    lastCommitTime: '1970-01-01 00:00:03.000000Z',
    parts: [],
  });
  expect(lastPart).toEqual(Buffer.concat([tx(1), tx(2), tx(3)]));
  it.push(tx(4));
  expect(it.takeSegment(true)!.segment).toMatchObject({ from: at(3), to: at(4) });
});

test('what it has already is left out: a log is read again from where a batch begins', () => {
  const it = builder(1_000_000, at(2));
  const parts = partBatch(at(1), [insertItem(7)]).bytes;
  it.push(Buffer.concat([tx(1), parts, batch(at(2), [insertItem(8)], { hasParts: true }).bytes, tx(3)]));
  expect(it.takeSegment(true)!.lastPart).toEqual(tx(3));
});

test('never cuts inside a transaction in parts', () => {
  const it = builder();
  const parts = partBatch(at(1), [insertItem(7)]).bytes;
  it.push(Buffer.concat([tx(1), parts]));
  expect(it.takeSegment(true)!.lastPart).toEqual(tx(1));
  expect(it.takeSegment(true)).toBeNull();
  it.push(parts);
  const end = batch(at(2), [], { hasParts: true }).bytes;
  it.push(end);
  const { segment, lastPart } = it.takeSegment(true)!;
  expect(segment).toMatchObject({ from: at(1), to: at(2), transactions: 1 });
  expect(lastPart).toEqual(Buffer.concat([parts, parts, end]));
});

test('parts that are aborted never were', () => {
  const it = builder();
  const parts = partBatch(at(1), [insertItem(7)]).bytes;
  it.push(Buffer.concat([tx(1), parts, abortBatch(at(1)).bytes, tx(2)]));
  expect(it.takeSegment(true)!.lastPart).toEqual(Buffer.concat([tx(1), tx(2)]));
});

test('a transaction larger than a segment goes out in parts, alone', () => {
  const part = partBatch(at(1), [insertItem(7, 'x'.repeat(600))]).bytes;
  const it = builder(1000);
  it.push(Buffer.concat([tx(1), part, part]));
  // What is before it goes first.
  expect(it.takePart()).toBeNull();
  expect(it.takeSegment(false)!.lastPart).toEqual(tx(1));
  const first = it.takePart()!;
  expect(first).toEqual(Buffer.concat([part, part]));
  it.partStored(blob(first));
  it.push(part);
  expect(it.takePart()).toBeNull();
  const end = batch(at(2), [], { hasParts: true }).bytes;
  it.push(Buffer.concat([end, tx(3)]));
  const { segment, lastPart } = it.takeSegment(true)!;
  expect(segment).toMatchObject({ from: at(1), to: at(3), transactions: 2, parts: [blob(first)] });
  expect(lastPart).toEqual(Buffer.concat([part, end, tx(3)]));
  it.push(tx(4));
  expect(it.takeSegment(true)!.segment.parts).toEqual([]);
});

test('a large transaction that is aborted leaves no part in what follows', () => {
  const part = partBatch(at(1), [insertItem(7, 'x'.repeat(2000))]).bytes;
  const it = builder(1000);
  it.push(part);
  it.partStored(blob(it.takePart()!));
  it.push(Buffer.concat([part, abortBatch(START).bytes, tx(1)]));
  const { segment, lastPart } = it.takeSegment(true)!;
  expect(segment.parts).toEqual([]);
  expect(lastPart).toEqual(tx(1));
});

test('parts of a whole large transaction stay with it, whatever comes behind', () => {
  const part = partBatch(at(1), [insertItem(7, 'x'.repeat(2000))]).bytes;
  const it = builder(1000);
  it.push(part);
  const first = it.takePart()!;
  it.partStored(blob(first));
  it.push(Buffer.concat([batch(at(1), [], { hasParts: true }).bytes, part, abortBatch(at(1)).bytes]));
  expect(it.takeSegment(true)!.segment.parts).toEqual([blob(first)]);
});
