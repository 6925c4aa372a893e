import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { identify, readMirrorReport, readPublishedSchema } from '../../src/source/catalog.ts';
import { connect, disconnect, SESSION_SETTINGS } from '../../src/source/connection.ts';
import { hasForeignFunctions } from '../../src/source/migrate.ts';
import { keepPublishedIdentities, type SetupOptions, setup } from '../../src/source/setup.ts';
import { teardown } from '../../src/source/teardown.ts';
import { MAJORS, startPostgres, type TestPostgres } from '../helpers/postgres.ts';

const log = (): void => undefined;

describe.each(MAJORS)('setup on Postgres %i', (major) => {
  let server: TestPostgres;
  let database = 0;

  beforeAll(async () => {
    server = await startPostgres({ major, settings: { wal_level: 'logical', max_replication_slots: 2 } });
    await server.sql(
      `create role app login password 'app' replication; create role nobody login password 'nobody'`,
    );
    // Trust would hide a wrong password.
  });
  afterAll(() => server?.close());

  /** A database of the test's own; publications and hooks belong to one database. */
  async function fresh(sql: string): Promise<{
    options: SetupOptions;
    as(user: string): SetupOptions;
    run(sql: string): Promise<Record<string, unknown>[]>;
  }> {
    const name = `db${++database}`;
    await server.sql(`create database ${name}`);
    const url = new URL(server.url);
    url.pathname = `/${name}`;
    const options = (text: string): SetupOptions => ({
      url: text,
      publication: 'rivulet',
      slot: 'rivulet',
      log,
      identityLockTimeoutMs: 30,
      identityAttempts: 2,
    });
    const run = async (text: string): Promise<Record<string, unknown>[]> => {
      const client = await connect(url.href, { applicationName: 'test' });
      try {
        await client.query('set search_path = public');
        const result = await client.query(text);
        return (Array.isArray(result) ? result.at(-1) : result).rows;
      } finally {
        await client.end();
      }
    };
    await run(sql);
    return {
      options: options(url.href),
      as(user) {
        const other = new URL(url);
        other.username = user;
        other.password = user;
        return options(other.href);
      },
      run,
    };
  }

  it('makes all of it, once', async () => {
    const { options, run } = await fresh('create table a (id int primary key); create table b (id int)');
    const said: string[] = [];
    const report = await setup({ ...options, log: (message) => said.push(message) });
    expect(report.did).toEqual([
      expect.stringMatching(/^installed the schema rivulet/),
      'made the replica identity of "public"."b" usable (it has no primary key)',
      'created the publication rivulet for all tables',
    ]);
    expect(said).toEqual(['"public"."b": REPLICA IDENTITY FULL, because it has no primary key']);
    expect(report.missing).toEqual([]);
    expect(report.tables).toEqual(['"public"."a"', '"public"."b"']);
    expect((await setup(options)).did).toEqual([]);
    // A trigger that somebody switched off comes back.
    await run('alter event trigger _rivulet_ddl disable');
    expect((await setup(options)).did).toEqual(['installed the schema rivulet (008_event_triggers.sql)']);
  });

  it('succeeds twice at once', async () => {
    const { options, run } = await fresh('create table a (id int primary key); create table b (id int)');
    const reports = await Promise.all([setup(options), setup(options), setup(options)]);
    expect(reports.filter(({ did }) => did.length > 0)).toHaveLength(1);
    expect(await run('select number from rivulet.migration')).toHaveLength(9);
    const torn = await Promise.all([teardown(options), teardown(options)]);
    expect(torn.filter(({ did }) => did.length > 0)).toHaveLength(1);
  });

  it('brings an older set-up up to date', async () => {
    const { options, run } = await fresh('create table a (id int primary key)');
    await setup(options);
    const columns = (): Promise<unknown[]> =>
      run(`select table_name::text as of, column_name::text as name, data_type::text as type, is_nullable
             from information_schema.columns where table_schema = 'rivulet' order by 1, 2`);
    const before = await columns();
    await run(`drop sequence rivulet.config_state; alter table rivulet.absent_table drop column column_list, drop column row_filter, drop column columns,
        add column published_part text not null default '';
      create table rivulet.named_table (publication name, relation_oid oid, since xid8, primary key (publication, relation_oid));
      update rivulet.migration set digest = 'older' where number in (1, 7, 8); drop event trigger _rivulet_untie`);
    expect((await setup(options)).did).toEqual([
      expect.stringMatching(
        /^installed the schema rivulet .*001_tables.sql.*007_published_tables.sql.*008_event_triggers.sql/,
      ),
    ]);
    expect(await columns()).toEqual(before);
    expect((await setup(options)).did).toEqual([]);
  });

  it('makes functions that somebody replaced or dropped anew', async () => {
    const { options, run } = await fresh('create table a (id int primary key)');
    const client = await connect(options.url, { applicationName: 'test' });
    const functions = (): Promise<unknown[]> =>
      run(
        `select pg_get_functiondef(oid) as text from pg_proc where pronamespace = 'rivulet'::regnamespace order by 1`,
      );
    await setup(options);
    const before = await functions();
    for (const change of [
      `create or replace function rivulet.on_schema_change() returns event_trigger language plpgsql as $$ begin raise 'broken'; end $$`,
      'drop function rivulet.untie(oid)',
      'drop function rivulet.on_schema_change() cascade',
      'alter function rivulet.on_table_rewrite() reset all',
    ]) {
      expect(await hasForeignFunctions(client)).toBe(false);
      await run(change);
      expect(await hasForeignFunctions(client), change).toBe(true);
      const { did, missing } = await setup(options);
      expect(did, change).toEqual([expect.stringMatching(/^installed the schema rivulet .*005_hooks.sql/)]);
      expect(missing, change).toEqual([]);
      expect(await functions(), change).toEqual(before);
    }
    expect((await setup(options)).did).toEqual([]);
    // What cannot be replaced is said, every time, and stops nothing.
    await run(`drop function rivulet.untie(oid);
      create function rivulet.untie(relation oid) returns text language sql as 'select null'`);
    for (let time = 0; time < 2; time++) {
      expect((await setup(options)).missing).toEqual([
        expect.stringMatching(
          /^functions of the schema rivulet were replaced or dropped, and could not be made anew \(cannot change/,
        ),
      ]);
    }
    await disconnect(client);
  });

  it('publishes a list, and adds to it', async () => {
    const { options, run } = await fresh(
      'create schema s; create table s."T" (id int primary key); create table a (id int); create table b (id int primary key)',
    );
    const report = await setup({ ...options, tables: ['s.T', 'a'] });
    expect(report.tables).toEqual(['"public"."a"', '"s"."T"']);
    expect(await run(`select relreplident from pg_class where relname = 'a'`)).toEqual([
      { relreplident: 'f' },
    ]);
    expect((await setup({ ...options, tables: ['B', 'a'] })).did).toEqual([
      'added public.b to the publication rivulet',
    ]);
    expect((await setup(options)).did).toEqual([]);
    // Postgres refuses that for a table that a publication names: the hook is quicker.
    const named = 'select prrelid::regclass::text as name from pg_publication_rel order by 1';
    await run('alter table a set unlogged');
    expect(await run(named)).toEqual([{ name: 'b' }, { name: 's."T"' }]);
    await run('alter table a set logged');
    expect(await run(named)).toEqual([{ name: 'a' }, { name: 'b' }, { name: 's."T"' }]);
    // The hooks see to listed tables only.
    await run('create table c (id int); alter table b drop constraint b_pkey');
    expect(
      await run(`select relname, relreplident from pg_class where relname in ('b', 'c') order by 1`),
    ).toEqual([
      { relname: 'b', relreplident: 'f' },
      { relname: 'c', relreplident: 'd' },
    ]);
  });

  it('names the tables of a list that are not there', async () => {
    const { options, run } = await fresh(
      'create table a (id int primary key); create unlogged table u (id int); create view v as select 1',
    );
    await expect(setup({ ...options, tables: ['a', 'nope', 'u', 'v', 'x.y'] })).rejects.toMatchObject({
      code: 'PUBLICATION',
      message: expect.stringContaining(
        'nope does not exist; u is unlogged; v is not a table; x.y does not exist',
      ),
    });
    expect(await run('select from pg_publication')).toEqual([]);
  });

  it('does not publish a table that stays locked', async () => {
    const { options, run } = await fresh('create table a (id int primary key); create table b (id int)');
    const holder = await connect(options.url, { applicationName: 'holder' });
    await holder.query('begin; lock table public.b in row exclusive mode');
    await expect(setup(options)).rejects.toMatchObject({
      code: 'REPLICA_IDENTITY',
      message: expect.stringContaining('"public"."b"'),
    });
    expect(await run('select from pg_publication')).toEqual([]);
    const report = await setup({ ...options, tables: ['a', 'b'] });
    expect(report.tables).toEqual(['"public"."a"']);
    expect(report.leftOut).toEqual([
      { table: '"public"."b"', reason: expect.stringMatching(/no primary key.*locked/) },
    ]);
    await holder.query('commit');
    await holder.end();
    expect((await setup({ ...options, tables: ['a', 'b'] })).tables).toEqual([
      '"public"."a"',
      '"public"."b"',
    ]);
  });

  it('leaves tables out instead of FULL where that is not wanted', async () => {
    const { options, run } = await fresh('create table a (id int primary key); create table b (id int)');
    const report = await setup({ ...options, identityFull: false });
    expect(report.tables).toEqual(['"public"."a"']);
    expect(report.leftOut).toContainEqual({ table: '"public"."b"', reason: 'it has no primary key' });
    await run('create table c (id int); insert into c values (1); update c set id = 2; update b set id = 2');
    expect(await run(`select from pg_class where relreplident = 'f'`)).toEqual([]);
  });

  it('leaves a publication of others as it is', async () => {
    const { options, run } = await fresh(
      'create table a (id int primary key); create table b (id int); create publication rivulet for table a, b',
    );
    const report = await setup({ ...options, tables: ['a', 'b'] });
    expect(report.missing).toEqual([expect.stringContaining('publish_via_partition_root')]);
    expect(await run(`select relreplident from pg_class where relname = 'b'`)).toEqual([
      { relreplident: 'f' },
    ]);
    const torn = await teardown(options);
    expect(torn.left).toEqual(['the publication rivulet, which set-up did not make']);
    expect(await run(`select relreplident from pg_class where relname = 'b'`)).toEqual([
      { relreplident: 'd' },
    ]);
    await run(`alter publication rivulet set (publish = 'insert')`);
    await expect(setup(options)).rejects.toMatchObject({
      code: 'PUBLICATION',
      message: expect.stringContaining('update, delete, truncate'),
    });
  });

  it('does not touch a schema of that name which is not ours', async () => {
    const { options, run } = await fresh('create schema rivulet; create table rivulet.mine (id int)');
    await expect(setup(options)).rejects.toMatchObject({ code: 'CONFIG' });
    expect((await teardown(options)).left).toEqual(['the schema rivulet, which Rivulet did not make']);
    expect(await run('select * from rivulet.mine')).toEqual([]);
  });

  it('does with few rights what it can, and says what it cannot', async () => {
    const { options, as, run } = await fresh(
      'grant create on schema public to app; create table theirs (id int primary key)',
    );
    await run('set session authorization app; create table public.mine (id int)');
    await expect(setup(as('nobody'))).rejects.toMatchObject({
      code: 'PRIVILEGE',
      message: expect.stringContaining('may not replicate'),
    });
    await expect(setup(as('app'))).rejects.toMatchObject({
      code: 'PRIVILEGE',
      hint: expect.stringContaining('--tables'),
    });
    await expect(setup({ ...as('app'), tables: ['theirs'] })).rejects.toMatchObject({ code: 'PRIVILEGE' });
    expect(await run(`select from pg_namespace where nspname = 'rivulet'`)).toEqual([]);

    await run(`grant create on database db${database} to app`);
    await expect(setup(as('app'))).rejects.toMatchObject({
      code: 'PRIVILEGE',
      hint: expect.stringContaining('--tables'),
    });
    expect(await run(`select from pg_namespace where nspname = 'rivulet'`)).toEqual([]);
    const report = await setup({ ...as('app'), tables: ['mine'] });
    expect(report.tables).toEqual(['"public"."mine"']);
    expect(report.missing).toEqual([expect.stringContaining('event triggers need a superuser')]);
    const client = await connect(as('app').url, { applicationName: 'test' });
    expect(await identify(client)).toMatchObject({
      database: `db${database}`,
      timeline: 1,
      systemIdentifier: expect.stringMatching(/^\d{15,20}$/),
    });
    expect(await keepPublishedIdentities(client, 'rivulet', log)).toEqual([]);
    await client.end();
    await teardown(as('app'));
    expect(await run(`select relreplident from pg_class where relname = 'mine'`)).toEqual([
      { relreplident: 'd' },
    ]);

    // Only reading a publication that a superuser made.
    await run(
      `revoke create on database db${database} from app; create publication rivulet for table public.mine, public.theirs with (publish_via_partition_root)`,
    );
    await expect(setup(as('app'))).rejects.toMatchObject({
      code: 'PRIVILEGE',
      message: expect.stringContaining('public.theirs (no SELECT)'),
    });
    await run('grant select on public.theirs to app; alter table public.theirs enable row level security');
    await expect(setup(as('app'))).rejects.toMatchObject({
      code: 'PRIVILEGE',
      message: expect.stringContaining('row-level security'),
    });
    await run('alter table public.theirs disable row level security');
    const poor = await setup(as('app'));
    expect(poor.tables).toEqual(['"public"."mine"', '"public"."theirs"']);
    expect(poor.missing).toHaveLength(2);
    await run('drop publication rivulet');
    expect((await setup(options)).missing).toEqual([]);
  });

  it('refuses a server without a free slot', async () => {
    const { options, run } = await fresh('create table a (id int primary key)');
    await run(
      `select pg_create_physical_replication_slot('one'); select pg_create_physical_replication_slot('two')`,
    );
    await expect(setup(options)).rejects.toMatchObject({
      code: 'SERVER_UNSUITABLE',
      message: expect.stringContaining('all 2 replication slots'),
    });
    await expect(setup({ ...options, slot: 'one' })).rejects.toMatchObject({
      code: 'SERVER_UNSUITABLE',
      message: expect.stringContaining('physical'),
    });
    expect((await teardown({ ...options, slot: 'one' })).left).toEqual([
      'the replication slot one: it belongs to physical replication',
    ]);
    await run(`select pg_drop_replication_slot('one'), pg_drop_replication_slot('two')`);
  });

  it('pins the session whatever role and database have set', async () => {
    const { options, run } = await fresh('select 1');
    await run(`alter database db${database} set datestyle = 'German'; alter database db${database} set statement_timeout = '1s';
      alter database db${database} set default_transaction_read_only = on; alter database db${database} set extra_float_digits = 0`);
    const client = await connect(options.url, { applicationName: 'test', lockTimeoutMs: 1234 });
    const { rows } = await client.query('select lower(name) as name, setting from pg_settings');
    const settings = new Map(rows.map((row) => [row.name, row.setting]));
    for (const [name, value] of Object.entries(SESSION_SETTINGS)) {
      if (name === 'lock_timeout') expect(settings.get(name)).toBe('1234');
      else if (settings.has(name.toLowerCase()))
        expect(`${name} ${settings.get(name.toLowerCase())}`).toBe(`${name} ${value}`);
    }
    await client.end();
    const walsender = await connect(options.url, { applicationName: 'test', replication: true });
    expect((await walsender.query(`select current_setting('datestyle') as style`)).rows).toEqual([
      { style: 'ISO, MDY' },
    ]);
    await walsender.end();
  });

  it.runIf(major >= 18)('does not publish what no identity would help', async () => {
    const { options, run } = await fresh(
      'create table v (id int not null, w int generated always as (id + 1)); create table a (id int primary key)',
    );
    const report = await setup(options);
    expect(report.tables).toEqual(['"public"."a"']);
    expect(report.leftOut).toEqual([
      { table: 'public.v', reason: expect.stringContaining('virtual generated column') },
    ]);
    await run('insert into v values (1); update v set id = 2; delete from v');
    await teardown(options);
    expect((await setup({ ...options, tables: ['a', 'v'] })).leftOut).toEqual([
      { table: '"public"."v"', reason: 'it has no primary key' },
    ]);
    await run(
      'insert into v values (1); update v set id = 2; create unique index v_u on v (id); alter table v replica identity using index v_u',
    );
    expect((await setup({ ...options, tables: ['a', 'v'] })).tables).toEqual([
      '"public"."a"',
      '"public"."v"',
    ]);
    await run('update v set id = 3; delete from v');
    await teardown(options);
    expect(await run(`select relreplident from pg_class where relname = 'v'`)).toEqual([
      { relreplident: 'i' },
    ]);
  });

  it('reads the published schema as it is', async () => {
    const { options, run } = await fresh(`
      create domain money2 as numeric(10, 2); create domain price as money2; create type mood as enum ('a');
      create table t (a int, b price[], c mood, d box[], e int2vector, g int generated always as (1) stored, h text, primary key (c, a));
      create index t_plain on t (h desc, a); create index on t (h) where a > 1; create index on t (lower(h)); create index on t using hash (h);
      alter table t drop column h; alter table t add column h text; create unique index t_u on t (h) include (b); create index on t (g);
      create table z (); create unlogged table u (id int);
      create table p (id int, v text, primary key (id)) partition by range (id); create table p1 partition of p default;
      create table d (id int primary key deferrable);
      create materialized view m as select 1 as a; create view v as select 1 as a`);
    await setup(options);
    const client = await connect(options.url, { applicationName: 'test' });
    const relations = await readPublishedSchema(client, 'rivulet');
    expect(relations.map(({ name }) => name)).toEqual(['d', 'p', 't']);
    const [d, p, t] = relations;
    expect(d).toMatchObject({ keyIsDeferrable: true, replicaIdentity: 'full' });
    expect(p).toMatchObject({
      replicaIdentity: 'default',
      columns: [{ keyOrdinal: 1, identity: true }, { keyOrdinal: null }],
    });
    const sent = t!.columns.map(({ name, typeName, mapping, keyOrdinal }) => [
      name,
      typeName,
      mapping,
      keyOrdinal,
    ]);
    expect(sent).toEqual([
      ['a', 'integer', 'int', 2],
      ['b', 'public.price[]', { array: 'numeric', delimiter: ',' }, null],
      ['c', 'public.mood', 'text', 1],
      ['d', 'box[]', { array: 'text', delimiter: ';' }, null],
      ['e', 'int2vector', 'text', null],
      ...(major >= 18 ? [['g', 'integer', 'int', null]] : []),
      ['h', 'text', 'text', null],
    ]);
    expect(t!.indexes.map(({ name, unique, columns }) => [name, unique, columns.length])).toEqual([
      ['t_u', true, 1],
      ...(major >= 18 ? [['t_g_idx', false, 1]] : []),
    ]);
    // With and without the function: one text, one answer.
    const { rows } = await client.query(`select rivulet.published_schema('rivulet') as json`);
    expect(rows[0].json.map((each: { name: string }) => each.name)).toEqual(['d', 'p', 't']);
    expect(await readMirrorReport(client, 'rivulet')).toEqual({
      mirrored: 3,
      notMirrored: [
        { table: 'public.m', reason: 'materialized view' },
        { table: 'public.u', reason: 'unlogged table: its changes are not in the WAL' },
        { table: 'public.z', reason: 'it has no columns' },
      ],
    });
    await run('create publication leaves for table p');
    expect((await readPublishedSchema(client, 'leaves')).map(({ name }) => name)).toEqual(['p1']);
    // Lists of columns, and whole schemas, came with 15.
    if (major >= 15) {
      await run(
        `create publication part for table t (a, c);
         create schema s; create table s.x (id int); create publication sch for tables in schema s`,
      );
      const [part] = await readPublishedSchema(client, 'part');
      expect(part!.columns.map(({ name }) => name)).toEqual(['a', 'c']);
      expect((await readPublishedSchema(client, 'sch')).map(({ name }) => name)).toEqual(['x']);
    }
    expect(await readPublishedSchema(client, 'nope')).toEqual([]);
    await client.end();
  });
});

describe('servers and users that will not do', () => {
  it('says so of wal_level and of a wrong password or database', async () => {
    await using server = await startPostgres({ settings: { wal_level: 'replica' } });
    const options = { url: server.url, publication: 'rivulet', slot: 'rivulet', log };
    await expect(setup(options)).rejects.toMatchObject({
      code: 'SERVER_UNSUITABLE',
      message: expect.stringContaining('wal_level is replica'),
    });
    const url = new URL(server.url);
    url.pathname = '/nope';
    await expect(setup({ ...options, url: url.href })).rejects.toMatchObject({ code: 'POSTGRES_AUTH' });
    const wrong = new URL(server.url);
    wrong.password = 'hush';
    const refused = setup({ ...options, url: wrong.href });
    await expect(refused).rejects.toMatchObject({ code: 'POSTGRES_AUTH' });
    await expect(refused).rejects.not.toThrow(/hush/);
    await expect(setup({ ...options, slot: 'Not-A-Slot' })).rejects.toMatchObject({
      code: 'CONFIG',
      exitCode: 2,
    });
  });
});
