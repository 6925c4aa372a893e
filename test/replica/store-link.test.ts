import { getEventListeners } from 'node:events';
import { setImmediate } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { Credit } from '../../src/replica/store-link.ts';

const HALF = 9 * 1024 * 1024;

test('waiting for credit leaves nothing behind at the signal', async () => {
  const { signal } = new AbortController();
  const credit = new Credit();
  await credit.take(HALF, signal);
  for (let round = 0; round < 3; round++) {
    const taken = credit.take(HALF, signal);
    await setImmediate();
    expect(getEventListeners(signal, 'abort')).toHaveLength(1);
    credit.give(HALF);
    await taken;
    expect(getEventListeners(signal, 'abort')).toHaveLength(0);
  }
});

test('whoever waits for credit is let go by the signal', async () => {
  const stop = new AbortController();
  const credit = new Credit();
  await credit.take(HALF, stop.signal);
  const taken = credit.take(HALF, stop.signal);
  stop.abort(new Error('over'));
  await expect(taken).rejects.toThrow('over');
});
