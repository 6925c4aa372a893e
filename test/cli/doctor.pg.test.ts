import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { DoctorReport } from '../../src/cli/doctor/doctor.ts';
import { run } from '../../src/cli/run.ts';
import { MAJORS, startPostgres, type TestPostgres } from '../helpers/postgres.ts';
import { TcpProxy } from '../helpers/tcp-proxy.ts';
import { fakeProcess } from './fake-process.ts';

const PASSWORD = 'password-that-nobody-may-see';

async function rivulet(...args: string[]): Promise<{ code: number; out: string; err: string }> {
  const host = fakeProcess({});
  const code = await run(args, host);
  expect(host.stdout.text + host.stderr.text).not.toContain(PASSWORD);
  return { code, out: host.stdout.text, err: host.stderr.text };
}

async function examine(url: string, ...more: string[]): Promise<DoctorReport & { code: number }> {
  const { code, out, err } = await rivulet('doctor', '--postgres', url, '--json', ...more);
  expect(err).toBe('');
  return { ...(JSON.parse(out) as DoctorReport), code };
}

/** `severity check` of the server's findings that are not ok, but for those that every test server has. */
function server(report: DoctorReport): string[] {
  return report.server.findings
    .filter(
      ({ severity, check }) => severity !== 'ok' && !['fsync', 'max_slot_wal_keep_size'].includes(check),
    )
    .map(({ severity, check }) => `${severity} ${check}`);
}

function table(report: DoctorReport, name: string): string[] {
  const found = report.tables.find((each) => each.table === name);
  expect(found, name).toBeDefined();
  return found!.findings.map(({ severity, check }) => `${severity} ${check}`);
}

