import { rm, statfs, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { isDiskFull } from '../errors.ts';

/** Cheap to look at, and soon enough for whoever has just made room. */
const LOOK_INTERVAL_MS = 500;

/** What is really written to try it: quotas do not show in the file system's own figures. */
const PROBE_BYTES = 1024 * 1024;
const PROBE_FILE = 'space-probe';

export interface SpaceNeeded {
  readonly dirs: readonly string[];
  /** Free in each of them. */
  readonly bytes: number;
}

/** Resolves once there is space, or `signal` aborts. Until then nothing but these directories is looked at. */
export async function untilSpace({ dirs, bytes }: SpaceNeeded, signal: AbortSignal): Promise<void> {
  for (;;) {
    const answers = await Promise.all(dirs.map((dir) => hasSpace(dir, bytes)));
    if (answers.every((answer) => answer) || signal.aborted) return;
    await delay(LOOK_INTERVAL_MS, undefined, { signal }).catch(() => undefined);
  }
}

async function hasSpace(dir: string, bytes: number): Promise<boolean> {
  const probe = join(dir, PROBE_FILE);
  try {
    const { bavail, bsize } = await statfs(dir);
    if (bavail * bsize < bytes) return false;
    await writeFile(probe, Buffer.alloc(Math.min(bytes, PROBE_BYTES)), { flush: true });
    return true;
  } catch (error) {
    // Whatever else is the matter, the next try to work there says it.
    return !isDiskFull(error);
  } finally {
    await rm(probe, { force: true }).catch(() => undefined);
  }
}
