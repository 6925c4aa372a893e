import { constants, PerformanceObserver } from 'node:perf_hooks';

/** Loaded into a process before its program (`--import`): says on stderr when a collection of garbage took long. */
const NOTED_MS = 10;

new PerformanceObserver((list) => {
  // Entries of this type have a kind, which the types leave out.
  for (const entry of list.getEntries()) {
    const { duration, detail } = entry as typeof entry & { readonly detail: { readonly kind: number } };
    if (duration < NOTED_MS) continue;
    const { kind } = detail;
    const name = kind === constants.NODE_PERFORMANCE_GC_MAJOR ? 'full' : 'small';
    process.stderr.write(`collection ${name} ${Math.round(duration)}\n`);
  }
}).observe({ entryTypes: ['gc'] });
