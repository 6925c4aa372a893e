import { required } from '../config.ts';
import { EXIT } from '../errors.ts';
import { type Command, print } from './command.ts';
import { paint, wantsColour } from './format.ts';

export const teardownCommand: Command = {
  name: 'teardown',
  summary: 'take away from Postgres all that set-up made, the slot included',
  details:
    'Stop the replicator first: one that runs is cut off from its slot, and does nothing but say so from then on.\n' +
    'Replica files stay as they are.',
  options: ['postgres', 'publication', 'slot', 'json'],
  async run(settings, { stdout, log }) {
    const url = required(settings, 'postgres');
    const { teardown } = await import('../source/teardown.ts');
    const report = await teardown({
      url,
      log: (message) => log.info(message),
      publication: settings.publication ?? 'rivulet',
      slot: settings.slot ?? 'rivulet',
    });
    if (settings.json === true) {
      await print(stdout, JSON.stringify(report, null, 2));
      return EXIT.done;
    }
    const colour = wantsColour(stdout);
    const lines = [
      ...(report.did.length === 0 ? ['There was nothing to take away.'] : ['Done:']),
      ...report.did.map((each) => `  ${paint(colour, 'green', '-')} ${each}`),
      ...(report.left.length === 0 ? [] : ['Left as it is:']),
      ...report.left.map((each) => `  ${paint(colour, 'yellow', '!')} ${each}`),
    ];
    await print(stdout, lines.join('\n'));
    return EXIT.done;
  },
};
