import { EXIT } from '../errors.ts';
import { aborted } from './aborted.ts';
import { type Command, print } from './command.ts';
import { copyProgressText } from './copy-progress.ts';
import { allowListening, DEFAULT_LISTEN } from './listening.ts';
import { BUFFER_OPTIONS, HISTORY_OPTIONS, replicatorSettings, STORE_OPTIONS } from './replicator-settings.ts';

export const replicatorCommand: Command = {
  name: 'replicator',
  summary: 'read the changes of a Postgres database and serve them to replicas',
  details:
    'One per database. Makes publication, slot and the first copy if they are missing, and goes on after any\n' +
    'crash from where it was. Prints `ready replicator URL` once replicas can start from it.',
  options: [
    'postgres',
    'data',
    'listen',
    'token',
    'token-file',
    ...HISTORY_OPTIONS,
    'digest-every',
    ...BUFFER_OPTIONS,
    ...STORE_OPTIONS,
  ],
  async run(settings, { stdout, terminal, log, signal }) {
    const listen = settings.listen ?? DEFAULT_LISTEN;
    const options = replicatorSettings(settings, { log });
    allowListening(listen, settings.token);
    const { checkSqliteVersion } = await import('../replica/replica-file.ts');
    const { startReplicator } = await import('../replicator/replicator.ts');
    const { BoundAddress } = await import('../http/listen.ts');
    const { serveReplicator } = await import('../http/server.ts');
    const { untilServing } = await import('./until-serving.ts');
    checkSqliteVersion();
    // Before anything is made: a port that is taken must not leave a slot behind that holds back WAL.
    await using bound = await BoundAddress.bind(listen, settings.token);
    await using replicator = await startReplicator(options);
    replicator.on('copy', (progress) => terminal.progress(() => copyProgressText(progress)));
    // There may be another one later on, when a history is over.
    replicator.on('state', (state) => {
      if (state !== 'copying') terminal.endProgress();
    });
    // Health and progress can be asked for from the beginning, also during a copy that takes hours.
    await using server = await serveReplicator({ replicator, listen: bound, token: settings.token, log });
    const isServing = await untilServing(replicator, signal);
    terminal.endProgress();
    if (!isServing) return EXIT.done;
    await print(stdout, `ready replicator ${server.url}`);
    // It may serve what it has while a restart still finds out that only a human can help.
    await Promise.race([aborted(signal), replicator.ready.then(() => aborted(signal))]);
    log.info('stopping');
    return EXIT.done;
  },
};
