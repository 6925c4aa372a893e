import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import {
  environmentVariable,
  OPTIONS,
  type OptionName,
  readSettings,
  required,
  withoutSecrets,
} from '../../src/config.ts';
import { ConfigError } from '../../src/errors.ts';

let dir = '';
beforeAll(() => {
  dir = mkdtempSync(join(tmpdir(), 'rivulet-config-'));
});
afterAll(() => rmSync(dir, { recursive: true, force: true }));

function configFile(name: string, content: string): string {
  const file = join(dir, name);
  writeFileSync(file, content);
  return file;
}

const read = (flags: Record<string, unknown>, environment: Record<string, string> = {}, file?: string) =>
  readSettings({ flags, environment, configFile: file });

function failure(action: () => unknown): ConfigError {
  try {
    action();
  } catch (error) {
    expect(error).toBeInstanceOf(ConfigError);
    return error as ConfigError;
  }
  throw new Error('nothing was thrown');
}

describe('where settings come from', () => {
  test('flags win over the environment, the environment over the file', () => {
    const file = configFile('order.yaml', 'file: from-file\nname: from-file\nslot: from_file\n');
    const settings = read(
      { file: 'from-flag' },
      { RIVULET_FILE: 'from-environment', RIVULET_NAME: 'from-environment' },
      file,
    );
    expect(settings).toMatchObject({ file: 'from-flag', name: 'from-environment', slot: 'from_file' });
  });

  test('every option has a variable and a key', () => {
    const samples: Record<OptionName, string> = {
      postgres: 'postgres://u:p@h:1/d',
      publication: 'p',
      slot: 's',
      tables: 'a,b.c',
      data: 'd',
      takeover: 'true',
      listen: '127.0.0.1:1',
      token: 'long-enough',
      'token-file': configFile('any-token', 'long-enough-too\n'),
      'retain-age': '1h',
      'retain-size': '1GB',
      'buffer-per-follower': '1MB',
      'buffer-total': '32MB',
      'digest-every': '1h',
      store: 's3://bucket/prefix',
      'store-endpoint': 'http://h:1',
      durability: 'store',
      'segment-age': '5s',
      snapshots: 'elsewhere',
      'snapshot-interval': '1h',
      'snapshot-keep-age': '7d',
      'snapshot-keep-count': '5',
      replicator: 'http://h:1',
      file: 'f',
      'local-sql': 'local.sql',
      name: 'n',
      target: 'http://h:1',
      replica: 'http://h:1',
      'on-timeout': 'stale',
      'max-lag': '1s',
      'write-methods': 'POST',
      'read-methods': 'GET,HEAD',
      'ignore-paths': '/a/*',
      'cookie-name': 'c',
      'token-key': 'k:0123456789abcdef',
      'token-key-file': configFile('any-keys', 'k:0123456789abcdef\n'),
      lsn: '0/1',
      'to-lsn': '0/1',
      'to-time': '2026-11-21 03:00:00Z',
      timeout: '1s',
      migration: 'm.sql',
      repair: 'true',
      'snapshot-limit': '10s',
      seconds: '1',
      json: 'true',
      'log-level': 'warn',
      verbose: 'true',
    };
    for (const [option, sample] of Object.entries(samples) as [OptionName, string][]) {
      const fromEnvironment = read({}, { [environmentVariable(option)]: sample })[option];
      const fromFile = read({}, {}, configFile(`${option}.yaml`, `${option}: ${JSON.stringify(sample)}\n`))[
        option
      ];
      expect(fromEnvironment, option).toBeDefined();
      expect(fromFile, option).toEqual(fromEnvironment);
    }
    expect(Object.keys(samples)).toEqual(Object.keys(OPTIONS));
  });

  test('the config file may be YAML or JSON, named by flag or RIVULET_CONFIG, with lists and numbers', () => {
    const json = configFile('settings.json', '{"tables": ["a", "b.c"], "listen": 4840, "json": true}');
    expect(read({}, { RIVULET_CONFIG: json })).toEqual({
      tables: ['a', 'b.c'],
      listen: { host: '127.0.0.1', port: 4840 },
      json: true,
    });
    expect(read({}, {}, configFile('empty.yaml', '# nothing yet\n'))).toEqual({});
  });

  test('the token may come from a file', () => {
    const file = configFile('token', 'secret-token\n');
    expect(read({ 'token-file': file }).token).toBe('secret-token');
    expect(read({ 'token-file': file, token: 'other-token' }).token).toBe('other-token');
    expect(failure(() => read({ 'token-file': join(dir, 'none') })).message).toContain(
      'cannot be read: ENOENT',
    );
    expect(failure(() => read({ 'token-file': configFile('short', 'abc') })).message).not.toContain('abc');
  });

  test('token keys may come from a file, the current one first', () => {
    const file = configFile('keys', 'new:0123456789abcdef\n\nold:fedcba9876543210\n');
    const keys = [
      { id: 'new', secret: '0123456789abcdef' },
      { id: 'old', secret: 'fedcba9876543210' },
    ];
    expect(read({ 'token-key-file': file })['token-key']).toEqual(keys);
    expect(read({ 'token-key': 'new:0123456789abcdef, old:fedcba9876543210' })['token-key']).toEqual(keys);
    expect(
      failure(() => read({ 'token-key-file': configFile('short-key', 'new:abcd') })).message,
    ).not.toContain('abcd');
  });

  test('variables of the tests and of Kubernetes are not ours to judge; others under our prefix are', () => {
    const environment = {
      RIVULET_TEST_POSTGRES: 'x',
      RIVULET_SERVICE_HOST: 'x',
      RIVULET_REPLICATOR_SERVICE_PORT_HTTP: 'x',
      RIVULET_REPLICATOR_PORT: 'tcp://10.0.0.1:4840',
      RIVULET_REPLICATOR_PORT_4840_TCP_ADDR: 'x',
      PATH: 'x',
    };
    expect(read({}, environment)).toEqual({});
    const error = failure(() => read({}, { RIVULET_POSTGRE: 'postgres://h/d' }));
    expect(error.message).toBe('unknown environment variable RIVULET_POSTGRE');
    expect(error.hint).toContain('RIVULET_POSTGRES');
  });
});

