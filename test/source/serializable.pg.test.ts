import type pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { setup } from '../../src/source/setup.ts';
import { MAJORS, startPostgres, type TestPostgres } from '../helpers/postgres.ts';

/**
 * Two serializable transactions fail where each has read what the other one writes. So what the hooks read in one must
 * be nothing that they write in another: that shows in the server's locks, whoever is faster.
 * https://www.postgresql.org/docs/current/transaction-iso.html#XACT-SERIALIZABLE
 */
describe.each(
  MAJORS.flatMap((major) => [
    { major, tables: undefined },
    { major, tables: ['public.base', 'public.other', 'public.third'] },
  ]),
)('Postgres $major, published: $tables', ({ major, tables }) => {
  const HOPELESS = 'add column g int generated always as (id + 1) virtual';
  let server: TestPostgres;
  let user: pg.Client;
  let backend: number;

  beforeAll(async () => {
    server = await startPostgres({ major, settings: { wal_level: 'logical' } });
    user = await server.client();
    await server.sql(`create table base (id int primary key, v text); create table other (id int primary key, v text);
      create table third (id int, v text unique not null); create table keyless (id int)`);
    const names = { publication: 'rivulet', slot: 'rivulet' };
    await setup({
      url: server.url,
      ...names,
      ...(tables === undefined ? {} : { tables }),
      log: () => undefined,
    });
    // Tables of a page each, as they are once the server has looked after them: an index is not worth its while then.
    await server.sql('vacuum analyze');
    const { rows } = await user.query<{ pid: number }>('select pg_backend_pid() as pid');
    backend = rows[0]!.pid;
  });
  afterAll(() => server?.close());

  test('what its hooks write no serializable transaction reads', async () => {
    const written = new Set<string>();
    const read = new Map<string, string>();
    const statements = [
      'create table keyed (id int primary key)',
      'create table without (id int)',
      'alter table base add column w int',
      'alter table without add primary key (id)',
      'alter table third replica identity nothing',
      'alter table base drop constraint base_pkey; alter table base add primary key (id)',
      'alter table other set unlogged',
      'alter table other set logged',
      'alter table other set unlogged; alter table other set logged',
      'alter table keyed rename to renamed; drop table renamed',
      'create schema s create table of_schema (id int)',
      'alter table base set schema s',
      'drop table third',
      ...(major < 18
        ? []
        : [
            `create table hopeless (id int); alter table hopeless ${HOPELESS}`,
            `alter table s.base drop constraint base_pkey; alter table s.base ${HOPELESS}`,
            'alter table s.base add primary key (id)',
          ]),
    ];
    for (const statement of statements) {
      await user.query('begin isolation level serializable');
      await user.query(`${statement}; set constraints all immediate`);
      const locks = await server.sql<{ mode: string; name: string }>(
        `select l.mode, coalesce(i.indrelid, c.oid)::regclass::text as name
           from pg_locks l join pg_class c on c.oid = l.relation left join pg_index i on i.indexrelid = c.oid
          where l.pid = $1 and l.mode in ('SIReadLock', 'RowExclusiveLock')
            and c.relnamespace = 'rivulet'::regnamespace and c.relkind in ('r', 'i')`,
        [backend],
      );
      await user.query('commit');
      for (const { mode, name } of locks) {
        if (mode === 'SIReadLock') read.set(name, statement);
        else written.add(name);
      }
    }
    // The test sees both.
    expect([...read.keys()]).toContain('rivulet.config');
    expect([...written]).toEqual(
      expect.arrayContaining([
        'rivulet.saved_identity',
        ...(tables !== undefined || major >= 18 ? ['rivulet.absent_table'] : []),
      ]),
    );
    expect([...read].filter(([name]) => written.has(name))).toEqual([]);
  });
});
