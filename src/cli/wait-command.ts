import { setTimeout as delay } from 'node:timers/promises';
import { required } from '../config.ts';
import { EXIT, RivuletError } from '../errors.ts';
import { formatLsn } from '../lsn.ts';
import { type Command, print } from './command.ts';
import { formatBytes, formatDuration } from './format.ts';

const DEFAULT_TIMEOUT_MS = 30_000;

/** A look at the position costs some microseconds, so a waiting process may look often. */
const POLL_INTERVAL_MS = 4;

export const waitCommand: Command = {
  name: 'wait',
  summary: 'wait until a replica file has reached a position',
  details:
    'The LSN to wait for is pg_current_wal_insert_lsn() after COMMIT. Exit code 0: the file contains it; 3: timeout.',
  options: ['file', 'lsn', 'timeout', 'json'],
  async run(settings, { stdout, terminal, signal }) {
    const file = required(settings, 'file');
    const target = required(settings, 'lsn');
    const timeoutMs = settings.timeout ?? DEFAULT_TIMEOUT_MS;
    // Loaded on use, here and in the other commands: help and usage errors need no database driver.
    const { checkSqliteVersion } = await import('../replica/replica-file.ts');
    const { ReplicaPositionReader } = await import('../read/position-reader.ts');
    checkSqliteVersion();
    using reader = new ReplicaPositionReader(file);
    const startedAt = performance.now();
    for (;;) {
      const position = reader.read();
      const waitedMs = performance.now() - startedAt;
      const isReached = position.lsn >= target;
      if (isReached && settings.json !== true)
        await print(stdout, `${file} is at ${formatLsn(position.lsn)}, which contains ${formatLsn(target)}`);
      if (settings.json === true && (isReached || waitedMs >= timeoutMs)) {
        await print(
          stdout,
          JSON.stringify({
            reached: isReached,
            epoch: position.epoch,
            position: formatLsn(position.lsn),
            lsn: formatLsn(target),
            waitedMs: Math.round(waitedMs),
          }),
        );
      }
      if (isReached) return EXIT.done;
      const behind = `${formatBytes(Number(target - position.lsn))} of WAL behind ${formatLsn(target)}`;
      if (waitedMs >= timeoutMs) {
        throw new RivuletError(
          'WAIT_TIMEOUT',
          `after ${formatDuration(timeoutMs)} ${file} is at ${formatLsn(position.lsn)}, ${behind}`,
          {
            hint: "'rivulet status' shows whether a replica keeps this file and how far behind it is",
          },
        );
      }
      if (signal.aborted)
        throw new RivuletError(
          'CLOSED',
          `interrupted while ${file} was at ${formatLsn(position.lsn)}, ${behind}`,
        );
      terminal.progress(() => `waiting: ${file} is at ${formatLsn(position.lsn)}, ${behind}`);
      // Rejects on a signal; the loop's next turn says so.
      await delay(Math.min(POLL_INTERVAL_MS, timeoutMs - waitedMs), undefined, { signal }).catch(
        () => undefined,
      );
    }
  },
};
