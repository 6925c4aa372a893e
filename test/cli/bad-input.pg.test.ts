import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import {
  chmodSync,
  chownSync,
  cpSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { type AddressInfo, createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import Database from 'better-sqlite3';
import pg from 'pg';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { run } from '../../src/cli/run.ts';
import { startPostgres, type TestPostgres } from '../helpers/postgres.ts';
import { type RivuletProcess, rivulet as start } from '../helpers/processes.ts';
import { TcpProxy } from '../helpers/tcp-proxy.ts';
import { waitUntil } from '../helpers/wait-until.ts';
import { fakeProcess } from './fake-process.ts';
import { type RunAs, runAsStranger, STRANGER } from './run-as.ts';

const TOKEN = 'token-that-nobody-may-see';
const PASSWORD = 'password-that-nobody-may-see';

interface Outcome {
  readonly code: number;
  readonly out: string;
  readonly err: string;
}

let dir = '';
let postgres: TestPostgres;
let said = '';
const clients: pg.Client[] = [];

beforeAll(async () => {
  dir = mkdtempSync(join(tmpdir(), 'rivulet-bad-input-'));
  postgres = await startPostgres({ settings: { max_replication_slots: 3, max_wal_senders: 3 } });
  await postgres.sql(`
    create table item (id integer primary key, name text);
    insert into item select n, 'item ' || n from generate_series(1, 1000) n;
    create role weak login password '${PASSWORD}';
    create role owner login replication password '${PASSWORD}';`);
  await postgres.sql('create database other');
});
afterAll(async () => {
  await postgres?.close();
  rmSync(dir, { recursive: true, force: true });
});

/** Whatever a test did, it has shown nobody a secret or a stack, and left nothing on the server. */
afterEach(async () => {
  await Promise.allSettled(clients.splice(0).map((client) => client.end()));
  const shown = said;
  said = '';
  expect(shown).not.toContain(TOKEN);
  expect(shown).not.toContain(PASSWORD);
  expect(shown).not.toContain(new URL(postgres.url).password);
  expect(shown).not.toMatch(/^\s+at .*:\d+|\\n\s+at /m);
  await waitUntil(
    'slots to be free',
    async () => (await postgres.sql('select from pg_replication_slots where active')).length === 0,
  );
  await postgres.sql('select pg_drop_replication_slot(slot_name) from pg_replication_slots');
});

/** A command line in this process; the signal comes if it does not end by itself. */
async function rivulet(args: readonly string[], env: Record<string, string> = {}): Promise<Outcome> {
  const host = fakeProcess(env);
  const timer = setTimeout(() => host.signal('SIGTERM'), 25_000);
  try {
    const code = await run(args, host);
    said += host.stdout.text + host.stderr.text;
    return { code, out: host.stdout.text, err: host.stderr.text };
  } finally {
    clearTimeout(timer);
  }
}

/** One message, one hint, nothing else; the exit code as documented. */
function expectRefusal(
  outcome: Outcome,
  code: number,
  message: RegExp | string,
  hint: RegExp | string,
): void {
  expect(outcome.err).toMatch(message);
  const lines = outcome.err
    .trimEnd()
    .split('\n')
    .filter((line) => !line.startsWith('{'));
  expect(lines).toHaveLength(2);
  expect(lines[0]).toMatch(/^rivulet: /);
  expect(lines[1]).toMatch(/^ {2}hint: /);
  expect(lines[1]).toMatch(hint);
  expect(outcome).toMatchObject({ code, out: '' });
}

function withUser(user: string, password = PASSWORD): string {
  const url = new URL(postgres.url);
  url.username = user;
  url.password = password;
  return url.href;
}

function onDatabase(name: string): string {
  const url = new URL(postgres.url);
  url.pathname = `/${name}`;
  return url.href;
}

const replicator = (url: string, data: string, ...more: string[]): string[] => [
  'replicator',
  '--postgres',
  url,
  '--data',
  join(dir, data),
  '--listen',
  '0',
  ...more,
];

async function slots(): Promise<unknown[]> {
  return postgres.sql(
    'select slot_name::text, plugin::text, database::text from pg_replication_slots order by 1',
  );
}

/** Everything that set-up makes on a server. */
async function traces(): Promise<unknown[]> {
  return postgres.sql(`
    select 'publication ' || pubname as trace from pg_publication
    union all select 'schema ' || nspname from pg_namespace where nspname = 'rivulet'
    union all select 'event trigger ' || evtname from pg_event_trigger
    union all select 'slot ' || slot_name from pg_replication_slots
    union all select 'identity ' || relname from pg_class where relreplident = 'f' and relnamespace = 'public'::regnamespace`);
}

describe('the server', () => {
  const cases: [string, () => string, number, RegExp, RegExp][] = [
    ['dead address', () => `postgres://u:${PASSWORD}@127.0.0.1:1/d`, 1, /ECONNREFUSED/, /host, port/],
    [
      'name that nobody has',
      () => `postgres://u:${PASSWORD}@host.invalid/d`,
      1,
      /host\.invalid/,
      /host, port/,
    ],
    [
      'wrong password',
      () => withUser('weak', `${PASSWORD}-wrong`),
      1,
      /password authentication failed/,
      /password/,
    ],
    ['absent user', () => withUser('nobody'), 1, /nobody/, /user, password/],
    ['absent database', () => onDatabase('absent'), 1, /"absent" does not exist/, /database/],
    [
      'user who may not replicate',
      () => withUser('weak'),
      1,
      /weak may not replicate/,
      /ALTER ROLE "weak" REPLICATION/,
    ],
    ['user who owns nothing', () => withUser('owner'), 1, /publication rivulet cannot be made/, /superuser/],
    ['URL of something else', () => `mysql://u:${PASSWORD}@h/d`, 2, /--postgres: /, /postgres:\/\//],
    ['no URL at all', () => 'nonsense', 2, /--postgres: /, /postgres:\/\//],
  ];
  describe.each(cases)('%s', (_what, url, code, message, hint) => {
    test.each([
      ['setup', () => ['setup', '--postgres', url()]],
      ['replicator', () => replicator(url(), 'never')],
      ['replica', () => ['replica', '--file', join(dir, 'never.db'), '--postgres', url()]],
    ] as const)('%s refuses, and leaves nothing behind', async (_command, args) => {
      expectRefusal(await rivulet(args()), code, message, hint);
      expect(await traces()).toEqual([]);
      expect(readdirSync(dir)).not.toContain('never.db');
    });
  });

  test.each([
    ['teardown', () => ['teardown', '--postgres', `postgres://u:${PASSWORD}@127.0.0.1:1/d`]],
    ['status', () => ['status', '--postgres', `postgres://u:${PASSWORD}@127.0.0.1:1/d`]],
    ['status', () => ['status', '--replicator', 'http://127.0.0.1:1', '--token', TOKEN]],
  ] as const)('%s of a dead address', async (_command, args) => {
    expectRefusal(await rivulet(args()), 1, /ECONNREFUSED|bad port/, /host, port|is it running/);
  });

  test('tables that are not there', async () => {
    const args = ['--tables', 'item,absent,x.y'];
    for (const command of [['setup', '--postgres', postgres.url], replicator(postgres.url, 'never')])
      expectRefusal(
        await rivulet([...command, ...args]),
        1,
        /absent does not exist; x\.y does not exist/,
        /--tables/,
      );
    expectRefusal(
      await rivulet([...replicator(postgres.url, 'never'), '--tables', 'a b']),
      2,
      /not a table name/,
      /schema\.table/,
    );
    expect(await traces()).toEqual([]);
  });

  test.each([
    [
      'another plugin',
      `pg_create_logical_replication_slot('rivulet', 'test_decoding')`,
      /test_decoding on database/,
    ],
    ['physical replication', `pg_create_physical_replication_slot('rivulet')`, /physical replication/],
    [
      'another database',
      `pg_create_logical_replication_slot('rivulet', 'pgoutput')`,
      /pgoutput on database postgres/,
    ],
  ])("somebody else's slot, for %s, is neither used nor dropped", async (what, create, message) => {
    await postgres.sql(`select ${create}`);
    const before = await slots();
    const url = what === 'another database' ? onDatabase('other') : postgres.url;
    expectRefusal(await rivulet(['setup', '--postgres', url]), 1, message, /--slot/);
    expectRefusal(await rivulet(replicator(url, 'never')), 1, message, /--slot/);
    expect(await slots()).toEqual(before);
    expect((await rivulet(['teardown', '--postgres', url, '--json'])).code).toBe(0);
    if (what !== 'another database') return expect(await slots()).toEqual(before);
    expect(await slots()).toEqual(before);
  });

  test('no free slot', async () => {
    for (const name of ['a', 'b', 'c'])
      await postgres.sql(`select pg_create_physical_replication_slot('${name}')`);
    const before = await slots();
    for (const args of [['setup', '--postgres', postgres.url], replicator(postgres.url, 'never')])
      expectRefusal(await rivulet(args), 1, /all 3 replication slots are in use/, /max_replication_slots/);
    expect(await slots()).toEqual(before);
  });

  test('no free WAL sender', async () => {
    for (let i = 0; i < 3; i++) {
      const client = new pg.Client({
        connectionString: postgres.url,
        replication: 'database',
      } as pg.ClientConfig);
      await client.connect();
      clients.push(client);
    }
    expectRefusal(
      await rivulet(replicator(postgres.url, 'never')),
      1,
      /all 3 WAL senders are in use/,
      /max_wal_senders/,
    );
    expect(await traces()).toEqual([]);
  });

  test('wal_level too low', async () => {
    await using server = await startPostgres({ settings: { wal_level: 'replica' } });
    for (const args of [['setup', '--postgres', server.url], replicator(server.url, 'never')])
      expectRefusal(
        await rivulet(args),
        1,
        /wal_level is replica, logical is needed/,
        /ALTER SYSTEM SET wal_level/,
      );
    expect(await server.sql('select from pg_publication')).toEqual([]);
  });
});

/** A real server that calls itself another version: all answers go through here. */
async function withVersion(version: string, use: (url: string) => Promise<void>): Promise<void> {
  const [{ text, number }] = (await postgres.sql(
    `select current_setting('server_version') as text, current_setting('server_version_num') as number`,
  )) as [{ text: string; number: string }];
  const [major, minor] = version.split('.') as [string, string];
  const replacements = [
    [Buffer.from(number), Buffer.from(`${major}${minor.padStart(4, '0')}`)],
    [Buffer.from(text), Buffer.from(version)],
  ] as const;
  await using proxy = await TcpProxy.start({
    port: postgres.port,
    onChunk: (chunk, direction) => {
      if (direction === 'to server') return chunk;
      for (const [from, to] of replacements) {
        expect(from.length).toBe(to.length);
        for (let at = chunk.indexOf(from); at >= 0; at = chunk.indexOf(from, at)) to.copy(chunk, at);
      }
      return chunk;
    },
  });
  await use(proxy.through(postgres.url));
}

test('a server older than 14: every command that asks it', async () => {
  await withVersion('13.9', async (url) => {
    const migration = join(dir, 'm.sql');
    writeFileSync(migration, 'select 1');
    for (const args of [
      ['setup', '--postgres', url],
      replicator(url, 'never'),
      ['replica', '--file', join(dir, 'never.db'), '--postgres', url],
      ['status', '--postgres', url],
      ['doctor', '--postgres', url, '--migration', migration],
    ])
      expectRefusal(
        await rivulet(args),
        1,
        /the server is Postgres 13\.9, older than 14/,
        /upgrade Postgres/,
      );
    const doctor = await rivulet(['doctor', '--postgres', url]);
    expect(doctor).toMatchObject({ code: 1, err: '' });
    expect(doctor.out).toMatch(/problem {2}the server is Postgres 13\.9, older than 14/);
    expect((await rivulet(['teardown', '--postgres', url])).code).toBe(0);
  });
  expect(await traces()).toEqual([]);
  expect(readdirSync(dir)).not.toContain('never.db');
});

describe('directories and files', () => {
  test('a data directory that cannot be one', async () => {
    writeFileSync(join(dir, 'plain'), 'mine');
    for (const data of ['plain', 'plain/below']) {
      const outcome = await rivulet(replicator(postgres.url, data));
      expect(outcome).toMatchObject({ code: 1, out: '' });
      expect(outcome.err).toMatch(new RegExp(`^rivulet: the data directory .*${data} cannot be used`));
    }
    expect(await traces()).toEqual([]);
  });

  test('a read-only directory', async (context) => {
    const readOnly = join(dir, 'read-only');
    mkdirSync(readOnly);
    try {
      execFileSync('mount', ['-t', 'tmpfs', '-o', 'ro,size=1m', 'tmpfs', readOnly], { stdio: 'ignore' });
    } catch {
      return context.skip('mounting needs root');
    }
    try {
      expectRefusal(
        await rivulet(replicator(postgres.url, 'read-only')),
        1,
        /read-only cannot be used: EROFS/,
        /--data/,
      );
      const file = join(readOnly, 'app.db');
      for (const from of [
        ['--postgres', postgres.url],
        ['--replicator', 'http://127.0.0.1:1'],
      ])
        expectRefusal(
          await rivulet(['replica', '--file', file, ...from]),
          1,
          /app\.db is in a directory that cannot be written/,
          /./,
        );
      expect(await traces()).toEqual([]);
    } finally {
      execFileSync('umount', ['-l', readOnly]);
    }
  });
});

describe('as a user who may not', () => {
  const place = (...parts: string[]): string => join(dir, 'not-mine', ...parts);
  let own = '';

  beforeAll(async () => {
    mkdirSync(place('data'), { recursive: true });
    own = mkdtempSync(join(tmpdir(), 'rivulet-stranger-'));
    if (STRANGER.uid !== undefined) chownSync(own, STRANGER.uid, STRANGER.gid);
    chmodSync(dir, 0o755);
    for (const name of ['secret', 'migration.sql']) writeFileSync(place(name), 'select 1', { mode: 0o600 });
    const replica = new Database(place('app.db'));
    replica.pragma('journal_mode = wal');
    replica.exec('create table t (x)').close();
    for (const name of ['unreadable.db', 'unwritable.db']) cpSync(place('app.db'), join(own, name));
    chmodSync(join(own, 'unreadable.db'), STRANGER.uid === undefined ? 0 : 0o600);
    chmodSync(join(own, 'unwritable.db'), 0o444);
    if (STRANGER.uid === undefined) for (const name of ['secret', 'migration.sql']) chmodSync(place(name), 0);
    for (const each of ['data', '.']) chmodSync(place(each), 0o555);
  });
  afterAll(() => {
    for (const each of ['.', 'data']) chmodSync(place(each), 0o755);
    rmSync(own, { recursive: true, force: true });
  });

  const cases: [string, () => string[], number, RegExp, RegExp][] = [
    [
      'replicator',
      () => replicator(postgres.url, 'not-mine/data'),
      1,
      /data directory .*data cannot be used: EACCES/,
      /--data/,
    ],
    [
      'replicator, below',
      () => replicator(postgres.url, 'not-mine/new'),
      1,
      /data directory .*new cannot be used: EACCES/,
      /--data/,
    ],
    [
      'replica',
      () => ['replica', '--file', place('new.db'), '--replicator', 'http://127.0.0.1:1'],
      1,
      /new\.db is in a directory that cannot be written/,
      /SQLite/,
    ],
    [
      'replica, all in one',
      () => ['replica', '--file', place('new.db'), '--postgres', postgres.url],
      1,
      /new\.db is in a directory that cannot be written/,
      /SQLite/,
    ],
    [
      'replica, data elsewhere',
      () => ['replica', '--file', join(own, 'new.db'), '--data', place('data'), '--postgres', postgres.url],
      1,
      /data directory .*data cannot be used: EACCES/,
      /--data/,
    ],
    [
      'replica, file',
      () => ['replica', '--file', join(own, 'unwritable.db'), '--replicator', 'http://127.0.0.1:1'],
      1,
      /unwritable\.db cannot be read and written/,
      /owner and mode/,
    ],
    [
      'wait, file',
      () => ['wait', '--file', join(own, 'unreadable.db'), '--lsn', '0/1'],
      1,
      /unreadable\.db cannot be read: this user may not/,
      /needs to read the file/,
    ],
    [
      'status, file',
      () => ['status', '--file', join(own, 'unreadable.db')],
      1,
      /unreadable\.db cannot be read: this user may not/,
      /needs to read the file/,
    ],
    [
      'wait, directory',
      () => ['wait', '--file', place('app.db'), '--lsn', '0/1'],
      1,
      /app\.db cannot be read: this user may not/,
      /write into its directory/,
    ],
    [
      'status, directory',
      () => ['status', '--file', place('app.db')],
      1,
      /app\.db cannot be read: this user may not/,
      /write into its directory/,
    ],
    [
      'token file',
      () => ['status', '--replicator', 'http://127.0.0.1:1', '--token-file', place('secret')],
      2,
      /token file .*secret cannot be read: EACCES/,
      /owner and mode/,
    ],
    [
      'config file',
      () => ['status', '--config', place('secret')],
      2,
      /config file .*secret cannot be read: EACCES/,
      /owner and mode/,
    ],
    [
      'migration',
      () => ['doctor', '--migration', place('migration.sql')],
      2,
      /migration .*migration\.sql cannot be read: EACCES/,
      /owner and mode/,
    ],
    ['demo', () => ['demo', '--seconds', '1'], 1, /no directory can be made in .*data: EACCES/, /TMPDIR/],
  ];
  test('each command says what it may not, and leaves nothing', async (context) => {
    const before = readdirSync(place());
    const runs = cases.map(([what, args]): RunAs => {
      return { args: args(), env: what === 'demo' ? { TMPDIR: place('data') } : {} };
    });
    const outcomes = await runAsStranger(runs);
    if (outcomes === null) return context.skip('the sources are not for others to read');
    expect(outcomes).toHaveLength(cases.length);
    for (const [index, outcome] of outcomes.entries()) {
      const [, , ...expected] = cases[index]!;
      said += outcome.out + outcome.err;
      expectRefusal(outcome, ...expected);
    }
    expect(readdirSync(place())).toEqual(before);
    expect(readdirSync(place('data'))).toEqual([]);
    expect(await traces()).toEqual([]);
  });
});

describe('with a replicator', () => {
  let main: RivuletProcess;
  let url = '';
  const file = (): string => join(dir, 'app.db');
  beforeAll(async () => {
    main = start([...replicator(postgres.url, 'main', '--slot', 'main'), '--token', TOKEN]);
    url = await main.ready;
    await using replica = start(['replica', '--file', file(), '--replicator', url, '--token', TOKEN]);
    await replica.ready;
    expect(await replica.kill('SIGTERM')).toBe(0);
    expect(await main.kill('SIGTERM')).toBe(0);
  });
  /** The replicator runs only while a test wants it, so that each test leaves the server as it was. */
  async function withReplicator(use: (url: string) => Promise<void>): Promise<void> {
    await using running = start([...replicator(postgres.url, 'main', '--slot', 'main'), '--token', TOKEN]);
    await use(await running.ready);
    expect(await running.kill('SIGTERM')).toBe(0);
    said += running.stderr;
  }

  test('a missing or wrong token, a path too much, a port in use, a second process', async () => {
    await withReplicator(async (at) => {
      const fresh = ['replica', '--file', join(dir, 'fresh.db'), '--replicator', at];
      expectRefusal(await rivulet(fresh), 1, /bearer token is needed/, /--token-file/);
      expectRefusal(
        await rivulet([...fresh, '--token', `${TOKEN}-wrong`]),
        1,
        /bearer token/,
        /--token-file/,
      );
      expectRefusal(
        await rivulet([...fresh.slice(0, -1), `${at}/a/path`, '--token', TOKEN]),
        2,
        /no GET \/a\/path/,
        /without a path/,
      );
      expectRefusal(await rivulet(['status', '--replicator', at]), 1, /refuses the token/, /--token-file/);
      const busy = new URL(at).host;
      expectRefusal(
        await rivulet(['replica', '--file', file(), '--replicator', at, '--token', TOKEN, '--listen', busy]),
        1,
        /already listens on/,
        /--listen/,
      );
      expectRefusal(
        await rivulet(replicator(postgres.url, 'main')),
        1,
        `another process already keeps the data directory ${join(dir, 'main')}`,
        /main\/replicator-lock says; stop the other/,
      );
      expect(readdirSync(join(dir, 'main'))).toContain('replicator-lock');
      expect(readdirSync(dir)).not.toContain('fresh.db');
    });
  });

  test('a damaged replica file says what to do, and stays', async () => {
    const damaged = join(dir, 'damaged.db');
    cpSync(file(), damaged);
    truncateSync(damaged, 4096);
    expectRefusal(
      await rivulet(['replica', '--file', damaged, '--replicator', 'http://127.0.0.1:1']),
      1,
      /malformed/,
      /deleted/,
    );
    expectRefusal(
      await rivulet(['wait', '--file', damaged, '--lsn', '0/1']),
      1,
      /damaged\.db cannot be read/,
      /deleted/,
    );
    expectRefusal(await rivulet(['status', '--file', damaged]), 1, /damaged\.db cannot be read/, /deleted/);
    const emptied = join(dir, 'emptied.db');
    cpSync(file(), emptied);
    new Database(emptied).exec('delete from _rivulet_position').close();
    expectRefusal(
      await rivulet(['replica', '--file', emptied, '--replicator', 'http://127.0.0.1:1']),
      1,
      /emptied\.db holds no position/,
      /delete/,
    );
  });

  test.each([
    ['junk', (log: string) => writeFileSync(log, 'x'.repeat(9000)), /not a database/],
    ['empty', (log: string) => writeFileSync(log, ''), /no such table/],
    ['truncated', (log: string) => truncateSync(log, 8192), /malformed/],
    [
      'a directory',
      (log: string) => {
        rmSync(log);
        mkdirSync(log);
      },
      /unable to open/,
    ],
    [
      'of another format',
      (log: string) =>
        new Database(log).exec("update meta set value = 99 where key = 'format_version'").close(),
      /format 99/,
    ],
  ])('a change log that is %s', async (what, spoil, message) => {
    const data = join(dir, `log-${what.replaceAll(' ', '-')}`);
    cpSync(join(dir, 'main'), data, { recursive: true });
    spoil(join(data, 'log.db'));
    expectRefusal(
      await rivulet(['replicator', '--postgres', postgres.url, '--data', data, '--listen', '0']),
      1,
      message,
      /data/,
    );
    expect(readdirSync(data)).toContain('base.db');
  });

  test('a data directory of another database stays as it is', async () => {
    const before = readdirSync(join(dir, 'main')).filter((name) => /^(log|base)\.db$/.test(name));
    const outcome = await rivulet(replicator(onDatabase('other'), 'main', '--slot', 'other_slot'));
    expect(outcome).toMatchObject({ code: 1, out: '' });
    expect(outcome.err).toMatch(/belongs to another database\n {2}hint: .*--data/);
    expect(readdirSync(join(dir, 'main'))).toEqual(expect.arrayContaining(before));
    expect(await slots()).toEqual([]);
  });
});

describe('something that is not a replicator', () => {
  const behaviours: [string, (socket: Socket) => void, RegExp][] = [
    ['says garbage', (socket) => socket.end('\0\x01garbage\r\n\r\n'), /not HTTP/],
    ['hangs up', (socket) => socket.destroy(), /is not there/],
    [
      'knows no such page',
      (socket) =>
        socket.once('data', () => socket.end('HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\nno')),
      /127\.0\.0\.1:\d+ answers 404/,
    ],
    [
      'serves a page',
      (socket) => socket.once('data', () => socket.end('HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello')),
      /something else than a snapshot/,
    ],
  ];
  test.each(behaviours)('it %s: said, tried again, ended cleanly', async (_what, behave, message) => {
    const server: Server = createServer((socket) => {
      socket.on('error', () => undefined);
      behave(socket);
    }).listen(0, '127.0.0.1');
    await once(server, 'listening');
    try {
      const at = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
      const host = fakeProcess({ RIVULET_TOKEN: TOKEN });
      const running = run(['replica', '--file', join(dir, 'nothing.db'), '--replicator', at], host);
      await waitUntil('a second try', () => host.stderr.text.split(/"level":40/).length > 2);
      host.signal('SIGTERM');
      expect(await running).toBe(0);
      said += host.stderr.text;
      expect(host.stderr.text).toMatch(message);
      expect(host.stderr.text).toMatch(/"hint":"[^"]*(replicator|running)/);
      expect(host.stdout.text).toBe('');
      expectRefusal(
        await rivulet(['status', '--replicator', at, '--token', TOKEN]),
        1,
        /127\.0\.0\.1:\d+/,
        /replicator|running/,
      );
      expect(readdirSync(dir)).not.toContain('nothing.db');
    } finally {
      server.close();
    }
  });
});
