import pg from 'pg';
import { expect, test } from 'vitest';
import { TestCluster } from '../helpers/cluster.ts';
import { rivulet } from '../helpers/processes.ts';
import { waitUntil } from '../helpers/wait-until.ts';

/** What a database may prescribe to all its sessions, ours too. */
const SETTINGS = {
  standard_conforming_strings: 'off',
  escape_string_warning: 'off',
  backslash_quote: 'off',
  quote_all_identifiers: 'on',
  array_nulls: 'off',
  transform_null_equals: 'on',
  row_security: 'off',
  search_path: '',
  client_encoding: 'LATIN1',
  datestyle: 'German',
  intervalstyle: 'sql_standard',
  bytea_output: 'escape',
  extra_float_digits: '-5',
  timezone: 'Asia/Kathmandu',
  default_transaction_isolation: 'serializable',
  statement_timeout: '5s',
  lock_timeout: '1s',
  idle_in_transaction_session_timeout: '1s',
  'plpgsql.extra_errors': 'all',
  'plpgsql.variable_conflict': 'use_column',
};

test('a database in another encoding, that prescribes odd settings, is mirrored like any other', async () => {
  await using cluster = await TestCluster.start();
  const url = await cluster.useDatabase('LATIN1');
  const client = new pg.Client(url);
  await client.connect();
  try {
    await client.query("set client_encoding = 'UTF8'");
    await client.query(`
      create table größe (id int primary key, "maß ""x""" text, f float8, b bytea, d date, i interval, a text[], t timestamptz);
      insert into größe select n, 'Ä\\x' || n, n / 7.0::float8, '\\x00ff5c', date '2026-02-03' + n, n * interval '1 day 2:00',
          array['ü', null, 'NULL'], timestamptz '2026-02-03 04:05:06.7+01' from generate_series(1, 100) n`);
    for (const [name, value] of Object.entries(SETTINGS))
      await client.query(`alter database odd set ${name} = '${value}'`);
    await cluster.startReplicator();
    await cluster.startReplica('one');
  } finally {
    await client.end();
  }

  const application = new pg.Client(url);
  await application.connect();
  try {
    await application.query("set client_encoding = 'UTF8'");
    for (const sql of [
      `alter table public.größe add column später text default 'dänn', add column zeit timestamptz default '03.02.2026 04:05'`,
      `create type public.stimmung as enum ('süß', 'x y')`,
      `create table public.schlüssellos (a int, m public.stimmung default 'süß', e interval default '1 2:00')`,
      'insert into public.schlüssellos values (1), (1)',
      `update public.schlüssellos set m = 'x y' where ctid = '(0,1)'`,
      `alter table public.schlüssellos rename m to laune; alter table public.schlüssellos alter laune set default null`,
      'alter table public.größe set unlogged',
      'alter table public.größe set logged',
      `update public.größe set "maß ""x""" = 'é', f = f * 3 where id < 10; delete from public.größe where id > 90`,
      'alter table public.größe alter id type bigint',
      'begin; insert into public.größe (id) values (1000); truncate public.schlüssellos; rollback',
    ])
      await application.query(sql);
  } finally {
    await application.end();
  }
  await cluster.caughtUp();
  // What a serializable transaction has made LOGGED again the replicator takes back into the publication a moment later.
  const report = await waitUntil('both tables are published', async () => {
    await using verify = rivulet(['verify', '--postgres', url, '--file', cluster.file('one'), '--json']);
    expect(await verify.exited, verify.stderr).toBe(0);
    const now = JSON.parse(verify.stdout) as { tables: { table: string; rows: unknown }[] };
    return now.tables.length === 2 ? now : null;
  });
  expect(report.tables.map(({ table, rows }) => [table, rows])).toEqual([
    ['public.größe', { postgres: 90, file: 90 }],
    ['public.schlüssellos', { postgres: 2, file: 2 }],
  ]);
});
