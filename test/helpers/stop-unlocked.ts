import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { platform } from 'node:process';
import Database from 'better-sqlite3';
import type { RivuletProcess } from './processes.ts';
import { waitUntil } from './wait-until.ts';

/**
 * Stops a process (SIGSTOP) at a moment when it does not hold the lock of the file store in `directory`: stopped
 * with it, it would keep everybody else from writing until it goes on.
 */
export async function stopUnlocked(stopping: RivuletProcess, directory: string): Promise<void> {
  const lock = new Database(join(directory, '.lock'), { timeout: 10_000 });
  try {
    lock.exec('BEGIN EXCLUSIVE');
    await stopping.kill('SIGSTOP');
    if (platform === 'linux')
      await waitUntil('the process to stand still', () => stateOf(stopping.pid) === 'T');
  } finally {
    lock.close();
  }
}

/** https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html: behind the name in parentheses. */
function stateOf(pid: number): string {
  return readFileSync(`/proc/${pid}/stat`, 'utf8').replace(/^.*\) /s, '')[0]!;
}
