import { required } from '../config.ts';
import { EXIT } from '../errors.ts';
import { aborted } from './aborted.ts';
import { type Command, print } from './command.ts';
import { transferProgressText } from './copy-progress.ts';
import { allowListening, DEFAULT_LISTEN } from './listening.ts';
import { BUFFER_OPTIONS, followerLimits, retention } from './replicator-settings.ts';
import { untilServing } from './until-serving.ts';

export const relayCommand: Command = {
  name: 'relay',
  summary: 'follow a replicator, and serve its changes to replicas as it would',
  details:
    'For a region of its own, or for more replicas than one replicator serves: they are given its address as their\n' +
    '--replicator. Keeps the changes and a base file in --data. With a token, the same one is used on both sides.\n' +
    'Prints `ready relay URL` once replicas can start from it.',
  options: [
    'replicator',
    'data',
    'listen',
    'token',
    'token-file',
    'name',
    'retain-age',
    'retain-size',
    ...BUFFER_OPTIONS,
  ],
  async run(settings, { stdout, terminal, log, signal }) {
    const replicator = required(settings, 'replicator');
    const dataDir = required(settings, 'data');
    const { listen = DEFAULT_LISTEN, token, name } = settings;
    allowListening(listen, token);
    const { checkSqliteVersion } = await import('../replica/replica-file.ts');
    const { startRelay } = await import('../relay/relay.ts');
    const { BoundAddress } = await import('../http/listen.ts');
    const { serveReplicator } = await import('../http/server.ts');
    checkSqliteVersion();
    await using bound = await BoundAddress.bind(listen, token);
    const startedMs = performance.now();
    await using relay = await startRelay({
      replicator,
      dataDir,
      token,
      name,
      log,
      retention: retention(settings),
      followers: followerLimits(settings),
      onProgress: (progress) => {
        const elapsedMs = performance.now() - startedMs;
        terminal.progress(() => transferProgressText('downloading', progress, elapsedMs));
        if (progress.bytes >= progress.totalBytes) terminal.endProgress();
      },
    });
    await using server = await serveReplicator({ replicator: relay, listen: bound, token, log });
    const isServing = await untilServing(relay, signal);
    terminal.endProgress();
    if (!isServing) return EXIT.done;
    await print(stdout, `ready relay ${server.url}`);
    const failed = new Promise<never>((_resolve, reject) => relay.once('failed', reject));
    await Promise.race([aborted(signal), failed]);
    log.info('stopping');
    return EXIT.done;
  },
};
