import { required } from '../config.ts';
import { EXIT } from '../errors.ts';
import { type Command, print } from './command.ts';
import { wantsColour } from './format.ts';

export const doctorCommand: Command = {
  name: 'doctor',
  summary: 'tell how a server and its tables will be mirrored, and what stands in the way',
  details:
    'Changes nothing on the server, and works before and after set-up. Exit code 1 if something will stop\n' +
    'replication.',
  options: ['postgres', 'publication', 'slot', 'tables', 'json'],
  async run(settings, { stdout }) {
    const url = required(settings, 'postgres');
    const { examine } = await import('./doctor/doctor.ts');
    const { formatDoctorReport } = await import('./doctor/report.ts');
    const report = await examine({
      url,
      publication: settings.publication ?? 'rivulet',
      slot: settings.slot ?? 'rivulet',
      tables: settings.tables,
    });
    const page = {
      colour: wantsColour(stdout),
      columns: stdout.isTTY === true ? (stdout.columns ?? 80) : null,
      verbose: settings.verbose === true,
    };
    await print(
      stdout,
      settings.json === true ? JSON.stringify(report, null, 2) : formatDoctorReport(report, page),
    );
    return report.severity === 'problem' ? EXIT.failed : EXIT.done;
  },
};
