import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { BaseWriter } from '../../src/snapshot/base-writer.ts';
import { readPublishedSchema } from '../../src/source/catalog.ts';
import { type CopyProgress, copyTables } from '../../src/source/initial-copy.ts';
import { createSlot } from '../../src/source/slot.ts';
import { compareWithPostgres } from '../helpers/compare.ts';
import { MAJORS, startPostgres } from '../helpers/postgres.ts';

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
        writer = new BaseWriter({
          kind: 'build',
          file,
          relations,
          epoch: 'e',
          systemIdentifier: '1',
          databaseName: 'postgres',
          checksumFor: null,
        });
      },
      onFrame: (frame) => writer!.write(frame),
      onProgress: (progress) => {
        last = progress;
      },
    });
    await writer!.finish(slot.consistentPoint, 0n);
    await postgres.sql("delete from large where id = -1; update hard set t = '' where id = 2");
    expect(await compareWithPostgres(url, file)).toEqual([]);
    expect(last).toMatchObject({ tablesDone: 4, tablesTotal: 4 });
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
});
