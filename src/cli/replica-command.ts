import { type ListenAddress, required, type Settings } from '../config.ts';
import { ConfigError, EXIT, RivuletError } from '../errors.ts';
import { formatLsn } from '../lsn.ts';
import type { Replica } from '../replica/replica.ts';
import { aborted } from './aborted.ts';
import { type Command, type Context, print } from './command.ts';
import { copyProgressText } from './copy-progress.ts';
import { allowListening } from './listening.ts';

export const replicaCommand: Command = {
  name: 'replica',
  summary: 'keep one SQLite file current',
  details:
    'Follows a replicator, or (with --postgres) does everything in one process; its change log is then in --data,\n' +
    'by default PATH.rivulet. Any number of processes may read the file meanwhile. Prints `ready replica PATH` once\n' +
    'the file is there and followed; with --listen it answers /healthz, /metrics, /status and /wait.',
  options: [
    'file',
    'replicator',
    'postgres',
    'data',
    'publication',
    'slot',
    'tables',
    'retain-age',
    'retain-size',
    'token',
    'token-file',
    'name',
    'listen',
  ],
  async run(settings, context) {
    required(settings, 'file');
    const { replicator, postgres, listen, token } = settings;
    if ((replicator === undefined) === (postgres === undefined)) {
      throw new ConfigError('a replica follows either a replicator or Postgres itself', {
        hint: 'give one of --replicator URL and --postgres URL',
      });
    }
    if (listen !== undefined) allowListening(listen, token);
    const { checkSqliteVersion } = await import('../replica/replica-file.ts');
    checkSqliteVersion();
    if (postgres !== undefined) return await followPostgres(settings, context);
    return await new Keeper(settings, context).keep(required(settings, 'replicator'));
  },
};

/** A copy that is of no use again so soon after it was made would be made in a circle. */
const LEAST_MS_BETWEEN_COPIES = 60_000;

/**
 * Everything in one process. When the replica cannot go on, either the replicator has begun a new history
 * already, and there is (or will be) a new copy to open; or the file has diverged, and then one is begun.
 */
async function followPostgres(settings: Settings, context: Context): Promise<number> {
  const { forgetHistory, OneProcess } = await import('./one-process.ts');
  const { replicatorSettings } = await import('./replicator-settings.ts');
  const { signal, log, terminal } = context;
  const file = required(settings, 'file');
  const options = replicatorSettings({ ...settings, data: settings.data ?? `${file}.rivulet` }, context);
  const keeper = new Keeper(settings, context);
  for (let startedAt = performance.now(); ; startedAt = performance.now()) {
    await using source = await OneProcess.start({
      ...options,
      file,
      signal,
      onCopyProgress: (progress) => terminal.progress(() => copyProgressText(progress)),
    });
    terminal.endProgress();
    if (source === null) return EXIT.done;
    for (let diverged = false; !diverged; ) {
      try {
        return await keeper.keep(source.connectPort());
      } catch (error) {
        if (!(error instanceof RivuletError) || error.recovery !== 'resnapshot') throw error;
        diverged = !source.hasLeft(keeper.epoch);
        if (diverged && performance.now() - startedAt < LEAST_MS_BETWEEN_COPIES && keeper.copies > 0)
          throw error;
        log.error(
          { code: error.code, epoch: keeper.epoch },
          `the file cannot go on (${error.message}): it is made anew`,
        );
        if (!diverged && !(await source.untilServing(signal))) return EXIT.done;
      }
    }
    keeper.copies++;
    await source[Symbol.asyncDispose]();
    forgetHistory(options.dataDir);
  }
}

/** Opens the replica, serves it, and stays until the signal. */
class Keeper {
  readonly #settings: Settings;
  readonly #context: Context;
  #listen: ListenAddress | undefined;
  #isAnnounced = false;
  epoch = '';
  /** New copies that were made because the file had diverged. */
  copies = 0;

  constructor(settings: Settings, context: Context) {
    this.#settings = settings;
    this.#context = context;
    this.#listen = settings.listen;
  }

  /** Gives the exit code after the signal. Rejects with what only a human, or a new copy, can mend. */
  async keep(source: Parameters<typeof open>[2]): Promise<number> {
    const { log, signal } = this.#context;
    const opened = await open(this.#settings, this.#context, source).catch((error: unknown) => {
      if (signal.aborted) return null;
      throw error;
    });
    if (opened === null) return EXIT.done;
    await using replica = opened;
    this.epoch = replica.epoch;
    const { serveReplica } = await import('../http/server.ts');
    await using server =
      this.#listen === undefined
        ? null
        : await serveReplica({ replica, listen: this.#listen, token: this.#settings.token, log });
    // Whatever port it was: a replica that is opened again is found at the same place.
    this.#listen = server?.address;
    await this.#announce(replica, server?.url);
    const failure = await Promise.race([aborted(signal).then(() => null), failed(replica)]);
    this.epoch = replica.epoch;
    if (failure !== null) throw failure;
    log.info('stopping');
    return EXIT.done;
  }

  async #announce(replica: Replica, url: string | undefined): Promise<void> {
    if (this.#isAnnounced) return;
    this.#isAnnounced = true;
    await print(
      this.#context.stdout,
      `ready replica ${url === undefined ? '' : `${url} `}${replica.file} at ${formatLsn(replica.position)}`,
    );
  }
}

async function open(
  settings: Settings,
  { log, signal }: Context,
  replicator: Parameters<typeof import('../replica/replica.ts').openReplica>[0]['replicator'],
): Promise<Replica> {
  const { openReplica } = await import('../replica/replica.ts');
  return await openReplica({
    file: required(settings, 'file'),
    replicator,
    token: settings.token,
    name: settings.name,
    log,
    signal,
  });
}

function failed(replica: Replica): Promise<RivuletError> {
  return new Promise((resolve) => {
    if (replica.state === 'failed') resolve(new RivuletError('CLOSED', replica.status().reasons.join('; ')));
    else replica.once('failed', resolve);
  });
}
