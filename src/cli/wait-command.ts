import { required } from '../config.ts';
import { EXIT, RivuletError } from '../errors.ts';
import { formatLsn } from '../lsn.ts';
import { type Command, print } from './command.ts';
import { formatBytes, formatDuration } from './format.ts';

const DEFAULT_TIMEOUT_MS = 30_000;

/** The wait itself is woken by the file; this is for whoever watches it. */
const PROGRESS_INTERVAL_MS = 100;

export const waitCommand: Command = {
  name: 'wait',
  summary: 'wait until a replica file has reached a position',
  details:
    'What to wait for is a token, or pg_current_wal_insert_lsn() after COMMIT. Exit code 0: the file contains it;\n' +
    '3: timeout.',
  options: ['file', 'lsn', 'timeout', 'json'],
  async run(settings, { stdout, terminal, signal }) {
    const file = required(settings, 'file');
    const target = required(settings, 'lsn');
    const timeoutMs = settings.timeout ?? DEFAULT_TIMEOUT_MS;
    const lsn = typeof target === 'bigint' ? target : target.lsn;
    // Loaded on use, here and in the other commands: help and usage errors need no database driver.
    const { openReader } = await import('../read/reader.ts');
    using reader = openReader({ file });
    const startedAt = performance.now();
    const behind = (): string =>
      `${file} is at ${formatLsn(reader.position)}, ${formatBytes(Number(lsn - reader.position))} of WAL behind ${formatLsn(lsn)}`;
    const report = (isReached: boolean): Promise<void> =>
      print(
        stdout,
        JSON.stringify({
          reached: isReached,
          epoch: reader.epoch,
          position: formatLsn(reader.position),
          lsn: formatLsn(lsn),
          waitedMs: Math.round(performance.now() - startedAt),
        }),
      );
    const showProgress = setInterval(() => {
      try {
        // Made now: the reader may be closed when the text is shown.
        const text = `waiting: ${behind()}`;
        terminal.progress(() => text);
      } catch {
        // The file cannot be read any more: the wait says so.
      }
    }, PROGRESS_INTERVAL_MS);
    try {
      await reader.waitFor(target, { timeoutMs, signal });
    } catch (error) {
      if (signal.aborted) throw new RivuletError('CLOSED', `interrupted: ${behind()}`);
      if (!(error instanceof RivuletError) || error.code !== 'WAIT_TIMEOUT') throw error;
      if (settings.json === true) await report(false);
      throw new RivuletError('WAIT_TIMEOUT', `after ${formatDuration(timeoutMs)} ${behind()}`, {
        hint: "'rivulet status' shows whether a replica keeps this file and how far behind it is",
      });
    } finally {
      clearInterval(showProgress);
    }
    if (settings.json === true) await report(true);
    else await print(stdout, `${file} is at ${formatLsn(reader.position)}, which contains ${formatLsn(lsn)}`);
    return EXIT.done;
  },
};
