import type { Log } from '../log.ts';
import type { PruneReport } from './pruner.ts';

const SWEEP_INTERVAL_MS = 24 * 60 * 60_000;

interface StoreUpkeepOptions {
  readonly log: Log;
  readonly prune: () => Promise<PruneReport>;
  /** Deletes what uploads that were killed left, and gives its number. */
  readonly sweep: () => Promise<number>;
}

/** What is done for a store behind each snapshot, and said of it: old things go; leftovers, once a day. */
export class StoreUpkeep {
  readonly #options: StoreUpkeepOptions;
  #sweptAtMs = performance.now();

  constructor(options: StoreUpkeepOptions) {
    this.#options = options;
  }

  async run(): Promise<void> {
    const { log, prune, sweep } = this.#options;
    const { removedSnapshots, removedSegments, deletedObjects } = await prune();
    if (removedSnapshots + removedSegments + deletedObjects > 0)
      log.info({ removedSnapshots, removedSegments, deletedObjects }, 'the object store was pruned');
    if (performance.now() - this.#sweptAtMs < SWEEP_INTERVAL_MS) return;
    this.#sweptAtMs = performance.now();
    const leftovers = await sweep();
    if (leftovers > 0) log.info({ leftovers }, 'leftovers in the object store were deleted');
  }
}
