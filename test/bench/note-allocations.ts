import { writeFileSync } from 'node:fs';
import { Session } from 'node:inspector';
import { join } from 'node:path';
import { threadId } from 'node:worker_threads';

/**
 * Loaded before a program, in each of its threads: samples what is allocated on the heap of JavaScript, also what is
 * collected again (which `--heap-prof` leaves out), and writes it when the thread ends.
 * https://chromedevtools.github.io/devtools-protocol/tot/HeapProfiler/#method-startSampling
 */
const SAMPLING_INTERVAL_BYTES = 64 * 1024;

const session = new Session();
session.connect();
session.post('HeapProfiler.startSampling', {
  samplingInterval: SAMPLING_INTERVAL_BYTES,
  includeObjectsCollectedByMajorGC: true,
  includeObjectsCollectedByMinorGC: true,
});
process.once('exit', () => {
  session.post('HeapProfiler.stopSampling', (error, result) => {
    if (error !== null) throw error;
    const file = join(process.env.ALLOCATIONS_DIRECTORY!, `${process.pid}.${threadId}.heapprofile`);
    writeFileSync(file, JSON.stringify(result.profile));
  });
});
