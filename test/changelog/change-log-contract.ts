import { describe, expect, test } from 'vitest';
import type { ChangeLog, LogCursor } from '../../src/changelog/change-log.ts';
import type { Lsn } from '../../src/lsn.ts';
import { abortBatch, batch, insertItem, partBatch, START } from '../fanout/test-replicator.ts';

/** How the contract reaches one engine. */
export interface ChangeLogEngine {
  readonly name: string;
  /** A new, empty log that begins at START, of epoch `e1`. */
  create(): Promise<TestLog>;
}

export interface TestLog extends AsyncDisposable {
  log: ChangeLog;
  /** Opens the same log again, as after the process died. */
  reopen(): Promise<void>;
}

export function readAll(cursor: LogCursor, maxBytes = 1): Buffer[] {
  const all: Buffer[] = [];
  for (let bytes = cursor.next(maxBytes); bytes !== null; bytes = cursor.next(maxBytes))
    all.push(Buffer.from(bytes));
  return all;
}

const at = (index: number): Lsn => START + BigInt(index) * 0x100n;
const one = (index: number) => batch(at(index), [insertItem(index)]);
const KEEP_ALL = {
  maxAgeMs: Number.POSITIVE_INFINITY,
  maxBytes: Number.POSITIVE_INFINITY,
  keepFrom: 1n << 62n,
} as const;

