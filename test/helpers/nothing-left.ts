import { readdirSync, readFileSync } from 'node:fs';
import { expect } from 'vitest';
import { waitUntil } from './wait-until.ts';

/** Processes that work below the demo's directory: its server, its replicator, its replicas. */
function processesBelow(path: string): string[] {
  return readdirSync('/proc')
    .filter((entry) => /^\d+$/.test(entry) && Number(entry) !== process.pid)
    .map((pid) => {
      try {
        return `${pid}: ${readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ')}`;
      } catch {
        return '';
      }
    })
    .filter((line) => line.includes(path));
}

/** Of a demo whose temporary directories lie in `dir`. */
export async function expectNothingLeft(dir: string): Promise<void> {
  expect(readdirSync(dir).filter((name) => name.startsWith('rivulet'))).toEqual([]);
  if (process.platform === 'linux')
    await waitUntil('all processes to be gone', () => processesBelow(dir).length === 0, { timeoutMs: 5_000 });
}