describe.each(MAJORS)('Postgres %i', (major) => {
  let postgres: TestPostgres;
  const asUser = (user: string): string => {
    const url = new URL(postgres.url);
    url.username = user;
    url.password = PASSWORD;
    return url.href;
  };
  beforeAll(async () => {
    postgres = await startPostgres({ major, settings: { max_prepared_transactions: 2 } });
    await postgres.sql(`
      create schema sales;
      create table "User" (id int primary key, "Name" text, name text);
      create table "user" (id bigint primary key, price numeric(10,2), at timestamptz, tags text[], raw bytea, f float8, ok bool);
      create index on "user" ((price * 2)); create index on "user" using gin (tags);
      create index on "user" (at) where ok; create index on "user" (at);
      create table log (line text); insert into log select 'x' from generate_series(1, 5000); analyze log;
      create unlogged table cache (id int primary key);
      create table sales.orders (id int, d date, primary key (id, d)) partition by range (d);
      create table sales.orders_1 partition of sales.orders for values from ('2020-01-01') to ('2021-01-01');
      create unlogged table sales.orders_2 partition of sales.orders for values from ('2021-01-01') to ('2022-01-01');
      create table gen (id int primary key, a int, b int generated always as (a * 2) stored);
      create table late (id int primary key deferrable);
      create table mine (id int);
      create view v as select 1;
      create table secret (id int primary key);
      alter table secret enable row level security;
      create role low login password '${PASSWORD}';
      create role owner login replication password '${PASSWORD}';
      grant create on database postgres to owner;
      grant select on secret, log to owner;
      alter table mine owner to owner;`);
  });
  afterAll(() => postgres?.close());

  /** Everything on the server that set-up or a careless look could have changed. */
  const state = (): Promise<unknown[]> =>
    postgres.sql(`
      select 'identity ' || relname || ' ' || relreplident::text as trace from pg_class where relnamespace = 'public'::regnamespace
      union all select 'publication ' || pubname from pg_publication
      union all select 'schema ' || nspname from pg_namespace
      union all select 'slot ' || slot_name || ' ' || active from pg_replication_slots
      order by 1`);

  test('before set-up: every table as set-up would publish it', async () => {
    const before = await state();
    const report = await examine(postgres.url);
    expect(await state()).toEqual(before);
    expect([report.code, report.severity, report.server.isSetUp]).toEqual([0, 'warning', false]);
    expect(server(report)).toEqual([]);
    expect(report.tables.map((each) => `${each.table} ${each.sqliteName}`)).toEqual([
      'public."User" User',
      'public.gen gen',
      'public.late late',
      'public.log log',
      'public.mine mine',
      'public.secret secret',
      expect.stringMatching(/^public\."user" user__[0-9a-f]{8}$/),
      'sales.orders sales.orders',
    ]);
    expect(table(report, 'public."User"')).toEqual(['note column_name']);
    expect(table(report, 'public."user"')).toEqual(['note name', 'note index']);
    expect(table(report, 'public.log')).toEqual(['note replica_identity']);
    expect(table(report, 'public.late')).toEqual(['note replica_identity', 'note key']);
    expect(table(report, 'public.gen')).toEqual(major === 18 ? [] : ['warning generated_column']);
    expect(table(report, 'sales.orders')).toEqual(['ok partitions', 'warning unlogged']);
    expect(table(report, 'public.secret')).toEqual([]);
    const user = report.tables.find((each) => each.table === 'public."user"')!;
    expect(user.columns.map(({ name, type, storage }) => [name, type, storage])).toEqual([
      ['id', 'bigint', 'INTEGER'],
      ['price', 'numeric(10,2)', 'INTEGER, REAL or TEXT, whichever is exact'],
      ['at', 'timestamp with time zone', 'TEXT'],
      ['tags', 'text[]', 'TEXT, a JSON array'],
      ['raw', 'bytea', 'BLOB'],
      ['f', 'double precision', 'REAL (NaN as TEXT)'],
      ['ok', 'boolean', 'INTEGER 0/1'],
    ]);
    expect(user.findings[1]!.says).toMatch(
      /^3 indexes .*user_at_idx \(partial\), user_expr_idx \(of an expression\), user_tags_idx \(gin\)$/,
    );
    expect(report.notMirrored).toEqual([
      { table: 'public.cache', reason: expect.stringContaining('unlogged') },
      { table: 'sales.orders_2', reason: expect.stringContaining('unlogged') },
    ]);
    expect(report.notReplicated.views).toBe(1);
    expect(report.copy).toMatchObject({ rows: 5000, bytes: expect.any(Number), tablesWithoutEstimate: 0 });
  });

  test('what it says of names, identities and tables is what set-up then does', async () => {
    const before = await examine(postgres.url);
    expect((await rivulet('setup', '--postgres', postgres.url)).code).toBe(0);
    try {
      const after = await examine(postgres.url);
      expect(after.server.isSetUp).toBe(true);
      expect(
        after.tables.map(({ table: name, sqliteName, columns, identity }) => [
          name,
          sqliteName,
          columns,
          identity,
        ]),
      ).toEqual(
        before.tables.map((each) => [each.table, each.sqliteName, each.columns, each.identityAfterSetup]),
      );
      expect(after.notMirrored).toEqual(before.notMirrored);
      expect(table(after, 'public.log')).toEqual(['note replica_identity']);
      // The identity is spoilt behind the hooks' back.
      await postgres.sql(`alter event trigger _rivulet_ddl disable; alter table log replica identity nothing;
                          alter event trigger _rivulet_ddl enable always`);
      await expect(postgres.sql("update log set line = ''")).rejects.toThrow(/replica identity/);
      await postgres.sql('drop function rivulet.untie(oid)');
      const refused = await examine(postgres.url);
      expect([refused.code, table(refused, 'public.log')]).toEqual([1, ['problem replica_identity']]);
      expect(server(refused)).toContain('warning functions');
    } finally {
      expect((await rivulet('teardown', '--postgres', postgres.url)).code).toBe(0);
      await postgres.sql('alter table log replica identity default');
    }
  });

  test('a user without rights hears which, and what could not be seen', async () => {
    const low = await examine(asUser('low'));
    expect(low.code).toBe(1);
    expect(server(low)).toEqual([
      'problem server',
      'problem publication_right',
      'problem create_right',
      'warning event_triggers',
      'note open_transaction',
    ]);
    expect(table(low, 'public.gen')).toContain('problem select_right');
    // May do all that is needed, for its own table.
    const owner = await examine(asUser('owner'), '--tables', 'mine');
    expect([owner.code, server(owner)]).toEqual([0, ['warning event_triggers', 'note open_transaction']]);
    expect(owner.tables.map((each) => each.table)).toEqual(['public.mine']);
    expect(owner.notMirrored).toContainEqual({ table: 'public.log', reason: 'not in --tables' });
    const other = await examine(asUser('owner'), '--tables', 'log,secret');
    expect(other.code).toBe(1);
    expect(table(other, 'public.log')).toEqual(['note replica_identity', 'problem owner']);
    expect(table(other, 'public.secret')).toEqual(['problem owner', 'problem select_right']);
  });

  test("a publication's row filter, column list and missing operations", async () => {
    await postgres.sql(
      `create publication narrow for table "user" (id, at) where (id > 5), log with (publish = 'insert')`,
    );
    try {
      const report = await examine(postgres.url, '--publication', 'narrow', '--tables', 'log,gen');
      expect(report.code).toBe(1);
      expect(server(report)).toEqual([
        'problem publication',
        'warning publication',
        'note schema',
        'warning tables',
      ]);
      expect(
        report.tables.find((each) => each.table === 'public."user"')!.findings.map(({ says }) => says),
      ).toEqual(
        expect.arrayContaining([
          "the publication's column list leaves out price, tags, raw, f, ok",
          'only rows with (id > 5) are published',
        ]),
      );
    } finally {
      await postgres.sql('drop publication narrow');
    }
  });

  test('transactions that hold up the slot, with pid or gid, and slots of others', async () => {
    const client = await postgres.client();
    await client.query(`set application_name = 'nightly job'; begin; insert into log values ('open')`);
    const prepared = await postgres.client();
    await prepared.query(`begin; insert into log values ('prepared'); prepare transaction 'forgotten'`);
    await postgres.sql(`select pg_create_physical_replication_slot('rivulet')`);
    const pid = (await client.query('select pg_backend_pid() as pid')).rows[0].pid;
    try {
      await expect
        .poll(
          async () =>
            (await examine(postgres.url)).server.findings.filter(({ check }) => check === 'open_transaction')
              .length,
          {
            timeout: 20_000,
            interval: 500,
          },
        )
        .toBe(2);
      const report = await examine(postgres.url);
      const says = report.server.findings.map((finding) => finding.says).join('\n');
      expect(says).toMatch(
        new RegExp(
          `a transaction of pid ${pid} \\(nightly job, user postgres, idle in transaction\\) is open for \\d`,
        ),
      );
      expect(says).toMatch(/the prepared transaction 'forgotten' .* is open for \d/);
      expect(says).toMatch(/the slot rivulet is there already, for physical replication/);
      expect(report.code).toBe(1);
    } finally {
      await client.query('rollback');
      await postgres.sql(`rollback prepared 'forgotten'`);
      await postgres.sql(`select pg_drop_replication_slot('rivulet')`);
    }
  });

  test('a locked table makes it wait for an instant, not for the lock', async () => {
    const client = await postgres.client();
    await client.query('begin; lock table log in access exclusive mode');
    const report = await examine(postgres.url);
    await client.query('rollback');
    expect(report.tables.find((each) => each.table === 'public.log')).toMatchObject({
      rows: expect.any(Number),
    });
  });
});

