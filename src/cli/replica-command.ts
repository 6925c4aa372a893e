import { type OptionName, required, type Settings } from '../config.ts';
import { ConfigError, EXIT, RivuletError } from '../errors.ts';
import { formatLsn } from '../lsn.ts';
import type { LocalSql } from '../replica/local-sql.ts';
import type { Replica, ReplicaOptions } from '../replica/replica.ts';
import { aborted } from './aborted.ts';
import { type Command, type Context, print } from './command.ts';
import { copyProgressText, transferProgressText } from './copy-progress.ts';
import { allowListening } from './listening.ts';
import type { OneProcess } from './one-process.ts';
import { HISTORY_OPTIONS, STORE_OPTIONS } from './replicator-settings.ts';

/** What only a replicator is told, so only a replica that is one as well. */
const POSTGRES_OPTIONS: readonly OptionName[] = [
  'data',
  ...HISTORY_OPTIONS,
  ...STORE_OPTIONS.filter((option) => option !== 'store' && option !== 'store-endpoint'),
];

export const replicaCommand: Command = {
  name: 'replica',
  summary: 'keep one SQLite file current',
  details:
    'Follows a replicator, or (with --postgres) does everything in one process; its change log is then in --data,\n' +
    'by default PATH.rivulet. Any number of processes may read the file meanwhile. Prints `ready replica PATH at LSN`\n' +
    '(with --listen, `ready replica URL PATH at LSN`) once the file is there and followed; with --listen it answers\n' +
    '/healthz, /metrics, /status and /wait. --data, --publication, --slot, --tables, --takeover, --retain-… and what\n' +
    'writes to the --store go with --postgres only.',
  options: [
    'file',
    'replicator',
    'postgres',
    'data',
    ...HISTORY_OPTIONS,
    'token',
    'token-file',
    'name',
    'local-sql',
    'listen',
    ...STORE_OPTIONS,
  ],
  async run(settings, context) {
    required(settings, 'file');
    const { replicator, postgres, listen, token } = settings;
    if ((replicator === undefined) === (postgres === undefined)) {
      throw new ConfigError('a replica follows either a replicator or Postgres itself', {
        hint: 'give one of --replicator URL and --postgres URL',
      });
    }
    if (replicator !== undefined) rejectFlags(context.flags);
    if (listen !== undefined) allowListening(listen, token);
    const { checkSqliteVersion } = await import('../replica/replica-file.ts');
    checkSqliteVersion();
    const localSql = await readLocal(settings['local-sql']);
    // Before anything is made or downloaded; until it serves, it says that it is starting.
    await using bound =
      listen === undefined
        ? null
        : await (await import('../http/listen.ts')).BoundAddress.bind(listen, token);
    const served = bound === null ? settings : { ...settings, listen: bound };
    if (postgres !== undefined) return await followPostgres(served, context, localSql);
    return await keep(served, context, { replicator: required(settings, 'replicator'), localSql });
  },
};

/** With --replicator they would change nothing, whatever whoever gave them expects. */
function rejectFlags(flags: readonly OptionName[]): void {
  const given = flags.filter((flag) => POSTGRES_OPTIONS.includes(flag)).map((flag) => `--${flag}`);
  if (given.length === 0) return;
  const verb = given.length === 1 ? 'goes' : 'go';
  throw new ConfigError(`${given.join(', ')} ${verb} with --postgres, not with --replicator`, {
    hint: 'the replicator decides that: give it there, or follow Postgres itself with --postgres URL',
  });
}

/** Wrong SQL is found here, before anything is opened or copied. */
async function readLocal(path: string | undefined): Promise<LocalSql | undefined> {
  if (path === undefined) return undefined;
  const { parseLocalSql, readLocalSql } = await import('../replica/local-sql.ts');
  const localSql = readLocalSql(path);
  parseLocalSql(localSql);
  return localSql;
}

/** Everything in one process: the replicator builds the replica's own file, and the replica follows over a port. */
async function followPostgres(
  settings: Settings,
  context: Context,
  localSql: LocalSql | undefined,
): Promise<number> {
  const { OneProcess } = await import('./one-process.ts');
  const { replicatorSettings } = await import('./replicator-settings.ts');
  const { signal, terminal } = context;
  const file = required(settings, 'file');
  await using source = await OneProcess.start({
    ...replicatorSettings({ ...settings, data: settings.data ?? `${file}.rivulet` }, context),
    file,
    localSql,
    signal,
    onCopyProgress: (progress) => terminal.progress(() => copyProgressText(progress)),
    onCopyEnd: () => terminal.endProgress(),
  });
  const way = { replicator: source.connectPort(), localSql, startsAfter: source.serving };
  return await keep(settings, context, way, source);
}

/** Opens the replica, serves it, and stays until the signal, or until only a human can mend it. */
async function keep(
  settings: Settings,
  context: Context,
  way: Pick<ReplicaOptions, 'replicator' | 'localSql' | 'startsAfter'>,
  source: OneProcess | null = null,
): Promise<number> {
  const { log, signal, stdout } = context;
  const { listen, token } = settings;
  const opened = await open(settings, context, way).catch((error: unknown) => {
    if (signal.aborted) return null;
    throw error;
  });
  if (opened === null) return EXIT.done;
  await using replica = opened;
  await using server =
    listen === undefined
      ? null
      : await (await import('../http/server.ts')).serveReplica({ replica, source, listen, token, log });
  const address = server === null ? '' : `${server.url} `;
  await print(stdout, `ready replica ${address}${replica.file} at ${formatLsn(replica.position)}`);
  const failure = await Promise.race([aborted(signal).then(() => null), failed(replica)]);
  if (failure !== null) throw failure;
  log.info('stopping');
  return EXIT.done;
}

async function open(
  settings: Settings,
  { log, signal, terminal }: Context,
  source: Pick<ReplicaOptions, 'replicator' | 'localSql' | 'startsAfter'>,
): Promise<Replica> {
  const { openReplica } = await import('../replica/replica.ts');
  let startedMs: number | null = null;
  return await openReplica({
    file: required(settings, 'file'),
    ...source,
    token: settings.token,
    ...(settings.store === undefined
      ? {}
      : { store: { url: settings.store, endpoint: settings['store-endpoint'] } }),
    name: settings.name,
    log,
    signal,
    onProgress: (progress) => {
      startedMs ??= performance.now();
      const elapsedMs = performance.now() - startedMs;
      terminal.progress(() => transferProgressText('downloading', progress, elapsedMs));
      if (progress.bytes < progress.totalBytes) return;
      // Later on, another one begins from the beginning.
      startedMs = null;
      terminal.endProgress();
    },
  });
}

function failed(replica: Replica): Promise<RivuletError> {
  return new Promise((resolve) => {
    if (replica.state === 'failed') resolve(new RivuletError('CLOSED', replica.status().reasons.join('; ')));
    else replica.once('failed', resolve);
  });
}
