import type { Duplex } from 'node:stream';
import pg from 'pg';
import { ConfigError, type ErrorCode, RivuletError } from '../errors.ts';

/** Long enough for a server across an ocean and a TLS handshake; a dead address should not cost a minute. */
export const DEFAULT_CONNECT_TIMEOUT_MS = 10_000;

/**
 * Pinned on every connection, so that a value prints the same in the initial copy, in the stream and in a
 * check, whatever the role, the database or the server has set (https://www.postgresql.org/docs/current/runtime-config-client.html).
 * Those that a server does not know are left out (transaction_timeout came with 17).
 */
export const SESSION_SETTINGS: Readonly<Record<string, string>> = {
  client_encoding: 'UTF8',
  DateStyle: 'ISO, MDY',
  TimeZone: 'UTC',
  IntervalStyle: 'postgres',
  extra_float_digits: '3',
  bytea_output: 'hex',
  lc_monetary: 'C',
  xmloption: 'content',
  quote_all_identifiers: 'off',
  standard_conforming_strings: 'on',
  search_path: 'pg_catalog',
  // A policy would hide rows without a word; switched off, reading such a table is an error that says so.
  row_security: 'off',
  default_transaction_isolation: 'read committed',
  default_transaction_read_only: 'off',
  default_transaction_deferrable: 'off',
  // Limits made for an application's statements end long COPYs and quiet streams.
  statement_timeout: '0',
  transaction_timeout: '0',
  lock_timeout: '0',
  idle_in_transaction_session_timeout: '0',
  idle_session_timeout: '0',
  // Catalog queries look expensive to the planner and are not.
  jit: 'off',
};

const PIN_SQL = `select set_config(wanted.key, wanted.value, false)
  -- Such a database knows nothing of its text; asked for UTF-8 it would send none that is not.
  from (select key, case when key = 'client_encoding' and current_setting('server_encoding') = 'SQL_ASCII'
                         then 'SQL_ASCII' else value end as value
          from json_each_text('${JSON.stringify(SESSION_SETTINGS)}')) wanted
 where lower(wanted.key) in (select lower(name) from pg_settings)
 union all
-- See rivulet.fire_as().
select set_config('session_replication_role', 'replica', false)
  from pg_roles where rolname = current_user and rolsuper`;

export interface ConnectOptions {
  /** Shows in pg_stat_activity. */
  readonly applicationName: string;
  /** A walsender connection to the URL's database (`replication=database`): no parameters in queries there. */
  readonly replication?: boolean;
  /** 0, the default, waits for ever. */
  readonly lockTimeoutMs?: number;
  readonly connectTimeoutMs?: number;
  /** Fails a query that has no answer by then: TCP alone takes many minutes to notice that nobody is there. */
  readonly queryTimeoutMs?: number;
  /** Breaks the connection, whatever it is in the middle of. */
  readonly signal?: AbortSignal;
}

/** For queries of the catalog: far longer than one takes, far shorter than TCP does. */
export const CATALOG_TIMEOUT_MS = 60_000;

/** A server that is there says goodbye at once. */
const GOODBYE_TIMEOUT_MS = 1_000;

/** An open connection with pinned settings. Throws RivuletError. */
export async function connect(url: string, options: ConnectOptions): Promise<pg.Client> {
  const { signal, connectTimeoutMs = DEFAULT_CONNECT_TIMEOUT_MS } = options;
  const client = new pg.Client({
    ...clientConfig(url),
    application_name: options.applicationName,
    connectionTimeoutMillis: connectTimeoutMs,
    ...(options.queryTimeoutMs === undefined ? {} : { query_timeout: options.queryTimeoutMs }),
    ...(options.replication === true ? { replication: 'database' } : {}),
  } as pg.ClientConfig);
  // A connection that breaks while nobody waits for it tells the next query; unheard, it would end the process.
  client.on('error', () => undefined);
  const cut = (): void => void clientStream(client).destroy();
  signal?.addEventListener('abort', cut, { once: true });
  client.once('end', () => signal?.removeEventListener('abort', cut));
  let unanswered: NodeJS.Timeout | undefined;
  try {
    signal?.throwIfAborted();
    await client.connect();
    unanswered = setTimeout(cut, connectTimeoutMs);
    await pinSession(client);
    if (options.lockTimeoutMs !== undefined)
      await client.query(`set lock_timeout = ${Math.trunc(options.lockTimeoutMs)}`);
    return client;
  } catch (error) {
    await disconnect(client);
    throw postgresError(error, `connecting to ${redactUrl(url)}`);
  } finally {
    clearTimeout(unanswered);
  }
}

/** Ends a connection; also one whose server has vanished without a word, which would take a quarter of an hour. */
export async function disconnect(client: pg.Client): Promise<void> {
  const goodbye = setTimeout(() => clientStream(client).destroy(), GOODBYE_TIMEOUT_MS);
  await client.end().catch(() => undefined);
  clearTimeout(goodbye);
}

