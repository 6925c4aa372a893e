/** First and longest pause between attempts to reach Postgres, ms. */
const FIRST_MS = 100;
const LONGEST_MS = 10_000;

/** Pause before attempt `attempt` + 1: doubling, bounded, with a quarter of jitter so that many do not come at once. */
export function backoffMs(attempt: number, random: () => number = Math.random): number {
  const pause = Math.min(LONGEST_MS, FIRST_MS * 2 ** Math.min(attempt, 20));
  return Math.round(pause * (0.75 + random() * 0.25));
}
