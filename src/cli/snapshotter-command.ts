import { required } from '../config.ts';
import { EXIT } from '../errors.ts';
import { aborted } from './aborted.ts';
import { type Command, print } from './command.ts';
import { transferProgressText } from './copy-progress.ts';
import { allowListening } from './listening.ts';

export const snapshotterCommand: Command = {
  name: 'snapshotter',
  summary: 'take the snapshots for an object store, instead of the replicator',
  details:
    'Follows a replicator that was started with --snapshots elsewhere, with a file of its own in --data that serves\n' +
    'nobody, takes snapshots of it and prunes them. One per store: one that starts takes the place of the one before.\n' +
    'Prints `ready snapshotter` (with --listen, `ready snapshotter URL`) once its file is there and the store is open;\n' +
    'with --listen it answers /healthz, /metrics and `rivulet snapshot now --replicator` with its address.',
  options: [
    'replicator',
    'token',
    'token-file',
    'store',
    'store-endpoint',
    'data',
    'name',
    'listen',
    'snapshot-interval',
    'snapshot-keep-age',
    'snapshot-keep-count',
  ],
  async run(settings, { stdout, terminal, log, signal }) {
    const { listen, token } = settings;
    const keepAgeMs = settings['snapshot-keep-age'];
    const keepCount = settings['snapshot-keep-count'];
    const url = required(settings, 'replicator');
    const location = { url: required(settings, 'store'), endpoint: settings['store-endpoint'] };
    const dataDir = required(settings, 'data');
    if (listen !== undefined) allowListening(listen, token);
    const { checkSqliteVersion } = await import('../replica/replica-file.ts');
    const { Snapshotter } = await import('../snapshot/snapshotter.ts');
    const { serveSnapshotter } = await import('../http/server.ts');
    checkSqliteVersion();
    let startedAtMs: number | null = null;
    const snapshotter = new Snapshotter({
      replicator: { url, token },
      location,
      dataDir,
      name: settings.name,
      intervalMs: settings['snapshot-interval'],
      retention: {
        ...(keepAgeMs === undefined ? {} : { keepAgeMs }),
        ...(keepCount === undefined ? {} : { keepCount }),
      },
      log,
      onDownload: (progress) => {
        startedAtMs ??= performance.now();
        const elapsedMs = performance.now() - startedAtMs;
        terminal.progress(() => transferProgressText('downloading', progress, elapsedMs));
        if (progress.bytes >= progress.totalBytes) terminal.endProgress();
      },
    });
    await using server =
      listen === undefined ? null : await serveSnapshotter({ snapshotter, listen, token, log });
    const running = snapshotter.run(signal);
    const isReady = await Promise.race([
      snapshotter.ready.then(
        () => true,
        () => false,
      ),
      aborted(signal).then(() => false),
    ]);
    terminal.endProgress();
    if (isReady)
      await print(stdout, ['ready snapshotter', ...(server === null ? [] : [server.url])].join(' '));
    await running;
    log.info('stopping');
    return EXIT.done;
  },
};
