import { expect, test } from 'vitest';
import { CHANGE_HEADER_BYTES } from '../../src/change/frame.ts';
import { readPublishedSchema } from '../../src/source/catalog.ts';
import { connect, disconnect } from '../../src/source/connection.ts';
import { type TableReading, TableRereader } from '../../src/source/initial-copy.ts';
import type { KeyText } from '../../src/source/key-range.ts';
import { MAJORS, startPostgres } from '../helpers/postgres.ts';

const PIECE_ROWS = 700;

/** Tables whose keys have another order, or another form, as text than the server gives them. */
const TABLES = `
  create table numbers (filler text, id int primary key);
  insert into numbers select repeat('x', i % 90), i from generate_series(-1500, 1500) i;
  create table texts (k text collate "C" primary key, v int);
  insert into texts select case i % 4 when 0 then E'tab\\t' when 1 then E'back\\\\slash ' when 2 then E'line\\n''' else '\\N' end || i, i
    from generate_series(1, 2500) i;
  create table pairs (b int, a char(4), v text, primary key (a, b));
  insert into pairs select i, 'k' || i % 7, null from generate_series(1, 2500) i;
  create table parts (id int, day date, primary key (id, day)) partition by range (id);
  create table parts_low partition of parts for values from (0) to (1200);
  create table parts_high partition of parts for values from (1200) to (5000);
  insert into parts select i, date '2026-01-01' + i from generate_series(1, 2500) i;
  create table exact (id int primary key);
  insert into exact select generate_series(1, 2 * ${PIECE_ROWS});
  create table filtered (id int primary key, v int);
  insert into filtered select i, i % 3 from generate_series(1, 4000) i;
  create table none (id int primary key)`;

test.each(MAJORS)('Postgres %i: a table read again by key comes in pieces of as many rows', async (major) => {
  await using postgres = await startPostgres({ major });
  await postgres.sql(TABLES);
  const filter = major >= 15 ? 'where (v > 0)' : '';
  await postgres.sql(
    `create publication rivulet for table numbers, texts, pairs, parts, exact, none, filtered ${filter}
       with (publish_via_partition_root = true)`,
  );
  const client = await connect(postgres.url, { applicationName: 'test' });
  try {
    const rereader = new TableRereader(client, { publication: 'rivulet', frameBytes: 4096 });
    for (const relation of await readPublishedSchema(client, 'rivulet')) {
      const pieces: number[] = [];
      const bytes: Buffer[] = [];
      const table: TableReading = {
        relation,
        hasLongRows: false,
        onRows: async (rows, count) => {
          pieces[pieces.length - 1]! += count;
          // Until the next rows come its memory is as it was.
          await new Promise((resolve) => setImmediate(resolve));
          bytes.push(Buffer.from(rows));
        },
      };
      let upTo: KeyText | null = null;
      do {
        pieces.push(0);
        upTo = await rereader.readBehind(table, upTo, PIECE_ROWS);
      } while (upTo !== null);
      const [{ count }] = (await postgres.sql<{ count: number }>(
        `select count(*)::int from ${relation.name} ${relation.name === 'filtered' ? filter : ''}`,
      )) as [{ count: number }];
      // All whole but the last one.
      expect(pieces, relation.name).toEqual([
        ...new Array(Math.floor(count / PIECE_ROWS)).fill(PIECE_ROWS),
        count % PIECE_ROWS,
      ]);
      expect(distinctChanges(Buffer.concat(bytes)), relation.name).toBe(count);
    }
  } finally {
    await disconnect(client);
  }
});

/** No row twice: with as many as there are, none is missing. */
function distinctChanges(bytes: Buffer): number {
  const rows = new Set<string>();
  for (let at = 0; at < bytes.length; ) {
    const end = at + CHANGE_HEADER_BYTES + bytes.readUInt32LE(at + CHANGE_HEADER_BYTES - 4);
    rows.add(bytes.latin1Slice(at, end));
    at = end;
  }
  return rows.size;
}
