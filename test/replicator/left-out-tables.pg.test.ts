import Database from 'better-sqlite3';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { TestCluster } from '../helpers/cluster.ts';
import { MAJORS } from '../helpers/postgres.ts';
import { waitUntil } from '../helpers/wait-until.ts';

const HOPELESS = '(id int not null, v text, g int generated always as (id + 1) virtual)';

describe.each(MAJORS.filter((major) => major >= 18))(
  'Postgres %i: tables that no replica identity helps',
  (major) => {
    let cluster: TestCluster;
    beforeAll(async () => {
      cluster = await TestCluster.start({ major, settings: { logical_decoding_work_mem: '64kB' } });
      await cluster.postgres.sql(`
      create table keyed (id int primary key, v text); insert into keyed values (1, 'a');
      create table bag (id int, v text); insert into bag values (1, 'a');
      create schema s; create table s.t (id int primary key, v text); insert into s.t values (1, 'a')`);
      await cluster.startReplicator();
      await cluster.startReplica('one');
    });
    afterAll(() => cluster?.[Symbol.asyncDispose]());

    const mirrored = (): unknown[] => {
      const db = new Database(cluster.file('one'), { readonly: true });
      try {
        return db.prepare('select sqlite_name from _rivulet_table order by 1').pluck().all();
      } finally {
        db.close();
      }
    };
    /** All statements that an application has for a table. */
    const everything = (
      table: string,
    ): string => `insert into ${table} (id, v) values (1, 'a'), (2, 'b'), (2, 'b');
    update ${table} set v = 'c' where id = 1; delete from ${table} where id = 2; update ${table} set id = 3`;

    test('stay out from the transaction on that makes them, and everything else goes on', async () => {
      const { postgres } = cluster;
      const [before, during] = await Promise.all([postgres.client(), postgres.client()]);
      await before.query(
        `begin; insert into keyed values (10, 'open before'); insert into s.t values (10, 'open before')`,
      );
      await during.query(`begin; insert into keyed select i, repeat('x', 200) from generate_series(1000, 3000) i;
      create table hopeless ${HOPELESS}; ${everything('hopeless')}; truncate hopeless; ${everything('hopeless')};
      insert into keyed select i, repeat('x', 200) from generate_series(3001, 5000) i; update bag set v = 'b'`);
      await before.query(
        `update keyed set v = 'b' where id = 1; insert into bag values (2, 'while it was open')`,
      );
      await during.query('commit');
      await before.query(
        `insert into keyed values (11, 'after'); insert into bag values (3, 'after'); commit`,
      );
      expect(await cluster.differences()).toEqual([]);
      expect(mirrored()).toEqual(['bag', 'keyed', 's.t']);
    });
  },
);
