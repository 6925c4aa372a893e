import { expect, test } from 'vitest';
import { CHANGE } from '../../src/change/frame.ts';
import type { LeftOutValue } from '../../src/change/relation.ts';
import { readPublishedSchema } from '../../src/source/catalog.ts';
import { connect, disconnect } from '../../src/source/connection.ts';
import { tapCopyData } from '../../src/source/copy-data-tap.ts';
import { CopyEncoder } from '../../src/source/copy-encoder.ts';
import { planCopy } from '../../src/source/copy-plan.ts';
import { type CopyQuery, cutCopyStatement } from '../../src/source/copy-query.ts';
import { KeyRange } from '../../src/source/key-range.ts';

import { forEachChange } from '../helpers/frames.ts';

import { MAJORS, startPostgres } from '../helpers/postgres.ts';

const LIMIT = 100_000;

test.each(MAJORS)(
  'Postgres %i: of rows that are too long the copy leaves out, and names, what a row has no room for',
  async (major) => {
    await using postgres = await startPostgres({ major });
    await postgres.sql(`
      create table t (id int primary key, "case" text, b bytea, "x ""y" text[], n numeric);
      create table parts (id int primary key, a text) partition by range (id);
      create table low partition of parts for values from (0) to (10);
      create table high partition of parts for values from (10) to (20);
      insert into t values
        (1, E'tab\\tback\\\\slash\\n', '\\x00ff', '{a,NULL}', 1.50),
        (2, repeat('a', 120000), '\\x01', null, 2),
        (3, repeat('a', 60000), decode(repeat('00', 60000), 'hex'), array[repeat('z', 30000)], 3),
        (4, null, decode(repeat('00', 99000), 'hex'), null, null),
        (5, repeat(E'\\t', 90000), decode(repeat('00', 100001), 'hex'), '{}', 5);
      insert into parts values (1, 'short'), (11, 'short'), (2, repeat('b', 100001)), (12, repeat('c', 100001));
      create publication rivulet for table t, parts with (publish_via_partition_root = true)`);
    const client = await connect(postgres.url, { applicationName: 'test' });
    await client.query('begin isolation level repeatable read read only');
    try {
      const relations = await readPublishedSchema(client, 'rivulet');
      const t = relations.find(({ name }) => name === 't')!;
      const parts = relations.find(({ name }) => name === 'parts')!;
      let encoder = new CopyEncoder(t, CHANGE.insert);
      tapCopyData(
        client,
        (bytes, from, to) => {
          encoder.push(bytes, from, to);
          return true;
        },
        () => undefined,
        (error) => {
          throw error;
        },
      );
      const read = async (relation: typeof t, query: CopyQuery) => {
        const { sql, namesCuts } = await cutCopyStatement(client, relation, query, LIMIT);
        encoder = new CopyEncoder(relation, CHANGE.insert, { namesCuts });
        await client.query(sql);
        const rows: number[] = [];
        const cuts: string[] = [];
        forEachChange(encoder.take(), ({ kind, body }) => {
          if (kind === CHANGE.insert) rows.push(body.length);
          else {
            const { row, column, bytes } = JSON.parse(body.toString()) as LeftOutValue;
            cuts.push(`${row}: ${column} ${bytes}`);
          }
        });
        return { rows, cuts };
      };
      const [plain] = await planCopy(client, { publication: 'rivulet' }, [t]);
      // What a row has room for is taken from the left: 60,000 and 30,000 bytes go into one, 60,000 twice do not.
      const expected = ['id = 2: case 120000', 'id = 3: b 120002', 'id = 5: b 200004'];
      const whole = await read(t, plain!.query);
      expect(whole.cuts).toEqual(expected);
      expect(whole.rows).toHaveLength(5);
      expect(whole.rows[2]).toBeGreaterThan(90_000);
      expect(whole.rows[2]).toBeLessThan(LIMIT);
      const range = new KeyRange(t, { isPartitioned: false, unlogged: [] }, undefined);
      expect(await read(t, range.query(['1'], 3))).toEqual({
        rows: whole.rows.slice(1, 4),
        cuts: expected.slice(0, 2),
      });
      const root = new KeyRange(parts, { isPartitioned: true, unlogged: [] }, undefined);
      expect((await read(parts, root.query(null, 10))).cuts).toEqual([
        'id = 2: a 100001',
        'id = 12: a 100001',
      ]);
      // Where every row has room it is the copy as it always is.
      const short = { ...plain!.query, source: `${plain!.query.source} where id = 1` };
      expect(await cutCopyStatement(client, t, short, LIMIT)).toMatchObject({ namesCuts: false });
    } finally {
      await disconnect(client);
    }
  },
);
