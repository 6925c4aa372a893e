import type { Command } from './command.ts';

/** Without a terminal nobody presses Ctrl-C. */
const DEFAULT_SECONDS = 20;

export const demoCommand: Command = {
  name: 'demo',
  summary: 'show everything on this machine: a real Postgres, a replicator, three replicas, live writes',
  details:
    'Ends on Ctrl-C, or by itself after --seconds (20 where there is no terminal), and then compares every\nreplica with Postgres row by row: exit code 0 if all are equal, 4 if not.',
  options: ['seconds'],
  async run(settings, context) {
    const { runDemo } = await import('./demo/demo.ts');
    const seconds = settings.seconds ?? (context.stdout.isTTY === true ? null : DEFAULT_SECONDS);
    return await runDemo({ seconds, context });
  },
};
