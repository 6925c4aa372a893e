import { required } from '../config.ts';
import { EXIT } from '../errors.ts';
import { type Command, print } from './command.ts';
import { wantsColour } from './format.ts';

export const doctorCommand: Command = {
  name: 'doctor',
  summary: 'tell how a server and its tables will be mirrored, or what a migration does to the replicas',
  details:
    'Changes nothing on the server, and works before and after set-up. With --migration it tells of each statement\n' +
    'of a SQL file what it would do to the replicas (and runs none of them); without --postgres it then knows only\n' +
    'what the file itself makes. Exit code 1 if something will stop replication, or if replicas cannot follow.',
  options: ['postgres', 'publication', 'slot', 'tables', 'migration', 'json'],
  async run(settings, { stdout }) {
    const options = {
      publication: settings.publication ?? 'rivulet',
      slot: settings.slot ?? 'rivulet',
      tables: settings.tables,
    };
    const page = {
      colour: wantsColour(stdout),
      columns: stdout.isTTY === true ? (stdout.columns ?? 80) : null,
      verbose: settings.verbose === true,
    };
    if (settings.migration !== undefined) {
      const { examineMigration } = await import('./doctor/migration/migration.ts');
      const { formatMigrationReport } = await import('./doctor/migration/report.ts');
      const report = await examineMigration({
        ...options,
        file: settings.migration,
        url: settings.postgres ?? null,
      });
      await print(
        stdout,
        settings.json === true ? JSON.stringify(report, null, 2) : formatMigrationReport(report, page),
      );
      return report.isBad ? EXIT.failed : EXIT.done;
    }
    const { examine } = await import('./doctor/doctor.ts');
    const { formatDoctorReport } = await import('./doctor/report.ts');
    const report = await examine({ ...options, url: required(settings, 'postgres') });
    await print(
      stdout,
      settings.json === true ? JSON.stringify(report, null, 2) : formatDoctorReport(report, page),
    );
    return report.severity === 'problem' ? EXIT.failed : EXIT.done;
  },
};
