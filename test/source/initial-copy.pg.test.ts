import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { CHANGE } from '../../src/change/frame.ts';
import type { SchemaChange } from '../../src/change/relation.ts';
import { BaseWriter } from '../../src/snapshot/base-writer.ts';
import { readPublishedSchema } from '../../src/source/catalog.ts';
import { type CopyProgress, copyTables } from '../../src/source/initial-copy.ts';
import { createSlot } from '../../src/source/slot.ts';
import { compareWithPostgres } from '../helpers/compare.ts';
import { forEachChange } from '../helpers/frames.ts';
import { MAJORS, startPostgres } from '../helpers/postgres.ts';
import { TcpProxy } from '../helpers/tcp-proxy.ts';

test.each(MAJORS)('Postgres %i: several connections, tables in ranges, one moment', async (major) => {
  await using postgres = await startPostgres({ major });
  const dir = mkdtempSync(join(tmpdir(), 'rivulet-test-'));
  try {
    await postgres.sql(`
      create table large (id int primary key, v text, n numeric);
      insert into large select i, repeat('x', 200) || i, i / 8.0 from generate_series(1, 30000) i;
      delete from large where id % 7 = 0;
      create table hard (id int primary key, t text, b bytea, a text[], j jsonb);
      insert into hard values (1, E'tab\\t newline\\n return\\r backslash\\\\ \\\\N end', '\\x005c0a09', '{"a\\tb","NULL",NULL,"\\\\\\\\"}', '{"k": "\\\\u00e9\\\\n"}'),
        (2, '', '\\x', '{}', 'null'), (3, null, null, null, null), (4, '\\N', null, '{""}', '"\\\\\\\\"');
      create table empty (id int primary key);
      create table part (id int primary key, v text) partition by range (id);
      create table part_a partition of part for values from (0) to (1000);
      create table part_b (v text, id int primary key);
      alter table part attach partition part_b for values from (1000) to (5000);
      insert into part select i, 'p' || i from generate_series(1, 3000) i;
      create publication rivulet for all tables with (publish_via_partition_root = true);
    `);
    const url = postgres.url;
    await using slot = await createSlot({ url, slot: 'rivulet' });
    // After the slot: not in its snapshot. Taken back before comparing.
    await postgres.sql("insert into large values (-1, 'later', 1); update hard set t = 'later' where id = 2");
    let writer: BaseWriter | null = null;
    let last: CopyProgress | null = null;
    const file = join(dir, 'base.db');
    await copyTables({
      url,
      snapshot: slot.snapshot,
      publication: 'rivulet',
      connections: 3,
      rangePages: 40,
      signal: new AbortController().signal,
      readSchema: (client) => readPublishedSchema(client, 'rivulet'),
      onSchema: async (relations) => {
        writer = new BaseWriter().begin({
          kind: 'build',
          file,
          relations,
          epoch: 'e',
          systemIdentifier: '1',
          databaseName: 'postgres',
          checksumFor: null,
          isUtf8: true,
        });
      },
      onFrame: (frame) => writer!.write(frame),
      onProgress: (progress) => {
        last = progress;
      },
    });
    writer!.endCopy(slot.consistentPoint, 0n);
    await writer!.finish();
    await postgres.sql("delete from large where id = -1; update hard set t = '' where id = 2");
    expect(await compareWithPostgres(url, file)).toEqual([]);
    expect(last).toMatchObject({ tablesDone: 4, tablesTotal: 4 });
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
});

/** What the slot's snapshot does not show any more, whatever it is: by table, what makes it so. */
const CHANGES = {
  emptied: 'truncate emptied',
  rewritten: "alter table rewritten alter v type text using 'n' || v",
  dropped: 'drop table dropped',
  renamed: 'alter table renamed rename to other_name',
  swapped_a: 'alter table swapped_a rename to swapping',
  swapped_b: 'alter table swapped_b rename to swapped_a; alter table swapping rename to swapped_b',
  columns:
    'alter table columns rename v to w; alter table columns rename id to v; alter table columns rename w to id',
  replaced:
    'drop table replaced; create table replaced (id int primary key, v int); insert into replaced values (1, 2)',
  retyped: 'alter table retyped alter v type oid',
  moved: 'create schema elsewhere; alter table moved set schema elsewhere',
  part: 'alter table part_a rename to part_c; truncate part_c',
} as const;

/** And what changes nothing of the rows that it shows. */
const NO_CHANGES = {
  added: 'alter table added add column w int default 3',
  indexed: 'create index on indexed (v)',
  widened: 'alter table widened alter t type varchar(40)',
  detached: 'alter table detached detach partition detached_a',
} as const;

test.each(MAJORS)('Postgres %i: tables that change before they are copied are told of', async (major) => {
  await using postgres = await startPostgres({ major });
  const plain = Object.keys({ ...CHANGES, ...NO_CHANGES }).filter(
    (name) => name !== 'part' && name !== 'detached',
  );
  await postgres.sql(
    [
      ...plain.map(
        (name) =>
          `create table ${name} (id int primary key, v int, t varchar(20));
           insert into ${name} select i, i, 't' || i from generate_series(1, 100) i`,
      ),
      ...['part', 'detached'].map(
        (name) =>
          `create table ${name} (id int primary key, v int) partition by range (id);
           create table ${name}_a partition of ${name} for values from (0) to (50);
           create table ${name}_b partition of ${name} for values from (50) to (200);
           insert into ${name} select i, i from generate_series(1, 100) i`,
      ),
      'create publication rivulet for all tables with (publish_via_partition_root = true)',
    ].join(';'),
  );
  const url = postgres.url;
  await using slot = await createSlot({ url, slot: 'rivulet' });
  const rows = new Map<number, number>();
  const names = new Map<number, string>();
  let reloading: string[] = [];
  const { unread } = await copyTables({
    url,
    snapshot: slot.snapshot,
    publication: 'rivulet',
    signal: new AbortController().signal,
    readSchema: (client) => readPublishedSchema(client, 'rivulet'),
    onSchema: async (relations) => {
      for (const { oid, name } of relations) names.set(oid, name);
      for (const sql of Object.values({ ...CHANGES, ...NO_CHANGES })) await postgres.sql(sql);
    },
    onFrame: async (frame) => {
      forEachChange(frame, ({ kind, oid, body }) => {
        if (kind === CHANGE.insert) rows.set(oid, (rows.get(oid) ?? 0) + 1);
        else reloading = (JSON.parse(body.toString()) as SchemaChange).reloading!.map(({ name }) => name);
      });
    },
    onProgress: () => undefined,
  });
  expect(unread.map(({ name }) => name).sort()).toEqual(Object.keys(CHANGES).sort());
  expect(reloading.sort()).toEqual(Object.keys(CHANGES).sort());
  for (const [oid, name] of names) if (name in NO_CHANGES) expect([name, rows.get(oid)]).toEqual([name, 100]);
});

test.each(MAJORS)('Postgres %i: whoever wants to change a table waits for a moment only', async (major) => {
  await using postgres = await startPostgres({ major });
  await postgres.sql(`
    create table large (id int primary key, v text);
    insert into large select i, repeat('x', 300) from generate_series(1, 60000) i;
    create table done (id int primary key, v text);
    insert into done select i, repeat('x', 300) from generate_series(1, 80000) i;
    create table small (id int primary key);
    insert into small values (1);
    create publication rivulet for all tables`);
  const url = postgres.url;
  await using slot = await createSlot({ url, slot: 'rivulet' });
  const altering: Promise<number>[] = [];
  const rows = new Map<number, number>();
  const names = new Map<number, string>();
  const alter = async (sql: string): Promise<number> => {
    const startedMs = performance.now();
    const client = await postgres.client();
    await client.query(sql);
    return performance.now() - startedMs;
  };
  const { unread } = await copyTables({
    url,
    snapshot: slot.snapshot,
    publication: 'rivulet',
    connections: 1,
    signal: new AbortController().signal,
    readSchema: (client) => readPublishedSchema(client, 'rivulet'),
    onSchema: async (relations) => {
      for (const { oid, name } of relations) names.set(oid, name);
    },
    // As slow as a disk that is busy: the copy of a table takes several seconds.
    onFrame: async (frame) => {
      forEachChange(frame, ({ kind, oid }) => {
        if (kind === CHANGE.insert) rows.set(oid, (rows.get(oid) ?? 0) + 1);
        if (names.get(oid) !== 'large' || altering.length > 0) return;
        altering.push(alter('alter table large add column w int'));
        // This one has been read, and nobody holds it any more.
        altering.push(alter('alter table done add column w int'));
      });
      if (altering.length > 0) await new Promise((resolve) => setTimeout(resolve, 30));
    },
    onProgress: () => undefined,
  });
  for (const ms of await Promise.all(altering)) expect(ms).toBeLessThan(2_000);
  expect(unread.map(({ name }) => name)).toEqual(['large']);
  const copied = Object.fromEntries([...rows].map(([oid, count]) => [names.get(oid), count]));
  expect(copied).toMatchObject({ done: 80_000, small: 1 });
  expect(copied.large).toBeLessThan(60_000);
});

test('a server that has gone without a word fails the copy', async () => {
  await using postgres = await startPostgres();
  await postgres.sql(`
    create table large (id int primary key, v text);
    insert into large select i, repeat('x', 300) from generate_series(1, 60000) i;
    create publication rivulet for all tables`);
  await using proxy = await TcpProxy.start({ port: postgres.port });
  await using slot = await createSlot({ url: postgres.url, slot: 'rivulet' });
  const copying = copyTables({
    url: proxy.through(postgres.url),
    snapshot: slot.snapshot,
    publication: 'rivulet',
    connections: 1,
    answerTimeoutMs: 500,
    signal: new AbortController().signal,
    readSchema: (client) => readPublishedSchema(client, 'rivulet'),
    onSchema: async () => {
      for (const connection of proxy.connections) connection.stall('to client');
    },
    onFrame: async () => undefined,
    onProgress: () => undefined,
  });
  await expect(copying).rejects.toMatchObject({ code: 'POSTGRES_UNREACHABLE' });
});
