/**
 * Milliseconds of the machine's monotonic clock: the same in every thread and process of this machine
 * (unlike performance.now(), which counts from each thread's own start).
 */
export function monotonicMs(): number {
  return Number(process.hrtime.bigint()) / 1e6;
}
