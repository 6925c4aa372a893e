import { required, type Settings } from '../config.ts';
import { ConfigError, EXIT, RivuletError } from '../errors.ts';
import type { LocalReplica } from '../http/proxy/local-replica.ts';
import type { Log } from '../log.ts';
import type { TokenKeys } from '../token.ts';
import { aborted } from './aborted.ts';
import { type Command, print } from './command.ts';

const DEFAULT_LISTEN = { host: '127.0.0.1', port: 4850 } as const;

/** An answer to a write is held for so long at most while Postgres does not say how far it is. */
const POSTGRES_TIMEOUT_MS = 2_000;

export const proxyCommand: Command = {
  name: 'proxy',
  summary: 'stand in front of an app in any language, so that its users read what they wrote',
  details:
    'Passes requests on to --target. The answer to one that writes carries a token, as a cookie and a header; one that\n' +
    'reads waits until the replica has what its token says. The token comes from the answer itself where the app sets\n' +
    'one (rivulet-token), otherwise from --postgres. The replica is asked at --replica, or its --file is read beside it\n' +
    '(faster; with both, --replica is asked for its health only). Prints `ready proxy URL`; answers /rivulet/healthz and /rivulet/metrics itself.',
  options: [
    'target',
    'listen',
    'replica',
    'file',
    'token',
    'token-file',
    'postgres',
    'publication',
    'timeout',
    'on-timeout',
    'max-lag',
    'write-methods',
    'read-methods',
    'ignore-paths',
    'cookie-name',
    'token-key',
    'token-key-file',
  ],
  async run(settings, { stdout, log, signal }) {
    const target = required(settings, 'target');
    const { file, replica: url, postgres, token } = settings;
    const listen = settings.listen ?? DEFAULT_LISTEN;
    if (url === undefined && file === undefined) {
      throw new ConfigError('the proxy has to know where the replica is', {
        hint: "give --replica URL (the replica's --listen address), --file PATH, or both",
      });
    }
    if (isItself(target, listen)) {
      throw new ConfigError(`--target ${target} is the address that the proxy itself listens on`, {
        hint: 'give the address of the app, or another --listen',
      });
    }
    const { RivuletProxy } = await import('../http/proxy/rivulet-proxy.ts');
    const { TokenTransport } = await import('../http/proxy/token-transport.ts');
    await using replica = await openLocalReplica(settings);
    try {
      await replica.position();
    } catch (error) {
      // What a wrong token is told will not change; a process that is not there yet may come.
      if (error instanceof RivuletError && error.code === 'UNAUTHORIZED') throw error;
      log.warn(`the replica cannot be asked yet: ${(error as Error).message}`);
    }
    await using tokens = postgres === undefined ? null : await openTokenSource(settings, postgres, log);
    await using proxy = await RivuletProxy.start({
      listen,
      target,
      replica,
      source: tokens?.source ?? null,
      tokens: new TokenTransport({ cookie: settings['cookie-name'], keys: tokenKeys(settings) }),
      timeoutMs: settings.timeout,
      onTimeout: settings['on-timeout'],
      maxLagMs: settings['max-lag'],
      writeMethods: settings['write-methods'],
      readMethods: settings['read-methods'],
      ignorePaths: settings['ignore-paths'],
      metricsToken: token,
      log,
    });
    await print(stdout, `ready proxy ${proxy.url} for ${target}`);
    await aborted(signal);
    log.info('stopping: requests under way may end');
    return EXIT.done;
  },
};

function isItself(target: string, listen: { readonly host: string; readonly port: number }): boolean {
  const { hostname, port } = new URL(target);
  const isHere = ['localhost', '127.0.0.1', '[::1]', listen.host].includes(hostname);
  return listen.port !== 0 && isHere && Number(port === '' ? 80 : port) === listen.port;
}

function tokenKeys(settings: Settings): TokenKeys | undefined {
  const [current, ...previous] = settings['token-key'] ?? [];
  return current === undefined ? undefined : { current, previous };
}

async function openLocalReplica({ file, replica: url, token }: Settings): Promise<LocalReplica> {
  const { FileReplica } = await import('../http/proxy/file-replica.ts');
  const { HttpReplica } = await import('../http/proxy/http-replica.ts');
  const { filePosition } = await import('../replica/file-position.ts');
  const { openReader } = await import('../read/reader.ts');
  const process = url === undefined ? null : new HttpReplica({ url, token });
  if (file === undefined) return process!;
  const reader = openReader({ file });
  return new FileReplica(
    {
      current: () => filePosition(reader.db),
      waitFor: (target, options) => reader.waitFor(target, options),
      close: () => reader.close(),
    },
    process,
  );
}

/** Tokens from Postgres. A server that is away may come back; what would never give one is said at once. */
async function openTokenSource({ publication }: Settings, postgres: string, log: Log) {
  const { default: pg } = await import('pg');
  const { clientConfig, postgresError } = await import('../source/connection.ts');
  const { TOKEN_CONNECTIONS, TokenSource } = await import('../http/proxy/token-source.ts');
  const pool = new pg.Pool({
    ...clientConfig(postgres),
    application_name: 'rivulet proxy',
    max: TOKEN_CONNECTIONS,
    connectionTimeoutMillis: POSTGRES_TIMEOUT_MS,
    query_timeout: POSTGRES_TIMEOUT_MS,
  });
  // A connection that breaks while it is idle is made anew for the next query.
  pool.on('error', () => undefined);
  const ask = async (text: string, values: readonly unknown[] = []): Promise<string> => {
    try {
      const { rows } = await pool.query<[string]>({ text, values: [...values], rowMode: 'array' });
      return rows[0]![0];
    } catch (error) {
      throw postgresError(error, 'taking a token');
    }
  };
  try {
    await checkServer(ask);
  } catch (error) {
    if (!(error instanceof RivuletError) || error.code !== 'POSTGRES_UNREACHABLE') {
      await pool.end();
      throw error;
    }
    log.warn(`no tokens yet: ${error.message}`);
  }
  const source = new TokenSource(() => ask('select rivulet.token($1)', [publication ?? null]));
  return { source, [Symbol.asyncDispose]: () => pool.end() };
}

async function checkServer(ask: (text: string) => Promise<string>): Promise<void> {
  const says = await ask(
    `select case when pg_is_in_recovery() then 'standby'
                 when to_regprocedure('rivulet.token(name)') is null then 'no function' else '' end`,
  );
  if (says === 'standby') {
    throw new RivuletError(
      'SERVER_UNSUITABLE',
      'the server at --postgres is a standby: nothing is written there',
      {
        hint: 'give the server that the app writes to',
      },
    );
  }
  if (says !== '') {
    throw new RivuletError(
      'SERVER_UNSUITABLE',
      'the database at --postgres has no function rivulet.token()',
      {
        hint: 'run `rivulet setup`, and check that --postgres names the database that the app writes to',
      },
    );
  }
}
