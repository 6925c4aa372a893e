import { required, type Settings } from '../config.ts';
import { ConfigError, EXIT } from '../errors.ts';
import { type Command, type Context, print } from './command.ts';
import { formatDigestReport } from './digest-report.ts';
import { wantsColour } from './format.ts';
import { runDigest } from './replicator-client.ts';
import { formatVerifyReport, verifyProgressText } from './verify-report.ts';

export const verifyCommand: Command = {
  name: 'verify',
  summary: 'compare a replica file with Postgres, at one exact position',
  details:
    'Works on a file that a replica keeps current, under load, and keeps nobody waiting. A file that no process\n' +
    'keeps is brought forward first where --replicator is given. With --replicator alone, all its replicas are compared\n' +
    'with each other, without Postgres. Exit code 0: equal; 4: different, and what.',
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
  async run(settings, context) {
    const { file, postgres, replicator } = settings;
    if (file === undefined && postgres === undefined && replicator !== undefined)
      return await compareReplicas(replicator, settings, context);
    if (file === undefined && postgres === undefined) {
      throw new ConfigError('there is nothing to compare', {
        hint: 'give --file PATH and --postgres URL; or --replicator URL alone, to compare all its replicas with each other',
      });
    }
    if (file !== undefined && postgres === undefined && replicator !== undefined) {
      throw new ConfigError('a file is compared with Postgres, and there is no --postgres', {
        hint: 'give --postgres URL; or --replicator URL alone, to compare all its replicas with each other',
      });
    }
    return await compareFile(settings, context);
  },
};

/** One file with Postgres, row by row where they differ. */
async function compareFile(settings: Settings, { stdout, terminal, signal, log }: Context): Promise<number> {
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
}

/** All live replicas of a replicator with each other, by digests that they make at one position. */
async function compareReplicas(
  replicator: string,
  settings: Settings,
  { stdout, terminal, signal }: Context,
): Promise<number> {
  terminal.progress(() => `the replicas of ${replicator} make digests of their tables`);
  const report = await runDigest(replicator, { token: settings.token, signal });
  terminal.endProgress();
  await print(
    stdout,
    settings.json === true
      ? JSON.stringify(report, null, 2)
      : formatDigestReport(report, { colour: wantsColour(stdout) }),
  );
  if (report.differing.length > 0) return EXIT.different;
  return report.silent.length === 0 ? EXIT.done : EXIT.failed;
}