/** Every engine of the change log must pass this. */
export function describeChangeLog(engine: ChangeLogEngine): void {
  describe(`change log in ${engine.name}`, () => {
    test('is empty at its start position', async () => {
      await using it = await engine.create();
      const { log } = it;
      expect(log.position).toBe(START);
      expect(log.oldestPosition).toBe(START);
      expect(log.durablePosition).toBe(START);
      expect(log.headSeq).toBe(0);
      expect(log.openCursor(START).next(1000)).toBeNull();
      expect(log.size()).toMatchObject({ batches: 0 });
    });

    test('gives back what was appended, byte for byte, from any position', async () => {
      await using it = await engine.create();
      const batches = [one(1), one(2), one(3)];
      for (const each of batches) it.log.append(each);
      expect(it.log.position).toBe(at(3));
      for (let from = 0; from <= 3; from++) {
        expect(readAll(it.log.openCursor(at(from)))).toEqual(batches.slice(from).map(({ bytes }) => bytes));
      }
      // Between two ends: the transaction that ends behind it is still lacking.
      expect(readAll(it.log.openCursor(at(1) + 1n))).toHaveLength(2);
    });

    test('joins batches up to the size asked for, and never gives less than one', async () => {
      await using it = await engine.create();
      const batches = [one(1), one(2), one(3)];
      for (const each of batches) it.log.append(each);
      const size = batches[0]!.bytes.length;
      expect(readAll(it.log.openCursor(START), size * 2).map((bytes) => bytes.length)).toEqual([
        size * 2,
        size,
      ]);
      expect(readAll(it.log.openCursor(START), 1)).toHaveLength(3);
    });

    test('a cursor at the head sees what is appended later', async () => {
      await using it = await engine.create();
      const cursor = it.log.openCursor(START);
      expect(cursor.next(1)).toBeNull();
      it.log.append(one(1));
      expect(cursor.nextSeq).toBe(1);
      expect(cursor.next(1)).toEqual(expect.any(Buffer));
      expect(cursor.next(1)).toBeNull();
    });

    test('the position moves without data, and never back', async () => {
      await using it = await engine.create();
      it.log.append(one(1));
      it.log.advance(at(5));
      expect(it.log.position).toBe(at(5));
      it.log.advance(at(2));
      expect(it.log.position).toBe(at(5));
      await it.reopen();
      expect(it.log.position).toBe(at(5));
      expect(it.log.openCursor(at(5)).next(1)).toBeNull();
      expect(readAll(it.log.openCursor(START))).toHaveLength(1);
    });

    test('refuses positions that it cannot serve', async () => {
      await using it = await engine.create();
      it.log.append(one(1));
      expect(() => it.log.openCursor(START - 1n)).toThrow(
        expect.objectContaining({ code: 'POSITION_TOO_OLD' }),
      );
      expect(() => it.log.openCursor(at(1) + 1n)).toThrow(
        expect.objectContaining({ code: 'POSITION_AHEAD' }),
      );
    });

    test('keeps everything when it is opened again', async () => {
      await using it = await engine.create();
      it.log.append(one(1));
      it.log.append({ ...one(2), sourceState: '{"two":2}' });
      it.log.append(one(3));
      await it.reopen();
      expect(it.log.epoch).toBe('e1');
      expect(it.log.source).toMatchObject({ systemIdentifier: '7000', timeline: 1, database: 'shop' });
      expect(it.log.sourceState).toBe('{"two":2}');
      expect(it.log.position).toBe(at(3));
      expect(readAll(it.log.openCursor(at(1)))).toHaveLength(2);
      it.log.append(one(4));
      expect(readAll(it.log.openCursor(at(3)))).toHaveLength(1);
    });

    test('sync covers what was appended before it', async () => {
      await using it = await engine.create();
      it.log.append(one(1));
      const first = it.log.sync();
      it.log.append(one(2));
      const second = it.log.sync();
      expect(await first).toBeGreaterThanOrEqual(at(1));
      expect(await second).toBe(at(2));
      expect(it.log.durablePosition).toBe(at(2));
    });

    test('many syncs at once all resolve, each with its position', async () => {
      await using it = await engine.create();
      const syncs: Promise<Lsn>[] = [];
      for (let index = 1; index <= 50; index++) {
        it.log.append(one(index));
        syncs.push(it.log.sync());
      }
      const positions = await Promise.all(syncs);
      for (const [index, position] of positions.entries())
        expect(position).toBeGreaterThanOrEqual(at(index + 1));
    });

    describe('a transaction in parts', () => {
      const appendParts = (log: ChangeLog): void => {
        log.append(one(1));
        log.append(partBatch(at(1), [insertItem(100)]));
        log.append(partBatch(at(1), [insertItem(101)]));
      };

      test('is sent from its first part to whoever lacks its end', async () => {
        await using it = await engine.create();
        appendParts(it.log);
        expect(it.log.openXids).toEqual([700]);
        // Its end is still to come: a follower that is at the position needs the parts.
        expect(readAll(it.log.openCursor(at(1)))).toHaveLength(2);
        it.log.append(batch(at(2), [], { hasParts: true, xid: 700 }));
        it.log.append(one(3));
        expect(it.log.openXids).toEqual([]);
        expect(readAll(it.log.openCursor(at(1)))).toHaveLength(4);
        expect(readAll(it.log.openCursor(START))).toHaveLength(5);
        expect(readAll(it.log.openCursor(at(2)))).toHaveLength(1);
      });

      test('is aborted in the log that is opened with its parts at the end', async () => {
        await using it = await engine.create();
        appendParts(it.log);
        await it.reopen();
        expect(it.log.openXids).toEqual([]);
        const tail = readAll(it.log.openCursor(START));
        expect(tail).toHaveLength(4);
        expect(tail[3]).toEqual(abortBatch(at(1)).bytes);
        expect(it.log.position).toBe(at(1));
        expect(it.log.openCursor(at(1)).next(1)).toBeNull();
      });

      test('is never cut in two by pruning', async () => {
        await using it = await engine.create();
        appendParts(it.log);
        it.log.append(batch(at(2), [], { hasParts: true, xid: 700 }));
        it.log.append(one(3));
        it.log.append(one(4));
        await it.log.prune({ ...KEEP_ALL, maxBytes: 0, keepFrom: at(1) });
        // The parts stand at position 1 themselves, yet they belong to what ends at 2.
        expect(it.log.oldestPosition).toBe(at(1));
        expect(readAll(it.log.openCursor(at(1)))).toHaveLength(5);
        await it.log.prune({ ...KEEP_ALL, maxBytes: 0 });
        expect(it.log.oldestPosition).toBeGreaterThanOrEqual(at(2));
        expect(() => it.log.openCursor(at(1))).toThrow(expect.objectContaining({ code: 'POSITION_TOO_OLD' }));
      });
    });

    describe('pruning', () => {
      test('removes the oldest batches beyond the size, but none that is still needed', async () => {
        await using it = await engine.create();
        for (let index = 1; index <= 10; index++) it.log.append(one(index));
        const bytes = it.log.bytesAfter(at(5));
        await it.log.prune({ ...KEEP_ALL, maxBytes: bytes, keepFrom: at(3) });
        expect(it.log.oldestPosition).toBe(at(3));
        expect(it.log.size().batches).toBe(7);
        await it.log.prune({ ...KEEP_ALL, maxBytes: bytes });
        expect(it.log.oldestPosition).toBe(at(5));
        expect(it.log.size().bytes).toBe(bytes);
        expect(() => it.log.openCursor(at(4))).toThrow(expect.objectContaining({ code: 'POSITION_TOO_OLD' }));
        expect(readAll(it.log.openCursor(at(5)))).toHaveLength(5);
        await it.reopen();
        expect(it.log.oldestPosition).toBe(at(5));
        expect(it.log.size().batches).toBe(5);
        expect(readAll(it.log.openCursor(at(5)))).toHaveLength(5);
      });

      test('removes nothing within age and size', async () => {
        await using it = await engine.create();
        for (let index = 1; index <= 5; index++) it.log.append(one(index));
        await it.log.prune(KEEP_ALL);
        expect(it.log.oldestPosition).toBe(START);
      });

      test('a cursor that it overtakes says so', async () => {
        await using it = await engine.create();
        for (let index = 1; index <= 5; index++) it.log.append(one(index));
        const cursor = it.log.openCursor(START);
        cursor.next(1);
        await it.log.prune({ ...KEEP_ALL, maxBytes: 0 });
        expect(() => cursor.next(1)).toThrow(expect.objectContaining({ code: 'POSITION_TOO_OLD' }));
      });

      test('goes through a transaction of many parts', async () => {
        await using it = await engine.create();
        for (let part = 0; part < 700; part++) it.log.append(partBatch(START, [insertItem(part)]));
        it.log.append(batch(at(1), [], { hasParts: true, xid: 700 }));
        for (let index = 2; index <= 4; index++) it.log.append(one(index));
        await it.log.prune({ ...KEEP_ALL, maxBytes: it.log.bytesAfter(at(1)) });
        expect(it.log.oldestPosition).toBe(at(1));
        expect(it.log.size().batches).toBe(3);
      });
    });

    test('tells how much a follower has yet to read', async () => {
      await using it = await engine.create();
      const batches = [one(1), one(2), one(3)];
      for (const each of batches) it.log.append(each);
      expect(it.log.bytesAfter(at(3))).toBe(0);
      expect(it.log.bytesAfter(at(1))).toBe(batches[1]!.bytes.length + batches[2]!.bytes.length);
      expect(it.log.bytesAfter(START)).toBe(it.log.size().bytes);
    });

    test('close may be called twice', async () => {
      await using it = await engine.create();
      await it.log.close();
      await it.log.close();
    });
  });
}
