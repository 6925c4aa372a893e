import pg from 'pg';
import { describe, expect, test } from 'vitest';
import { setup } from '../../src/source/setup.ts';
import { MAJORS, startPostgres } from '../helpers/postgres.ts';

const NAMES = { publication: 'rivulet', slot: 'rivulet', log: (): void => undefined };

// https://www.postgresql.org/docs/current/app-pgdump.html: it locks and reads all tables, and reads all sequences.
describe.each(MAJORS)('Postgres %i', (major) => {
  test('who owns no more than the tables of the application can still dump the database', async () => {
    await using server = await startPostgres({ major, settings: { wal_level: 'logical' } });
    await server.sql(`
      create role owner login password 'owner';
      create schema app authorization owner;
      set role owner; create table app.t (id int primary key, v text); create table app.keyless (v text); reset role`);
    await setup({ url: server.url, ...NAMES });
    const url = new URL(server.url);
    url.username = url.password = 'owner';
    const owner = new pg.Client({ connectionString: url.href });
    await owner.connect();
    try {
      const { rows: tables } = await owner.query<{ name: string; kind: string }>(
        `select format('%I.%I', n.nspname, c.relname) as name, c.relkind::text as kind
           from pg_class c join pg_namespace n on n.oid = c.relnamespace
          where n.nspname !~ '^pg_' and n.nspname <> 'information_schema' and c.relkind in ('r', 'p', 'S')
          order by c.oid`,
      );
      expect(tables.map(({ name }) => name)).toEqual(
        expect.arrayContaining(['app.t', 'rivulet.config', 'rivulet.config_state', 'rivulet.migration']),
      );
      await owner.query('begin isolation level repeatable read read only');
      for (const { name, kind } of tables)
        if (kind !== 'S') await owner.query(`lock table ${name} in access share mode`);
      for (const { name } of tables) await owner.query(`select * from ${name}`);
      await owner.query('commit');
      await expect(owner.query('select * from rivulet.message_key')).rejects.toThrow(/permission denied/);
    } finally {
      await owner.end();
    }
    // Jobs that refresh whatever can be refreshed, and set-up once more, leave the key as it is.
    const key = (): Promise<unknown> => server.sql('select key from rivulet.message_key');
    const before = await key();
    expect(before).toEqual([{ key: expect.stringMatching(/^[0-9a-f-]{36}$/) }]);
    await server.sql('refresh materialized view rivulet.message_key');
    await setup({ url: server.url, ...NAMES });
    expect(await key()).toEqual(before);
    // One that is restored elsewhere is made there, and has another.
    await server.sql('refresh materialized view rivulet.message_key with no data');
    await server.sql('refresh materialized view rivulet.message_key');
    expect(await key()).toEqual([{ key: expect.stringMatching(/^[0-9a-f-]{36}$/) }]);
    expect(await key()).not.toEqual(before);
  });
});