describe('settings', () => {
  test('each that matters is named', async () => {
    await using postgres = await startPostgres({
      settings: {
        wal_level: 'replica',
        max_replication_slots: 1,
        max_wal_senders: 1,
        max_slot_wal_keep_size: '64MB',
        wal_sender_timeout: '2s',
        logical_decoding_work_mem: '1MB',
        synchronous_commit: 'off',
        idle_replication_slot_timeout: '1h',
        event_triggers: 'off',
        statement_timeout: '90s',
      },
    });
    const report = await examine(postgres.url);
    expect(report.code).toBe(1);
    expect(
      report.server.findings
        .filter(({ severity }) => severity !== 'ok')
        .map(({ severity, check }) => `${severity} ${check}`),
    ).toEqual([
      'problem server',
      'warning event_triggers',
      'warning max_slot_wal_keep_size',
      'warning wal_sender_timeout',
      'note logical_decoding_work_mem',
      'note synchronous_commit',
      'warning fsync',
      'warning idle_replication_slot_timeout',
    ]);
    expect(report.server.findings.find(({ check }) => check === 'timeouts')!.says).toContain(
      'statement_timeout = 1m 30s',
    );
    // A pooler that answers queries and does not know what a replication connection is.
    await using pooler = await TcpProxy.start({
      port: postgres.port,
      onChunk: (chunk, direction) => {
        const at = direction === 'to server' ? chunk.indexOf('replication\0database') : -1;
        if (at >= 0) chunk.write('unknown', at);
        return chunk;
      },
    });
    const pooled = await examine(pooler.through(postgres.url));
    expect(pooled.server.findings).toContainEqual(
      expect.objectContaining({
        check: 'replication_connection',
        severity: 'problem',
        says: expect.stringContaining('unknowntion'),
      }),
    );
  });
});

describe('the page', () => {
  let postgres: TestPostgres;
  const dir = mkdtempSync(join(tmpdir(), 'rivulet-doctor-'));
  beforeAll(async () => {
    postgres = await startPostgres();
    await postgres
      .sql(`select format('create table keyless_%s (line text)', n) from generate_series(1, 30) n`)
      .then((rows) => postgres.sql(rows.map((row) => row.format).join(';')));
    await postgres.sql('create table plain (id int primary key)');
  });
  afterAll(async () => {
    await postgres?.close();
    rmSync(dir, { recursive: true, force: true });
  });

  test('shows what deserves a word, and everything on demand', async () => {
    const short = await rivulet('doctor', '--postgres', postgres.url);
    expect(short).toMatchObject({ code: 0, err: '' });
    expect(short.out).toMatch(/^Postgres 18\.\d+, database postgres, user postgres: not set up yet/);
    expect(short.out).toMatch(/Tables: 31 would be mirrored, 0 not/);
    expect(short.out).toMatch(/and 10 more tables: 10 with notes/);
    expect(short.out).not.toContain('public.plain');
    const long = await rivulet('doctor', '--postgres', postgres.url, '--verbose');
    expect(long.out).toContain('public.plain → plain');
    expect(long.out.match(/ {2}public\./g)).toHaveLength(31);
    expect(long.out).toMatch(/line {2}text {2}→ TEXT/);
  });

  test('refuses what it cannot look at', async () => {
    const absent = await rivulet('doctor', '--postgres', postgres.url, '--tables', 'absent');
    expect(absent).toMatchObject({ code: 1, out: '' });
    expect(absent.err).toMatch(/^rivulet: .*absent does not exist\n {2}hint: correct --tables/);
    const dead = await rivulet('doctor', '--postgres', `postgres://u:${PASSWORD}@127.0.0.1:1/d`);
    expect(dead).toMatchObject({ code: 1, out: '' });
    expect((await rivulet('doctor')).code).toBe(2);
  });
});
