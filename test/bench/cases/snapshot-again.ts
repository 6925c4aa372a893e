import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { openStore } from '../../../src/store/open-store.ts';
import type { BenchCase } from '../bench-case.ts';
import { LARGE_POSITION, makeLargeReplica, snapshotter, touchRegion } from '../load/large-replica.ts';

/** Of the file, in one region. */
const TOUCHED = 0.01;

export const snapshotAgain: BenchCase = {
  name: 'snapshot-again',
  title: 'a second snapshot, after 1 % of the file has changed in one region',
  async prepare(context) {
    const file = join(context.directory, 'original.db');
    makeLargeReplica(file, context.sizes.storedFileBytes);
    const directory = join(context.directory, 'store');
    const store = await openStore({ url: pathToFileURL(directory).href });
    const take = await snapshotter(store);
    const first = await take(file, LARGE_POSITION);
    return {
      async run(repetition) {
        const position = LARGE_POSITION + BigInt(repetition + 1) * 0x1000n;
        touchRegion(file, TOUCHED, position);
        const again = await take(file, position);
        return [
          { metric: 'first snapshot', unit: 's', value: first.tookMs / 1000 },
          { metric: 'second snapshot', unit: 's', value: again.tookMs / 1000 },
          {
            metric: 'bytes sent the second time, of the first',
            unit: '%',
            value: (100 * again.sentBytes) / first.sentBytes,
            target: { atMost: 5 },
          },
        ];
      },
      async [Symbol.asyncDispose]() {
        await store.close();
        rmSync(directory, { recursive: true });
      },
    };
  },
};