/** The socket of a pg client, which pg keeps to itself. */
export function clientStream(client: pg.Client): Duplex {
  return (client as unknown as { connection: { stream: Duplex } }).connection.stream;
}

/** What pg needs to connect, from a URL that has been checked. */
export function clientConfig(url: string): pg.ClientConfig {
  checkUrl(url);
  return {
    connectionString: url,
    connectionTimeoutMillis: DEFAULT_CONNECT_TIMEOUT_MS,
    keepAlive: true,
    keepAliveInitialDelayMillis: 10_000,
  };
}

/** Sets SESSION_SETTINGS, in one round trip; works on walsender connections too. */
export async function pinSession(client: pg.ClientBase): Promise<void> {
  await client.query(PIN_SQL);
}

/** Throws ConfigError, which never contains the URL's password, unless this is a usable connection URL. */
export function checkUrl(url: string): void {
  const hint =
    'a connection URL looks like postgres://user:password@host:5432/database; encode special characters of the password (@ is %40)';
  if (!/^postgres(ql)?:\/\//.test(url)) throw new ConfigError('not a Postgres connection URL', { hint });
  let parsed: URL;
  try {
    parsed = new URL(url);
  } catch {
    throw new ConfigError('the Postgres URL cannot be read', { hint });
  }
  const port = parsed.searchParams.get('port');
  if (port !== null && !/^\d{1,5}$/.test(port))
    throw new ConfigError('the port of the Postgres URL is not a number', { hint });
  try {
    new pg.Client({ connectionString: url });
  } catch (error) {
    // Certificate files that cannot be read and combinations of ssl options: said without the URL.
    const code = (error as NodeJS.ErrnoException).code;
    throw new ConfigError(`the Postgres URL cannot be used${code === undefined ? '' : ` (${code})`}`, {
      hint: `${hint}; check its ssl options and the files that they name`,
    });
  }
}

/** The URL with its password replaced, fit for logs and messages. */
export function redactUrl(url: string): string {
  try {
    const parsed = new URL(url);
    if (parsed.password !== '') parsed.password = '***';
    for (const key of [...parsed.searchParams.keys()]) {
      if (/pass|key|secret|token/i.test(key)) parsed.searchParams.set(key, '***');
    }
    return parsed.toString();
  } catch {
    return 'the given Postgres URL';
  }
}

/** SQLSTATE, https://www.postgresql.org/docs/current/errcodes-appendix.html, to what a supervisor should know. */
const BY_SQLSTATE: Readonly<Record<string, ErrorCode>> = {
  '28P01': 'POSTGRES_AUTH',
  '28000': 'POSTGRES_AUTH',
  '3D000': 'POSTGRES_AUTH',
  '42501': 'PRIVILEGE',
  '55006': 'SLOT_IN_USE',
  // "all replication slots are in use"
  '53400': 'SERVER_UNSUITABLE',
  // too many connections; out of WAL senders says the same
  '53300': 'POSTGRES_UNREACHABLE',
  '57P01': 'POSTGRES_UNREACHABLE',
  '57P02': 'POSTGRES_UNREACHABLE',
  '57P03': 'POSTGRES_UNREACHABLE',
  '57P05': 'POSTGRES_UNREACHABLE',
};

/** https://nodejs.org/api/tls.html#x509-certificate-error-codes */
const CERTIFICATE_CODE = /CERT|SSL|TLS|SELF_SIGNED|UNABLE_TO_/;

const HINTS: Partial<Record<ErrorCode, string>> = {
  POSTGRES_UNREACHABLE: 'check host, port, firewall and whether the server runs',
  POSTGRES_AUTH: 'check user, password, database and pg_hba.conf',
  PRIVILEGE:
    'use a superuser, or a role with REPLICATION that owns the tables and may CREATE in the database',
  SLOT_IN_USE: 'another replicator is running on this slot: stop it, or use another --slot',
  SERVER_UNSUITABLE: 'run `rivulet doctor` to see what this server lacks',
  SLOT_LOST: 'the replicator starts from a new initial copy',
  PUBLICATION: 'run `rivulet setup`',
};

/** What TLS to the server lacks; the server's own words are known in English only. */
function tlsHint(code: string | undefined, text: string): string | undefined {
  if (code !== undefined && CERTIFICATE_CODE.test(code))
    return "this machine does not trust the server's certificate, or it is not for this host: name its issuer's file in the URL, ?sslmode=verify-full&sslrootcert=FILE (?sslmode=no-verify encrypts, and trusts anybody)";
  if (/no pg_hba\.conf entry .*(no encryption|SSL off)/.test(text))
    return 'the server takes encrypted connections only: add ?sslmode=verify-full to the URL, and &sslrootcert=FILE for an issuer that this machine does not know';
  if (/server does not support SSL/.test(text))
    return 'the server has no TLS: add ?sslmode=disable to the URL';
  return undefined;
}

const SOCKET_CODES = new Set([
  'ECONNREFUSED',
  'ECONNRESET',
  'ECONNABORTED',
  'ENOTFOUND',
  'EAI_AGAIN',
  'ETIMEDOUT',
  'EHOSTUNREACH',
  'EHOSTDOWN',
  'ENETUNREACH',
  'ENETDOWN',
  'EPIPE',
  'ENOENT',
  'EADDRNOTAVAIL',
  'EPROTO',
  'EACCES',
]);

/** lock_not_available, deadlock_detected: worth another try. */
export function isLockError(error: unknown): boolean {
  return error instanceof pg.DatabaseError && (error.code === '55P03' || error.code === '40P01');
}

/** Whether a query has failed for ConnectOptions.queryTimeoutMs. */
export function isUnanswered(error: unknown): boolean {
  return error instanceof Error && error.message === 'Query read timeout';
}

/** What the parts of the server are called that make room for a value, or a message. */
const ROOM_MAKERS = new Set(['mcxt.c', 'stringinfo.c', 'mbutils.c']);

/**
 * Whether the server says that something would be longer than the 1 GB that it makes room for (MaxAllocSize), by which
 * source file the error is from: the text may be translated, and internal_error is the code of much else.
 */
export function isTooLong(error: unknown): boolean {
  return (
    error instanceof pg.DatabaseError &&
    (error.code === 'XX000' || error.code === '54000') &&
    ROOM_MAKERS.has(error.file ?? '')
  );
}

/** Turns what pg threw into a RivuletError that names the step; gives RivuletErrors back as they are. */
export function postgresError(error: unknown, step: string): RivuletError {
  if (error instanceof RivuletError) return error;
  const { code: sqlstate, message: text } = describe(error);
  const code = classify(sqlstate, text);
  const hint = tlsHint(sqlstate, text) ?? HINTS[code];
  return new RivuletError(code, `${step}: ${text}`, {
    cause: error,
    ...(hint === undefined ? {} : { hint }),
    ...(sqlstate === undefined ? {} : { facts: { sqlstate } }),
  });
}

/** SQLSTATE, or the socket's error code, and the message; of several tried addresses, the first one's. */
function describe(error: unknown): { code: string | undefined; message: string } {
  const first = error instanceof AggregateError && error.errors.length > 0 ? error.errors[0] : error;
  const { code, message } = (first ?? {}) as { code?: unknown; message?: unknown };
  return {
    code: typeof code === 'string' ? code : undefined,
    message: typeof message === 'string' && message !== '' ? message : String(code ?? first),
  };
}

function classify(code: string | undefined, text: string): ErrorCode {
  // 08P01, PgBouncer: unsupported startup parameter: replication
  if (/unsupported startup parameter.*replication/.test(text)) return 'SERVER_UNSUITABLE';
  if (code !== undefined) {
    const known = BY_SQLSTATE[code];
    if (known !== undefined) return known;
    if (/^08/.test(code) || SOCKET_CODES.has(code)) return 'POSTGRES_UNREACHABLE';
    if (CERTIFICATE_CODE.test(code)) return 'POSTGRES_AUTH';
  }
  return byText(code, text);
}

/** Where only the text tells. The server's lc_messages may translate it: then the general code remains. */
function byText(code: string | undefined, text: string): ErrorCode {
  // 42704: replication slot "rivulet" does not exist
  if (/replication slot ".*" does not exist/.test(text)) return 'SLOT_LOST';
  // 55000: can no longer get changes from replication slot "rivulet" (14-17: cannot read from logical replication slot "rivulet")
  if (/can no longer (get|access) .*replication slot|cannot read from logical replication slot/.test(text))
    return 'SLOT_LOST';
  // 42704: publication "rivulet" does not exist
  if (/publication ".*" does not exist/.test(text)) return 'PUBLICATION';
  // 55000: logical decoding requires wal_level >= logical (18: "wal_level" >= "logical")
  if (/logical decoding requires/.test(text)) return 'SERVER_UNSUITABLE';
  if (code === undefined) {
    // pg's own: SASL: SCRAM-SERVER-FIRST-MESSAGE: client password must be a string
    if (/^SASL|password/i.test(text)) return 'POSTGRES_AUTH';
    // pg's own: timeout expired; Query read timeout; Connection terminated unexpectedly; Client has encountered a connection error …
    if (
      /timeout expired|read timeout|connection (terminated|error|was closed|ended)|connection is closed|not queryable|does not support SSL/i.test(
        text,
      )
    ) {
      return 'POSTGRES_UNREACHABLE';
    }
  }
  return 'POSTGRES_ERROR';
}
