import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { z } from 'zod';
import { ConfigError } from './errors.ts';
import { type Lsn, parseLsn } from './lsn.ts';
import { parseStoreUrl } from './store/store-url.ts';
import { decodeToken, type Position, type TokenKey } from './token.ts';

const MS_PER_UNIT = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 } as const;
/** As in postgresql.conf, a kB has 1024 bytes. */
const BYTES_PER_UNIT = { b: 1, kb: 2 ** 10, mb: 2 ** 20, gb: 2 ** 30, tb: 2 ** 40 } as const;

export interface ListenAddress {
  readonly host: string;
  readonly port: number;
}

/** A text that `convert` accepts, or a failure that says what is allowed. `undefined` means: not allowed. */
function text<T>(allowed: string, convert: (value: string) => T | undefined): z.ZodType<T, unknown> {
  return z.unknown().transform((value, context) => {
    const converted =
      typeof value === 'string' || typeof value === 'number' ? convert(String(value)) : undefined;
    if (converted !== undefined) return converted;
    context.addIssue({ code: 'custom', message: allowed });
    return z.NEVER;
  });
}

function parseDuration(value: string): number | undefined {
  const match = /^(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)$/.exec(value.trim());
  return match === null
    ? undefined
    : Math.round(Number(match[1]) * MS_PER_UNIT[match[2] as keyof typeof MS_PER_UNIT]);
}

function parseSize(value: string): number | undefined {
  const match = /^(\d+(?:\.\d+)?)\s*([kmgt]?b)$/i.exec(value.trim());
  if (match === null) return undefined;
  return Math.round(
    Number(match[1]) * BYTES_PER_UNIT[match[2]!.toLowerCase() as keyof typeof BYTES_PER_UNIT],
  );
}

function parseListen(value: string): ListenAddress | undefined {
  const match = /^(?:(?<host>[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\]):)?(?<port>\d{1,5})$/.exec(value.trim());
  if (match?.groups === undefined) return undefined;
  const port = Number(match.groups.port);
  if (port > 65_535) return undefined;
  return { host: (match.groups.host ?? '127.0.0.1').replace(/^\[|\]$/g, ''), port };
}

function parseHttpUrl(value: string): string | undefined {
  const url = URL.parse(value);
  if (url === null || !['http:', 'https:'].includes(url.protocol)) return undefined;
  return value.replace(/\/+$/, '');
}

