import { required } from '../config.ts';
import { EXIT } from '../errors.ts';
import { type Command, print } from './command.ts';
import { paint, wantsColour } from './format.ts';

export const setupCommand: Command = {
  name: 'setup',
  summary: 'make the publication and what schema changes need in Postgres',
  details:
    'Safe to run again, and from two places at once. Says what it did and what the server lacks. Nothing that\n' +
    'the application does will fail because of it; `rivulet teardown` takes it all away.',
  options: ['postgres', 'publication', 'slot', 'tables', 'json'],
  async run(settings, { stdout, log, signal }) {
    const url = required(settings, 'postgres');
    const { setup } = await import('../source/setup.ts');
    const report = await setup({
      url,
      log: (message) => log.info(message),
      publication: settings.publication ?? 'rivulet',
      slot: settings.slot ?? 'rivulet',
      tables: settings.tables,
      signal,
    });
    if (settings.json === true) {
      await print(stdout, JSON.stringify(report, null, 2));
      return EXIT.done;
    }
    const colour = wantsColour(stdout);
    const lines = [
      ...(report.did.length === 0 ? ['Everything was in place already.'] : ['Done:']),
      ...report.did.map((each) => `  ${paint(colour, 'green', '+')} ${each}`),
      `${report.tables.length} ${report.tables.length === 1 ? 'table is' : 'tables are'} published.`,
      ...(report.leftOut.length === 0 ? [] : ['Not mirrored:']),
      ...report.leftOut.map(({ table, reason }) => `  ${paint(colour, 'yellow', '-')} ${table}: ${reason}`),
      ...(report.missing.length === 0 ? [] : ['Not as it could be:']),
      ...report.missing.map((each) => `  ${paint(colour, 'yellow', '!')} ${each}`),
    ];
    await print(stdout, lines.join('\n'));
    return EXIT.done;
  },
};
