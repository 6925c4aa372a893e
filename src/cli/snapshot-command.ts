import { required, type Settings } from '../config.ts';
import { EXIT } from '../errors.ts';
import { formatLsn } from '../lsn.ts';
import type { RestorableRange } from '../snapshot/restorable.ts';
import type { Manifest } from '../store/manifest.ts';
import type { ObjectStore } from '../store/object-store.ts';
import { type Command, type Context, print } from './command.ts';
import { transferProgressText } from './copy-progress.ts';
import { formatBytes, formatDuration, formatTable } from './format.ts';
import { fetchUpload, requestSnapshot } from './replicator-client.ts';

const PROGRESS_INTERVAL_MS = 250;

export const snapshotCommand: Command = {
  name: 'snapshot',
  summary: 'list, take or prune the snapshots in an object store',
  details:
    '  list   what is in the store, and what can be restored from it (--store)\n' +
    '  now    takes one, in the replicator that writes to the store, or its snapshotter (--replicator)\n' +
    '  prune  takes out what retention no longer asks for (--store, --snapshot-keep-age, --snapshot-keep-count)',
  argument: { name: 'action', values: ['list', 'now', 'prune'], help: 'what to do' },
  options: [
    'store',
    'store-endpoint',
    'replicator',
    'token',
    'token-file',
    'snapshot-keep-age',
    'snapshot-keep-count',
    'json',
  ],
  async run(settings, context, action) {
    if (action === 'now') return await now(settings, context);
    const { openStore } = await import('../store/open-store.ts');
    await using store = await openStore({
      url: required(settings, 'store'),
      endpoint: settings['store-endpoint'],
    });
    return await (action === 'list' ? list : prune)(store, settings, context);
  },
};

async function now(settings: Settings, { stdout, terminal, signal }: Context): Promise<number> {
  const url = required(settings, 'replicator');
  const { token, json } = settings;
  const startedAtMs = performance.now();
  const watch = setInterval(() => {
    fetchUpload(url, { token, signal })
      .then((upload) => {
        if (upload !== null)
          terminal.progress(() => transferProgressText('uploading', upload, performance.now() - startedAtMs));
      })
      .catch(() => undefined);
  }, PROGRESS_INTERVAL_MS);
  try {
    const report = await requestSnapshot(url, { token, signal });
    terminal.endProgress();
    const { isNew, position, fileBytes, sentBytes, tookMs } = report;
    const text = isNew
      ? `snapshot at ${position}: ${formatBytes(fileBytes)}, of which ${formatBytes(sentBytes)} had to be sent, in ${formatDuration(tookMs)}`
      : `the newest snapshot is at ${position}, and nothing has changed since`;
    await print(stdout, json === true ? JSON.stringify(report) : text);
    return EXIT.done;
  } finally {
    clearInterval(watch);
  }
}

async function list(
  store: ObjectStore,
  settings: Settings,
  { stdout, log, signal }: Context,
): Promise<number> {
  const { readManifest } = await import('../store/read-manifest.ts');
  const { restorableRanges } = await import('../snapshot/restorable.ts');
  const read = await readManifest(store, { signal });
  if (read?.damage != null) log.warn(`${read.damage.message}: its backup is shown`);
  const manifest = read?.manifest ?? null;
  const ranges = manifest === null ? [] : restorableRanges(manifest);
  await print(
    stdout,
    settings.json === true ? toJson(manifest, ranges) : toTables(store.url, manifest, ranges),
  );
  return EXIT.done;
}

function toJson(manifest: Manifest | null, ranges: readonly RestorableRange[]): string {
  const shown = {
    source: manifest?.source ?? null,
    archived: manifest?.archived ?? null,
    snapshots: (manifest?.snapshots ?? []).map(({ chunkList: _, ...snapshot }) => snapshot),
    restorable: ranges.map(({ snapshots, ...range }) => ({ ...range, snapshots: snapshots.length })),
  };
  return JSON.stringify(
    shown,
    (_key, value: unknown) => (typeof value === 'bigint' ? formatLsn(value) : value),
    2,
  );
}

function toTables(url: string, manifest: Manifest | null, ranges: readonly RestorableRange[]): string {
  if (manifest === null || manifest.snapshots.length === 0) return `there is no snapshot in ${url} yet`;
  const snapshots = formatTable(
    [
      ['epoch', 'position', 'newest commit', 'taken', 'size', 'in the store', 'read back'],
      ...manifest.snapshots.map((each) => [
        each.epoch,
        formatLsn(each.position),
        each.commitTime ?? '-',
        each.takenAt,
        formatBytes(each.fileBytes),
        formatBytes(each.storedBytes),
        each.verifiedAt === null ? '-' : 'yes',
      ]),
    ],
    [4, 5],
  );
  const restorable = ranges.map(
    ({ epoch, from, to, fromTime, toTime }) =>
      `  ${formatLsn(from)} to ${formatLsn(to)}  (${fromTime ?? '-'} to ${toTime ?? '-'})  epoch ${epoch}`,
  );
  return [
    `${url} holds the database ${manifest.source.database}`,
    '',
    ...snapshots,
    '',
    'any position can be restored from',
    ...restorable,
  ].join('\n');
}

async function prune(
  store: ObjectStore,
  settings: Settings,
  { stdout, log, signal }: Context,
): Promise<number> {
  const { ManifestWriter } = await import('../snapshot/manifest-writer.ts');
  const { SnapshotWriter } = await import('../snapshot/snapshot-writer.ts');
  const { Pruner } = await import('../snapshot/pruner.ts');
  const { DEFAULT_SNAPSHOT_RETENTION } = await import('../snapshot/retention.ts');
  const onWarning = (message: string, facts: Readonly<Record<string, unknown>>): void =>
    log.warn(facts, message);
  // Beside the replicator, which goes on writing: what both change holds.
  const manifest = new ManifestWriter({ store, source: null, signal, onWarning });
  await store.prepareWriting({ signal });
  if ((await manifest.refresh()) === null) {
    await print(stdout, `there is nothing in ${store.url}`);
    return EXIT.done;
  }
  const snapshots = new SnapshotWriter({ store, manifest, signal });
  const pruner = new Pruner({ store, manifest, snapshots, signal, onWarning });
  const report = await pruner.prune({
    keepCount: settings['snapshot-keep-count'] ?? DEFAULT_SNAPSHOT_RETENTION.keepCount,
    keepAgeMs: settings['snapshot-keep-age'] ?? DEFAULT_SNAPSHOT_RETENTION.keepAgeMs,
  });
  const { removedSnapshots, removedSegments, deletedObjects } = report;
  await print(
    stdout,
    settings.json === true
      ? JSON.stringify(report)
      : `${removedSnapshots} snapshots and ${removedSegments} segments taken out, ${deletedObjects} objects deleted; ` +
          'what is taken out is deleted some hours later',
  );
  return EXIT.done;
}
