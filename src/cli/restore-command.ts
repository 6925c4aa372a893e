import { required } from '../config.ts';
import { ConfigError, EXIT } from '../errors.ts';
import { formatLsn } from '../lsn.ts';
import type { RestoreTarget } from '../snapshot/rebuild.ts';
import { type Command, print } from './command.ts';
import { transferProgressText } from './copy-progress.ts';
import { formatBytes } from './format.ts';

export const restoreCommand: Command = {
  name: 'restore',
  summary: 'make a SQLite file with the content of one moment of the past',
  details:
    'From the snapshots and segments in an object store: everything up to a position, or everything before the\n' +
    'first transaction that committed after a time; without either, the newest there is. The file is plain and\n' +
    'not live: no replica follows with it. `rivulet snapshot list` shows what can be restored.',
  options: ['store', 'store-endpoint', 'file', 'to-lsn', 'to-time', 'json'],
  async run(settings, { stdout, terminal, log, signal }) {
    const url = required(settings, 'store');
    const file = required(settings, 'file');
    const lsn = settings['to-lsn'];
    const time = settings['to-time'];
    if (lsn !== undefined && time !== undefined)
      throw new ConfigError('--to-lsn and --to-time exclude each other', { hint: 'give one of them' });
    const target: RestoreTarget = lsn !== undefined ? { lsn } : time !== undefined ? { time } : 'newest';
    const { checkSqliteVersion } = await import('../replica/replica-file.ts');
    const { openStore } = await import('../store/open-store.ts');
    const { restore } = await import('../snapshot/restore.ts');
    checkSqliteVersion();
    await using store = await openStore({ url, endpoint: settings['store-endpoint'] });
    const startedAtMs = performance.now();
    const begun = new Map<string, number>();
    const report = await restore({
      store,
      file,
      target,
      signal,
      onProgress: ({ step, ...progress }) => {
        const sinceMs = begun.get(step) ?? performance.now();
        begun.set(step, sinceMs);
        terminal.progress(() => transferProgressText(step, progress, performance.now() - sinceMs));
      },
      onWarning: (message) => log.warn(message),
    });
    terminal.endProgress();
    const position = formatLsn(report.position);
    const tookMs = Math.round(performance.now() - startedAtMs);
    if (settings.json === true) {
      await print(
        stdout,
        JSON.stringify({ ...report, file, position, snapshot: formatLsn(report.snapshot), tookMs }),
      );
    } else {
      await print(
        stdout,
        `${file} is as of ${position}, newest commit ${report.commitTime ?? 'none'} ` +
          `(${formatBytes(report.downloadedBytes)} of a snapshot, ${formatBytes(report.appliedBytes)} of changes)`,
      );
    }
    return EXIT.done;
  },
};