/** A user in front of no host, as libpq allows it and a URL does not: `postgres://user@/database?host=/run/postgresql` */
const USER_WITHOUT_HOST = /^(?<scheme>\w+:\/\/)(?<user>[^@:/?#]*)(?::(?<password>[^@/?#]*))?@(?<rest>\/.*)$/;

function parsePostgresUrl(value: string): string | undefined {
  const { scheme, user, password, rest } = USER_WITHOUT_HOST.exec(value)?.groups ?? {};
  if (scheme !== undefined && rest !== undefined) {
    const credentials = password === undefined ? `user=${user}` : `user=${user}&password=${password}`;
    return parsePostgresUrl(`${scheme}${rest}${rest.includes('?') ? '&' : '?'}${credentials}`);
  }
  const url = URL.parse(value);
  if (url === null || !['postgres:', 'postgresql:'].includes(url.protocol)) return undefined;
  // Without a host the server listens on a socket: postgres:///database?host=/run/postgresql
  return url.hostname !== '' || url.searchParams.has('host') ? value : undefined;
}

const duration = text("a duration such as '500ms', '30s', '5m', '2h' or '7d'", parseDuration);
const size = text("a size such as '512MB', '1GB' or '64kB'", parseSize);
const path = text('a path', (value) => (value === '' || value.includes('\0') ? undefined : value));
const postgresUrl = text(
  "a URL like 'postgres://user@host:5432/database' (on a socket: 'postgres://user@/database?host=/run/postgresql')",
  parsePostgresUrl,
);
const httpUrl = text("a URL like 'http://host:4840'", parseHttpUrl);
const listen = text(
  "HOST:PORT or PORT, for example '127.0.0.1:4840' (port 0 takes any free one)",
  parseListen,
);
// Slot names go unescaped into replication commands; Postgres itself allows only these characters.
const store = text("'file:///directory' or 's3://bucket/prefix'", (value) =>
  parseStoreUrl(value) === undefined ? undefined : value,
);
const durability = text("'local' or 'store'", (value) =>
  value === 'local' || value === 'store' ? value : undefined,
);
const snapshots = text("'own' or 'elsewhere'", (value) =>
  value === 'own' || value === 'elsewhere' ? value : undefined,
);
const count = text('a whole number above 0', (value) => {
  const number = Number(value);
  return /^\d{1,6}$/.test(value.trim()) && number > 0 ? number : undefined;
});
const slotName = text('1 to 63 of the characters a-z, 0-9 and _', (value) =>
  /^[a-z0-9_]{1,63}$/.test(value) ? value : undefined,
);
const lsn = text<Lsn>("an LSN such as '16/B374D848'", (value) => {
  try {
    return parseLsn(value.trim());
  } catch {
    return undefined;
  }
});
const waitTarget = text<Lsn | Position>(
  "an LSN such as '16/B374D848', or a token such as '1.5f0c….16b374d848'",
  (value) => {
    try {
      return value.includes('/') ? parseLsn(value.trim()) : decodeToken(value.trim());
    } catch {
      return undefined;
    }
  },
);
/** As commit times are in the file, so that text order is the order of time. */
const time = text("a time such as '2026-11-21 03:00:00Z' or '2026-11-21T05:00:00.123+02:00'", (value) => {
  const match =
    /^(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d(?::\d\d)?)(\.\d{1,6})?)?\s*(Z|[+-]\d\d(?::?\d\d)?)?$/i.exec(
      value.trim(),
    );
  if (match === null) return undefined;
  const [, date, clock = '00:00', fraction = '.', zone = 'Z'] = match;
  const offset = /^z$/i.test(zone) ? 'Z' : `${zone.slice(0, 3)}:${zone.slice(3).replace(':', '') || '00'}`;
  const second = new Date(`${date}T${clock.length === 5 ? `${clock}:00` : clock}${offset}`);
  if (Number.isNaN(second.getTime())) return undefined;
  return `${second.toISOString().slice(0, 19).replace('T', ' ')}${fraction.padEnd(7, '0')}Z`;
});
const name = text('1 to 100 printable characters', (value) =>
  /^[^\p{C}]{1,100}$/u.test(value) ? value : undefined,
);
const secret = text('a text of at least 8 printable ASCII characters without spaces', (value) =>
  /^[\x21-\x7e]{8,}$/.test(value) ? value : undefined,
);
const seconds = text('a number of seconds above 0', (value) => {
  const number = Number(value);
  return value.trim() !== '' && number > 0 && number <= 86_400 ? number : undefined;
});
const logLevel = text("'debug', 'info', 'warn' or 'error'", (value) =>
  value === 'debug' || value === 'info' || value === 'warn' || value === 'error' ? value : undefined,
);
const flag = z.unknown().transform((value, context) => {
  if (value === true || value === 'true' || value === '1') return true;
  if (value === false || value === 'false' || value === '0' || value === '') return false;
  context.addIssue({ code: 'custom', message: "'true' or 'false'" });
  return z.NEVER;
});

/** Texts separated by commas, or a list in a config file; each converted, none empty. */
function list<T>(
  allowed: string,
  convert: (value: string) => T | undefined,
): z.ZodType<readonly T[], unknown> {
  return z.unknown().transform((value, context): readonly T[] => {
    const texts: unknown[] =
      typeof value === 'string'
        ? value.split(',').map((each) => each.trim())
        : Array.isArray(value)
          ? value
          : [];
    const converted = texts.map((each) =>
      typeof each === 'string' && each !== '' ? convert(each) : undefined,
    );
    if (converted.length > 0 && converted.every((each) => each !== undefined)) return converted;
    context.addIssue({ code: 'custom', message: allowed });
    return z.NEVER;
  });
}

const tables = list("table names separated by commas: 'users,billing.invoices'", (value) => value);
const methods = list("HTTP methods separated by commas: 'POST,PUT'", (value) =>
  /^[A-Z][A-Z-]{0,30}$/.test(value) ? value : undefined,
);
const paths = list("paths separated by commas, * for anything: '/assets/*,*.css'", (value) =>
  /^[/*][^\s?#]*$/.test(value) ? value : undefined,
);
const tokenKeys = list(
  'ID:SECRET, more of them behind commas: the id up to 16 letters, digits, - and _; the secret at least 16 printable ASCII characters without comma and space',
  (value): TokenKey | undefined => {
    const match = /^([A-Za-z0-9_-]{1,16}):([\x21-\x2b\x2d-\x7e]{16,})$/.exec(value);
    return match === null ? undefined : { id: match[1]!, secret: match[2]! };
  },
);
/** What stands on this machine, or beside it: spoken to without TLS. */
function localUrl(example: string): z.ZodType<string, unknown> {
  return text(`a URL without a path, like '${example}'`, (value) => {
    const url = URL.parse(value);
    const isPlain = url?.protocol === 'http:' && url.username === '' && url.pathname === '/';
    return isPlain && url.search === '' && url.hash === '' ? url.origin : undefined;
  });
}
const timeoutPolicy = text("'fail' or 'stale'", (value) =>
  value === 'fail' || value === 'stale' ? value : undefined,
);
// https://www.rfc-editor.org/rfc/rfc6265#section-4.1.1: a token of RFC 2616, and here none that needs care.
const cookieName = text('1 to 100 letters, digits, - and _', (value) =>
  /^[A-Za-z0-9_-]{1,100}$/.test(value) ? value : undefined,
);

interface OptionDefinition {
  readonly schema: z.ZodType;
  /** What stands for the value in help; absent for options without one. */
  readonly value?: string;
  readonly help: string;
  readonly secret?: true;
}

/**
 * Every option there is. The key is its name in a config file, `--key` the flag, RIVULET_KEY the variable.
 * README's configuration table is checked against this one.
 */
export const OPTIONS = {
  postgres: {
    schema: postgresUrl,
    value: 'URL',
    help: 'Postgres to copy from; its password may stand in PGPASSWORD',
  },
  publication: { schema: slotName, value: 'NAME', help: "publication to make and read (default 'rivulet')" },
  slot: { schema: slotName, value: 'NAME', help: "replication slot to make and read (default 'rivulet')" },
  tables: {
    schema: tables,
    value: 'LIST',
    help: "tables to publish where set-up makes the publication, 'a,b.c' (default: all of them)",
  },
  data: { schema: path, value: 'DIR', help: "the replicator's directory: change log and base file" },
  takeover: { schema: flag, help: 'drop the slot that another data directory has made, and begin anew' },
  listen: {
    schema: listen,
    value: 'HOST:PORT',
    help: 'address to serve HTTP on; beyond loopback a token is needed (not by the proxy, which serves the app)',
  },
  token: {
    schema: secret,
    value: 'TOKEN',
    secret: true,
    help: 'bearer token of 8 or more characters (the variable or --token-file hides it from ps)',
  },
  'token-file': { schema: path, value: 'PATH', help: 'file that holds the bearer token' },
  'retain-age': { schema: duration, value: 'TIME', help: "how long changes stay in the log (default '24h')" },
  'retain-size': { schema: size, value: 'SIZE', help: "how large the log may grow (default '4GB')" },
  'buffer-per-follower': {
    schema: size,
    value: 'SIZE',
    help: "what a replica may leave unread before it is sent the rest from the log (default '4MB')",
  },
  'buffer-total': {
    schema: size,
    value: 'SIZE',
    help: "what all replicas together may leave unread (default '64MB')",
  },
  'digest-every': {
    schema: duration,
    value: 'TIME',
    help: 'how often the replicas are compared with each other (default: when asked)',
  },
  store: {
    schema: store,
    value: 'URL',
    help: "object store for snapshots and segments, 'file:///directory' or 's3://bucket/prefix'",
  },
  'store-endpoint': {
    schema: httpUrl,
    value: 'URL',
    help: 'S3 server other than AWS; AWS_ENDPOINT_URL does as well',
  },
  durability: {
    schema: durability,
    value: 'WHERE',
    help: "what Postgres may forget: what is in the 'local' log, or in the 'store' (default 'local')",
  },
  'segment-age': {
    schema: duration,
    value: 'TIME',
    help: "how old a change may become before it is in the object store (default '10s')",
  },
  snapshots: {
    schema: snapshots,
    value: 'WHERE',
    help: "who takes the snapshots for the object store: this process, 'own', or a `rivulet snapshotter`, 'elsewhere' (default 'own')",
  },
  'snapshot-interval': {
    schema: duration,
    value: 'TIME',
    help: "how often a snapshot goes to the object store (default '15m')",
  },
  'snapshot-keep-age': {
    schema: duration,
    value: 'TIME',
    help: "any position of so long can be restored from the object store (default '24h')",
  },
  'snapshot-keep-count': {
    schema: count,
    value: 'N',
    help: "so many of the newest snapshots stay, whatever their age (default '3')",
  },
  replicator: { schema: httpUrl, value: 'URL', help: 'replicator to follow, http://host:port' },
  file: { schema: path, value: 'PATH', help: 'the SQLite file' },
  'local-sql': {
    schema: path,
    value: 'PATH',
    help: 'SQL file with indexes, views, full-text tables and triggers of your own',
  },
  name: { schema: name, value: 'NAME', help: 'what status calls this replica (default: host and file name)' },
  target: {
    schema: localUrl('http://127.0.0.1:3000'),
    value: 'URL',
    help: 'the app behind the proxy, http://host:port',
  },
  replica: {
    schema: localUrl('http://127.0.0.1:4841'),
    value: 'URL',
    help: "the replica's process beside the app, where it listens",
  },
  'on-timeout': {
    schema: timeoutPolicy,
    value: 'POLICY',
    help: "a read whose token is not reached in time: 'fail' with 503, or 'stale': on to the app, marked (default 'fail')",
  },
  'max-lag': {
    schema: duration,
    value: 'TIME',
    help: "the health of a node whose replica is further behind is 503 (default '10s')",
  },
  'write-methods': {
    schema: methods,
    value: 'LIST',
    help: "requests that write: their answers get a token (default 'POST,PUT,PATCH,DELETE')",
  },
  'read-methods': {
    schema: methods,
    value: 'LIST',
    help: "requests that read: they wait for the token they carry (default 'GET,HEAD')",
  },
  'ignore-paths': {
    schema: paths,
    value: 'LIST',
    help: "paths to pass on without a look, * for anything: '/assets/*,*.css'",
  },
  'cookie-name': {
    schema: cookieName,
    value: 'NAME',
    help: "cookie that carries the token (default 'rivulet_token')",
  },
  'token-key': {
    schema: tokenKeys,
    value: 'ID:SECRET',
    secret: true,
    help: 'sign tokens, and take signed ones only; replaced keys behind commas (the variable or a file hides it from ps)',
  },
  'token-key-file': { schema: path, value: 'PATH', help: 'file that holds the token keys, one a line' },
  lsn: {
    schema: waitTarget,
    value: 'LSN',
    help: "what to wait for: an LSN such as '16/B374D848', or a token",
  },
  'to-lsn': { schema: lsn, value: 'LSN', help: "position to restore, such as '16/B374D848'" },
  'to-time': {
    schema: time,
    value: 'TIME',
    help: "time to restore, such as '2026-11-21 03:00:00Z' (UTC if it does not say)",
  },
  timeout: { schema: duration, value: 'TIME', help: 'how long to wait (default: 30s; proxy: 2s)' },
  migration: { schema: path, value: 'PATH', help: 'SQL file to tell the effects of' },
  repair: { schema: flag, help: 'read rows that differ again, and mend them' },
  'snapshot-limit': {
    schema: duration,
    value: 'TIME',
    help: "how long verify keeps one snapshot of Postgres (default '60s')",
  },
  seconds: { schema: seconds, value: 'N', help: 'end by itself after so many seconds' },
  json: { schema: flag, help: 'print JSON' },
  'log-level': {
    schema: logLevel,
    value: 'LEVEL',
    help: "'debug', 'info', 'warn' or 'error' (default 'info')",
  },
  verbose: { schema: flag, help: 'log everything, and show stack traces' },
} as const satisfies Record<string, OptionDefinition>;

export type OptionName = keyof typeof OPTIONS;

/** What a command is given: every option that was set anywhere, checked and converted. */
export type Settings = { readonly [Name in OptionName]?: z.output<(typeof OPTIONS)[Name]['schema']> };

export type Environment = Readonly<Record<string, string | undefined>>;

export function environmentVariable(option: OptionName): string {
  return `RIVULET_${option.toUpperCase().replaceAll('-', '_')}`;
}

const VARIABLES = new Map(
  (Object.keys(OPTIONS) as OptionName[]).map((option) => [environmentVariable(option), option]),
);
const CONFIG_FILE_VARIABLE = 'RIVULET_CONFIG';

/**
 * Variables under our prefix that are somebody else's: the tests' own, and what Kubernetes sets in every pod
 * for a service that is called rivulet or rivulet-something.
 */
const FOREIGN_VARIABLE = /^RIVULET_(TEST_.*|(.*_)?SERVICE_(HOST|PORT)(_.*)?|(.*_)?PORT(_\d+_.*)?)$/;

export interface SettingsSources {
  /** Raw values of the flags of the command line, by option name. */
  readonly flags: Readonly<Record<string, unknown>>;
  readonly environment: Environment;
  /** From --config; RIVULET_CONFIG otherwise. */
  readonly configFile?: string | undefined;
}

/**
 * Flags before environment before config file. Every value is checked, also of options that the command at
 * hand does not know: one file or environment may serve a replicator and a replica.
 */
export function readSettings(sources: SettingsSources): Settings {
  const settings: Record<string, unknown> = {};
  const set = (option: OptionName, value: unknown, where: string): void => {
    if (settings[option] === undefined) settings[option] = check(option, value, where);
  };
  for (const [key, value] of Object.entries(sources.flags)) {
    if (value !== undefined && isOption(key)) set(key, value, `--${key}`);
  }
  for (const [variable, value] of Object.entries(sources.environment)) {
    if (!variable.startsWith('RIVULET_') || variable === CONFIG_FILE_VARIABLE || value === undefined)
      continue;
    const option = VARIABLES.get(variable);
    if (option !== undefined) set(option, value, variable);
    else if (!FOREIGN_VARIABLE.test(variable))
      throw unknown(`environment variable ${variable}`, [...VARIABLES.keys(), CONFIG_FILE_VARIABLE]);
  }
  const configFile = sources.configFile ?? sources.environment[CONFIG_FILE_VARIABLE];
  if (configFile !== undefined) {
    for (const [key, value] of Object.entries(readConfigFile(configFile))) {
      if (!isOption(key)) throw unknown(`key '${key}' in ${configFile}`, Object.keys(OPTIONS));
      if (value !== null) set(key, value, `'${key}' in ${configFile}`);
    }
  }
  const tokenFile = settings['token-file'] as string | undefined;
  if (settings.token === undefined && tokenFile !== undefined) {
    settings.token = check('token', readText(tokenFile, 'token file').trim(), `the content of ${tokenFile}`);
  }
  const keyFile = settings['token-key-file'] as string | undefined;
  if (settings['token-key'] === undefined && keyFile !== undefined) {
    const lines = readText(keyFile, 'token key file')
      .trim()
      .split(/\s*\n\s*/);
    settings['token-key'] = check('token-key', lines, `the content of ${keyFile}`);
  }
  return settings as Settings;
}

function isOption(key: string): key is OptionName {
  return Object.hasOwn(OPTIONS, key);
}

function check(option: OptionName, value: unknown, where: string): unknown {
  const definition: OptionDefinition = OPTIONS[option];
  const result = definition.schema.safeParse(value);
  if (result.success) return result.data;
  // A URL may carry a password even where the rest of it is nonsense, so it is never shown as it is.
  const shown =
    definition.secret === true ? '' : ` ${JSON.stringify(withoutSecrets(describe(value)).slice(0, 80))}`;
  throw new ConfigError(`${where}: the value${shown} is not allowed`, {
    hint: `allowed is ${result.error.issues[0]?.message}`,
  });
}

function describe(value: unknown): string {
  return typeof value === 'string' ? value : String(JSON.stringify(value));
}

function unknown(what: string, allowed: readonly string[]): ConfigError {
  return new ConfigError(`unknown ${what}`, { hint: `known are: ${allowed.join(', ')}` });
}

function readConfigFile(file: string): Record<string, unknown> {
  // Loaded on use: most programs are started without a file.
  const { parse } = createRequire(import.meta.url)('yaml') as typeof import('yaml');
  let parsed: unknown;
  try {
    // JSON is YAML: one parser reads both.
    parsed = parse(readText(file, 'config file'));
  } catch (cause) {
    if (cause instanceof ConfigError) throw cause;
    const reason = cause instanceof Error ? cause.message.split('\n')[0] : String(cause);
    throw new ConfigError(`the config file ${file} is neither YAML nor JSON: ${reason}`, { cause });
  }
  const result = z.record(z.string(), z.unknown()).safeParse(parsed ?? {});
  if (!result.success) {
    throw new ConfigError(`the config file ${file} does not hold keys and values`, {
      hint: "for example: 'postgres: postgres://…'",
    });
  }
  return result.data;
}

function readText(file: string, what: string): string {
  try {
    return readFileSync(file, 'utf8');
  } catch (cause) {
    throw new ConfigError(
      `the ${what} ${file} cannot be read: ${(cause as NodeJS.ErrnoException).code ?? cause}`,
      { cause, hint: 'check its path, owner and mode' },
    );
  }
}

/** The value of an option that the command cannot do without. */
export function required<Name extends OptionName>(
  settings: Settings,
  option: Name,
): NonNullable<Settings[Name]> {
  const value = settings[option];
  if (value !== undefined) return value as NonNullable<Settings[Name]>;
  throw new ConfigError(`--${option} is missing`, {
    hint: `give --${option}, set ${environmentVariable(option)}, or put '${option}' into a config file (--config)`,
  });
}

// Bounded, as what is looked through may be megabytes of anybody's text.
const PASSWORD_IN_URL = /([a-z][a-z0-9+.-]{0,20}:\/\/[^\s:@/"']{0,300}):[^\s"']{0,1000}@/gi;
const PASSWORD_PARAMETER = /([?&](?:password|sslpassword)=)[^&\s"']*/gi;

/** The text without the passwords of the URLs in it: for messages, logs and pages. */
export function withoutSecrets(value: string): string {
  return value.replace(PASSWORD_IN_URL, '$1:***@').replace(PASSWORD_PARAMETER, '$1***');
}
