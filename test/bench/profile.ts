import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** What every process of ours is to write down, and where. */
export interface Profile {
  readonly kind: 'cpu' | 'allocations';
  readonly directory: string;
}

const ALLOCATIONS = fileURLToPath(new URL('note-allocations.ts', import.meta.url));

/** Environment of a process that is profiled: one file per thread, a directory per kind of process, because they do not say whose they are. */
export function profiling(name: string, profile: Profile | undefined): Record<string, string> {
  if (profile === undefined) return {};
  const directory = join(profile.directory, name.replaceAll(/\W+/g, '-'));
  if (profile.kind === 'cpu') return { NODE_OPTIONS: `--cpu-prof --cpu-prof-dir=${directory}` };
  mkdirSync(directory, { recursive: true });
  return { NODE_OPTIONS: `--import=${ALLOCATIONS}`, ALLOCATIONS_DIRECTORY: directory };
}