describe('values', () => {
  test.each([
    ['500ms', 500],
    ['30s', 30_000],
    ['1.5m', 90_000],
    ['2h', 7_200_000],
    ['7d', 604_800_000],
  ])('%s is a duration of %d ms', (text, ms) => {
    expect(read({ timeout: text }).timeout).toBe(ms);
  });

  test.each([
    ['64kB', 65_536],
    ['512MB', 512 * 2 ** 20],
    ['1 GB', 2 ** 30],
    ['100b', 100],
  ])('%s is a size of %d bytes', (text, bytes) => {
    expect(read({ 'retain-size': text })['retain-size']).toBe(bytes);
  });

  test.each([
    ['127.0.0.1:4840', '127.0.0.1', 4840],
    ['4840', '127.0.0.1', 4840],
    ['[::1]:0', '::1', 0],
    ['replicator.internal:80', 'replicator.internal', 80],
  ])('%s is an address to listen on', (text, host, port) => {
    expect(read({ listen: text }).listen).toEqual({ host, port });
  });

  test('URLs', () => {
    expect(read({ replicator: 'http://host:4840/' }).replicator).toBe('http://host:4840');
    // As libpq takes it, with somebody in front of no host.
    for (const [given, taken] of [
      ['postgres://u@/db?host=/run/postgresql', 'postgres:///db?host=/run/postgresql&user=u'],
      ['postgres://u:p%40w@/db?host=/s', 'postgres:///db?host=/s&user=u&password=p%40w'],
    ] as const)
      expect(read({ postgres: given }).postgres).toBe(taken);
    expect(read({ postgres: 'postgresql:///db?host=/run/postgresql' }).postgres).toBe(
      'postgresql:///db?host=/run/postgresql',
    );
  });

  test.each([
    ['postgres', 'mysql://h/d', 'postgres://user@host:5432/database'],
    ['postgres', 'postgres:///db', 'postgres://user@host:5432/database'],
    ['postgres', 'nonsense', 'postgres://user@host:5432/database'],
    ['replicator', 'host:4840', 'http://host:4840'],
    ['replicator', 'ftp://host', 'http://host:4840'],
    ['listen', 'host:99999', 'HOST:PORT'],
    ['listen', 'a:b:c', 'HOST:PORT'],
    ['slot', 'Bad-Name', 'a-z, 0-9 and _'],
    ['publication', '', 'a-z, 0-9 and _'],
    ['timeout', '30', "'30s'"],
    ['timeout', '-1s', "'30s'"],
    ['retain-size', 'much', "'1GB'"],
    ['lsn', '16-B374D848', '16/B374D848'],
    ['tables', 'a,,b', 'separated by commas'],
    ['token', 'short', '8 printable'],
    ['token', 'with spaces in it', '8 printable'],
    ['seconds', '0', 'above 0'],
    ['json', 'maybe', "'true' or 'false'"],
    ['log-level', 'loud', "'debug'"],
    ['file', '', 'a path'],
    ['target', 'http://h:3000/base', 'without a path'],
    ['target', '127.0.0.1:3000', 'without a path'],
    ['target', 'https://h:3000', 'without a path'],
    ['replica', 'app.db', 'http://127.0.0.1:4841'],
    ['on-timeout', 'wait', "'fail' or 'stale'"],
    ['write-methods', 'post', 'HTTP methods'],
    ['ignore-paths', 'assets', '/assets/*'],
    ['cookie-name', 'a=b', 'letters, digits'],
    ['token-key', '0123456789abcdef', 'ID:SECRET'],
    ['token-key', 'k:short', 'at least 16'],
  ] as const)('--%s %s is refused, naming the flag and what is allowed', (option, value, allowed) => {
    const byFlag = failure(() => read({ [option]: value }));
    expect(byFlag.message).toMatch(new RegExp(`^--${option}: `));
    expect(byFlag.hint).toContain(allowed);
    expect(failure(() => read({}, { [environmentVariable(option)]: value })).message).toMatch(
      new RegExp(`^${environmentVariable(option)}: `),
    );
    const file = configFile('bad.yaml', `${option}: ${JSON.stringify(value)}\n`);
    expect(failure(() => read({}, {}, file)).message).toContain(`'${option}' in ${file}`);
  });

  test('config files that are none', () => {
    expect(failure(() => read({}, {}, join(dir, 'absent.yaml'))).message).toContain('ENOENT');
    expect(failure(() => read({}, {}, configFile('broken.yaml', 'a: [1,\n'))).message).toContain(
      'neither YAML nor JSON',
    );
    expect(failure(() => read({}, {}, configFile('list.yaml', '- a\n'))).message).toContain(
      'keys and values',
    );
    const unknown = failure(() => read({}, {}, configFile('typo.yaml', 'postgre: x\n')));
    expect(unknown.message).toContain("unknown key 'postgre'");
    expect(unknown.hint).toContain('postgres');
  });

  test('what a command needs and nobody gave', () => {
    const error = failure(() => required({}, 'token-file'));
    expect(error.message).toBe('--token-file is missing');
    expect(error.hint).toContain('RIVULET_TOKEN_FILE');
  });
});

describe('secrets', () => {
  test('a refused value shows neither token nor password', () => {
    expect(failure(() => read({ token: 'shh' })).message).not.toContain('shh');
    const error = failure(() => read({ postgres: 'mysql://user:pa:ss@host/d' }));
    expect(`${error.message} ${error.hint}`).not.toContain('pa:ss');
    expect(error.message).toContain('mysql://user:***@host/d');
  });

  test('passwords in URLs are taken out of any text', () => {
    expect(withoutSecrets('at postgres://u:p%40w@h:1/d?password=abc&x=1 it ended')).toBe(
      'at postgres://u:***@h:1/d?password=***&x=1 it ended',
    );
    expect(withoutSecrets('postgres://u@h/d and http://h:4840')).toBe('postgres://u@h/d and http://h:4840');
    // As long as it is: in what grows with the square of that, each of these takes minutes.
    for (const odd of ['L', 'a://', 'a://b:', '?password'])
      expect(withoutSecrets(odd.repeat(300_000))).toBe(odd.repeat(300_000));
  });
});
