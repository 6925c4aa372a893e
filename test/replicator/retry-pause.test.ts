import { expect, test } from 'vitest';
import { RivuletError } from '../../src/errors.ts';
import { RetryPause } from '../../src/replicator/retry-pause.ts';

const broken = new RivuletError('POSTGRES_UNREACHABLE', 'the connection broke');
const lost = new RivuletError('SLOT_LOST', 'the slot is gone');

function setUp(): { pause: RetryPause; pass(ms: number): void } {
  let nowMs = 1_000_000;
  // No jitter: 0.75 + 1 × 0.25.
  const pause = new RetryPause({ now: () => nowMs, random: () => 1 });
  return {
    pause,
    pass(ms) {
      nowMs += ms;
    },
  };
}

test('pauses double up to ten seconds while nothing can be reached', () => {
  const { pause } = setUp();
  const pauses = Array.from({ length: 9 }, () => {
    pause.connecting(5n);
    return pause.after(broken, 5n);
  });
  expect(pauses).toEqual([100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
});

test('a stream that begins and fails where it failed before does not end the row', () => {
  const { pause, pass } = setUp();
  const pauses = Array.from({ length: 4 }, () => {
    pause.connecting(5n);
    pause.streaming();
    pass(300);
    return pause.after(broken, 5n);
  });
  expect(pauses).toEqual([100, 200, 400, 800]);
});

test('a position that moved ends the row, and so does a connection that held', () => {
  const { pause, pass } = setUp();
  const attempt = (heldMs: number, moved: bigint): number => {
    pause.connecting(5n);
    pause.streaming();
    pass(heldMs);
    return pause.after(broken, 5n + moved);
  };
  expect([attempt(10, 0n), attempt(10, 0n), attempt(10, 1n), attempt(10, 0n)]).toEqual([100, 200, 100, 200]);
  expect(attempt(11_000, 0n)).toBe(100);
  expect(pause.failures).toBe(1);
});

test('a connection that takes long to be refused is not one that held', () => {
  const { pause, pass } = setUp();
  pause.after(broken, 5n);
  pause.connecting(5n);
  pass(20_000);
  expect(pause.after(broken, 5n)).toBe(200);
});

test('the first lost history is followed at once, more that do not last wait up to a minute', () => {
  const { pause, pass } = setUp();
  // One from an earlier run: nobody knows how long it lasted.
  expect(pause.after(lost, 5n)).toBe(100);
  const pauses = Array.from({ length: 8 }, () => {
    pause.epochBegan();
    pass(1_000);
    return pause.after(lost, null);
  });
  expect(pauses).toEqual([1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000]);
  pause.connecting(null);
  pause.epochBegan();
  pause.streaming();
  pass(61_000);
  expect(pause.after(lost, 7n)).toBe(100);
});
