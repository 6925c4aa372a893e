import { expect, test } from 'vitest';
import type { Batch } from '../../src/change/batch.ts';
import { abortFrame, FRAME, jsonFrame, positionFrame } from '../../src/change/frame.ts';
import type { Publisher } from '../../src/fanout/publisher.ts';
import type { Lsn } from '../../src/lsn.ts';
import { RelayedLog } from '../../src/relay/relayed-log.ts';
import {
  abortBatch,
  batch,
  insertItem,
  newChangeLog,
  partBatch,
  START,
  temporaryDirectory,
} from '../fanout/test-replicator.ts';

const at = (index: number): Lsn => START + BigInt(index) * 0x100n;
const one = (index: number, bytes = 10): Buffer =>
  batch(at(index), [insertItem(index, 'x'.repeat(bytes))], { commitTimeUs: 1n }).bytes;

interface Made extends AsyncDisposable {
  readonly relayed: RelayedLog;
  readonly log: ReturnType<typeof newChangeLog>;
  readonly published: Batch[];
  readonly stored: () => Buffer[];
}

function make(): Made {
  const dir = temporaryDirectory();
  const log = newChangeLog(dir.path);
  const published: Batch[] = [];
  const publisher = {
    publish: (each: Batch) => published.push(each),
    advance: () => undefined,
  } as unknown as Publisher;
  return {
    relayed: new RelayedLog({ changeLog: log, publisher, onTransactions: () => undefined }),
    log,
    published,
    stored: () => {
      const cursor = log.openCursorAt(1);
      const found: Buffer[] = [];
      for (let bytes = cursor.next(0); bytes !== null; bytes = cursor.next(0)) found.push(Buffer.from(bytes));
      return found;
    },
    async [Symbol.asyncDispose]() {
      await log.close();
      dir[Symbol.dispose]();
    },
  };
}

test('keeps what belongs into a log, byte for byte, and positions', async () => {
  await using made = make();
  const frames = [
    jsonFrame(FRAME.hello, { epoch: 'e1' }),
    positionFrame(START, 0n),
    one(1),
    one(2),
    positionFrame(at(2), 0n),
    one(3),
    positionFrame(at(5), 0n),
  ];
  made.relayed.apply(Buffer.concat(frames), []);
  expect(Buffer.concat(made.stored())).toEqual(Buffer.concat([one(1), one(2), one(3)]));
  expect(made.published.map(({ closes, endLsn }) => ({ closes, endLsn }))).toEqual([
    { closes: 3, endLsn: at(3) },
  ]);
  expect(made.relayed.position).toBe(at(5));
});

test('frames that lie side by side are not copied, and large amounts become several batches', async () => {
  await using made = make();
  const frames = Buffer.concat(Array.from({ length: 20 }, (_, index) => one(index + 1, 100_000)));
  made.relayed.apply(frames, []);
  expect(made.published.length).toBeGreaterThan(2);
  expect(made.published.every(({ bytes }) => bytes.buffer === frames.buffer)).toBe(true);
  expect(Buffer.concat(made.stored()).equals(frames)).toBe(true);
});

test('a transaction that comes again is left out', async () => {
  await using made = make();
  made.relayed.apply(Buffer.concat([one(1), one(2)]), []);
  made.relayed.abandonParts();
  made.relayed.apply(Buffer.concat([one(1), one(2), one(3)]), []);
  expect(Buffer.concat(made.stored())).toEqual(Buffer.concat([one(1), one(2), one(3)]));
});

test('what was sent of an open transaction is aborted before it comes again', async () => {
  await using made = make();
  const part = partBatch(at(1), [insertItem(1)]).bytes;
  made.relayed.apply(Buffer.concat([one(1), part]), []);
  expect(made.log.openXids).toEqual([700]);
  made.relayed.abandonParts();
  made.relayed.apply(Buffer.concat([part, one(2)]), []);
  expect(Buffer.concat(made.stored())).toEqual(Buffer.concat([one(1), part, abortFrame(700), part, one(2)]));
  // And one that was aborted by whoever sends it stays so.
  made.relayed.apply(abortBatch(at(2)).bytes, []);
  expect(made.log.openXids).toEqual([]);
});
