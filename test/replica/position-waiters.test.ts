import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { RivuletError } from '../../src/errors.ts';
import { PositionWaiters, type PositionWaitersOptions } from '../../src/replica/position-waiters.ts';
import { encodeToken } from '../../src/token.ts';

const EPOCH = 'aaaa';
const OTHER = 'bbbb';

function waitersAt(lsn: bigint, options: Partial<PositionWaitersOptions> = {}) {
  const current = { epoch: EPOCH, lsn };
  return { current, waiters: new PositionWaiters({ current: () => current, ...options }) };
}

describe('waiting for a position', () => {
  test('each is woken by the move that brings it there, in whatever order they came and left', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.record({ lsn: fc.bigInt(1n, 60n), leaves: fc.boolean() }), { maxLength: 60 }),
        fc.array(fc.bigInt(0n, 9n), { maxLength: 12 }),
        async (readers, steps) => {
          const { current, waiters } = waitersAt(0n);
          const woken = new Map<number, bigint>();
          const stops = readers.map(() => new AbortController());
          readers.forEach(({ lsn }, index) => {
            waiters.waitFor(lsn, { signal: stops[index]!.signal, timeoutMs: 10_000 }).then(
              () => woken.set(index, current.lsn),
              () => undefined,
            );
          });
          readers.forEach(({ leaves }, index) => {
            if (leaves) stops[index]!.abort();
          });
          for (const step of steps) {
            current.lsn += step;
            waiters.moved();
            await new Promise((resolve) => setImmediate(resolve));
          }
          readers.forEach(({ lsn, leaves }, index) => {
            const isDue = !leaves && lsn <= current.lsn;
            expect(woken.has(index)).toBe(isDue);
            if (isDue) expect(woken.get(index)! >= lsn).toBe(true);
          });
          expect(waiters.size).toBe(readers.filter(({ lsn, leaves }) => !leaves && lsn > current.lsn).length);
          waiters.close(new RivuletError('CLOSED', 'over'));
          expect(waiters.size).toBe(0);
        },
      ),
      { numRuns: 200 },
    );
  });

  test('what a reader was shown beside tables that are read again is waited for too', async () => {
    const { current, waiters } = waitersAt(10n) as {
      current: { epoch: string; lsn: bigint; seen?: bigint };
      waiters: PositionWaiters;
    };
    const woken: string[] = [];
    const wait = (name: string, lsn: bigint, seen: bigint, signal?: AbortSignal): Promise<void> =>
      waiters.waitFor({ epoch: EPOCH, lsn, seen }, { timeoutMs: 10_000, signal }).then(() => {
        woken.push(name);
      });
    const gone = new AbortController();
    const waits = [wait('shown 30', 5n, 30n), wait('at 12', 12n, 15n), wait('shown 20', 5n, 20n)];
    const left = wait('gone', 5n, 25n, gone.signal);
    const move = async (lsn: bigint, seen: bigint): Promise<void> => {
      Object.assign(current, { lsn, seen });
      waiters.moved();
      await new Promise((resolve) => setImmediate(resolve));
    };
    await move(10n, 20n);
    expect(woken).toEqual(['shown 20']);
    gone.abort();
    await expect(left).rejects.toThrow();
    await move(12n, 25n);
    expect(woken).toEqual(['shown 20', 'at 12']);
    expect(waiters.size).toBe(1);
    await move(12n, 30n);
    expect(woken).toEqual(['shown 20', 'at 12', 'shown 30']);
    await Promise.all(waits);
    // Nothing lasts where it is there already.
    await waiters.waitFor({ epoch: EPOCH, lsn: 12n, seen: 30n }, { timeoutMs: 0 });
  });

  test('a token of another history is told at once, and when the file is replaced', async () => {
    const { current, waiters } = waitersAt(100n);
    for (const lsn of [50n, 150n]) {
      await expect(waiters.waitFor({ epoch: OTHER, lsn })).rejects.toMatchObject({ code: 'EPOCH_MISMATCH' });
    }
    const waiting = waiters.waitFor(encodeToken({ epoch: EPOCH, lsn: 150n }));
    const plain = waiters.waitFor(150n);
    const replaced = expect(waiting).rejects.toMatchObject({ code: 'EPOCH_MISMATCH' });
    current.epoch = OTHER;
    waiters.entered();
    await replaced;
    expect(waiters.size).toBe(1);
    current.lsn = 150n;
    waiters.moved();
    await plain;
  });

  test('what no server can have written is not waited for, and nobody waits for ever', async () => {
    const { waiters } = waitersAt(100n);
    await expect(waiters.waitFor({ epoch: EPOCH, lsn: 2n ** 63n })).rejects.toMatchObject({
      code: 'TOKEN_IMPOSSIBLE',
    });
    for (const bad of ['nonsense', undefined, 7, {}, { epoch: EPOCH, lsn: 7 }])
      await expect(waiters.waitFor(bad as string)).rejects.toMatchObject({ code: 'TOKEN_MALFORMED' });
    await waiters.waitFor(null);
    await expect(waiters.waitFor(101n, { timeoutMs: 0 })).rejects.toMatchObject({ code: 'WAIT_TIMEOUT' });
    await expect(waiters.waitFor(101n, { timeoutMs: 5 })).rejects.toMatchObject({
      code: 'WAIT_TIMEOUT',
      facts: { lsn: 101n, position: 100n },
    });
    for (const timeoutMs of [-1, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 31])
      await expect(waiters.waitFor(101n, { timeoutMs })).rejects.toMatchObject({ code: 'CONFIG' });
    expect(waiters.size).toBe(0);
  });

  test('their number is bounded', async () => {
    const { current, waiters } = waitersAt(0n, { maxWaiters: 2 });
    const both = [waiters.waitFor(1n), waiters.waitFor(2n)];
    await expect(waiters.waitFor(3n)).rejects.toMatchObject({ code: 'TOO_MANY_WAITERS' });
    await waiters.waitFor(0n);
    current.lsn = 2n;
    waiters.moved();
    await Promise.all(both);
  });

  test('after the end only what is there already is answered', async () => {
    const { waiters } = waitersAt(10n);
    const waiting = expect(waiters.waitFor(11n)).rejects.toMatchObject({ code: 'CLOSED' });
    waiters.close(new RivuletError('CLOSED', 'over'));
    await waiting;
    await expect(waiters.waitFor(11n)).rejects.toMatchObject({ code: 'CLOSED' });
    await waiters.waitFor(10n);
  });

  test('with keys, only signed tokens are taken', async () => {
    const tokenKeys = { current: { id: 'k', secret: 'sixteen bytes or more' } };
    const { waiters } = waitersAt(10n, { tokenKeys });
    await waiters.waitFor(encodeToken({ epoch: EPOCH, lsn: 9n }, tokenKeys));
    await expect(waiters.waitFor(encodeToken({ epoch: EPOCH, lsn: 9n }))).rejects.toMatchObject({
      code: 'TOKEN_FORGED',
    });
  });

  test('10,000 cost little while they wait', async () => {
    const { current, waiters } = waitersAt(0n);
    const stop = new AbortController();
    const before = process.memoryUsage().heapUsed;
    const waiting = Array.from({ length: 10_000 }, (_, index) =>
      waiters.waitFor(1_000_000n + BigInt(index), { timeoutMs: 60_000 + (index % 100), signal: stop.signal }),
    );
    const perWaiter = (process.memoryUsage().heapUsed - before) / waiting.length;
    expect(perWaiter).toBeLessThan(10_000);
    const startedAtMs = performance.now();
    for (let lsn = 1n; lsn <= 10_000n; lsn++) {
      current.lsn = lsn;
      waiters.moved();
    }
    const perMoveUs = ((performance.now() - startedAtMs) * 1000) / 10_000;
    expect(perMoveUs).toBeLessThan(50);
    current.lsn = 2_000_000n;
    waiters.moved();
    await Promise.all(waiting);
  });
});
