import { type ErrorDetails, isDiskFull, RivuletError } from '../errors.ts';

/** What SQLite and the file system throw, in our words; our own errors stay as they are. */
export function explainSqliteError(
  cause: unknown,
  step: string,
  facts: NonNullable<ErrorDetails['facts']> = {},
): RivuletError {
  if (cause instanceof RivuletError) return cause;
  const code = (cause as { code?: unknown } | null)?.code;
  // The -shm file grows by whole pages of its own; SQLite reports a full disk there as this.
  if (isDiskFull(cause) || code === 'SQLITE_IOERR_SHMSIZE') {
    return new RivuletError('DISK_FULL', `${step}: no space is left on the device`, {
      cause,
      hint: 'free some space: the work goes on by itself',
      facts,
    });
  }
  const message = cause instanceof Error ? cause.message : String(cause);
  if (code === 'SQLITE_BUSY' || code === 'SQLITE_LOCKED') {
    return new RivuletError('FILE_LOCKED', `${step}: another process is writing to it`, { cause });
  }
  return new RivuletError('FILE_UNUSABLE', `${step}: ${message}`, {
    cause,
    hint: 'check the disk and the permissions; if the file is damaged, remove it from the data directory, with its -wal and -shm, and start again: a new copy is made',
  });
}
