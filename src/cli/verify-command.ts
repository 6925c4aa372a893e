import { required } from '../config.ts';
import { EXIT } from '../errors.ts';
import { type Command, print } from './command.ts';
import { wantsColour } from './format.ts';
import { formatVerifyReport, verifyProgressText } from './verify-report.ts';

export const verifyCommand: Command = {
  name: 'verify',
  summary: 'compare a replica file with Postgres, at one exact position',
  details:
    'Works on a file that a replica keeps current, under load, and keeps nobody waiting. A file that no process\n' +
    'keeps is brought forward first where --replicator is given. Exit code 0: equal; 4: different, and which rows.',
  options: [
    'postgres',
    'file',
    'tables',
    'repair',
    'replicator',
    'token',
    'token-file',
    'publication',
    'slot',
    'timeout',
    'snapshot-limit',
    'json',
  ],
  async run(settings, { stdout, terminal, signal, log }) {
    const file = required(settings, 'file');
    const postgres = required(settings, 'postgres');
    const { checkSqliteVersion } = await import('../replica/replica-file.ts');
    checkSqliteVersion();
    const { checkSameDatabase } = await import('./same-database.ts');
    await checkSameDatabase(file, postgres);
    const { openReplica } = await import('../replica/replica.ts');
    const { replicator, token } = settings;
    await using _replica =
      replicator === undefined ? null : await openReplica({ file, replicator, token, log, signal });
    const { Verifier } = await import('../verify/verifier.ts');
    await using verifier = new Verifier({
      postgres,
      file,
      publication: settings.publication ?? 'rivulet',
      slot: settings.slot ?? 'rivulet',
      tables: settings.tables,
      fileTimeoutMs: settings.timeout,
      snapshotLimitMs: settings['snapshot-limit'],
      signal,
      onProgress: (progress) => terminal.progress(() => verifyProgressText(progress)),
    });
    let report = await verifier.run();
    if (settings.repair === true && report.tables.some(({ verdict }) => verdict === 'different'))
      report = await verifier.repair();
    terminal.endProgress();
    await print(
      stdout,
      settings.json === true
        ? JSON.stringify(report, null, 2)
        : formatVerifyReport(report, { colour: wantsColour(stdout) }),
    );
    if (!report.complete) return EXIT.failed;
    return report.equal ? EXIT.done : EXIT.different;
  },
};
