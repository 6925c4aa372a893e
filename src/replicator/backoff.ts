export interface Backoff {
  readonly firstMs: number;
  readonly longestMs: number;
}

/** Pauses between attempts to go on with the history that there is. */
export const RECONNECT: Backoff = { firstMs: 100, longestMs: 10_000 };

/** Pauses before another copy when one history after the other did not last: copies are expensive. */
export const START_OVER: Backoff = { firstMs: 1_000, longestMs: 60_000 };

/** Pause before attempt `attempt` + 1: doubling, bounded, with a quarter of jitter so that many do not come at once. */
export function backoffMs(
  attempt: number,
  { firstMs, longestMs }: Backoff = RECONNECT,
  random: () => number = Math.random,
): number {
  const pause = Math.min(longestMs, firstMs * 2 ** Math.min(attempt, 20));
  return Math.round(pause * (0.75 + random() * 0.25));
}
