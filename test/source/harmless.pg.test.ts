import pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { readPublishedSchema, readSchemaMessage, type SchemaMessage } from '../../src/source/catalog.ts';
import { readWeakIdentities } from '../../src/source/identity.ts';
import { setup } from '../../src/source/setup.ts';
import { teardown } from '../../src/source/teardown.ts';
import { MAJORS, startPostgres, type TestPostgres } from '../helpers/postgres.ts';

const NAMES = { publication: 'rivulet', slot: 'rivulet' };

/** Makes a table of its kind, with two rows; %s is its name, lower case. */
const KINDS: Record<string, string> = {
  keyed: 'create table %s (id int primary key, v text); insert into %s values (1), (2)',
  keyless: 'create table %s (id int, v text); insert into %s values (1), (1)',
  deferrable:
    'create table %s (id int primary key deferrable initially deferred, v text); insert into %s values (1), (2)',
  unlogged: 'create unlogged table %s (id int, v text); insert into %s values (1), (2)',
  nothing:
    'create table %s (id int primary key, v text); alter table %s replica identity nothing; insert into %s values (1), (2)',
  ctas: 'create table %s as select i as id, null::text as v from generate_series(1, 2) i',
  into_new: 'select i as id, null::text as v into %s from generate_series(1, 2) i',
  liked:
    'create table %s_model (id int primary key, v text); create table %s (like %s_model); insert into %s values (1), (2)',
  inherited:
    'create table %s_parent (id int primary key); create table %s (v text) inherits (%s_parent); insert into %s values (1), (2)',
  partitioned:
    'create table %s (id int, v text) partition by list (id); create table %s_1 partition of %s for values in (1); create table %s_2 partition of %s default; insert into %s values (1), (2)',
  partitioned_keyed:
    'create table %s (id int primary key, v text) partition by list (id); create table %s_1 partition of %s for values in (1); create table %s_2 partition of %s default; insert into %s values (1), (2)',
  attached:
    'create table %s (id int, v text) partition by list (id); create table %s_1 (id int primary key, v text); alter table %s attach partition %s_1 default; insert into %s values (1), (2)',
  lost_index:
    'create table %s (id int not null, v text); create unique index %s_u on %s (id); alter table %s replica identity using index %s_u; drop index %s_u; insert into %s values (1), (2)',
  lost_key:
    'create table %s (id int primary key, v text); alter table %s drop constraint %s_pkey; insert into %s values (1), (2)',
  generated_key:
    'create table %s (id int, v text, g int generated always as (id + 1) stored primary key); insert into %s values (1), (2)',
  made_logged:
    'create unlogged table %s (id int, v text); alter table %s set logged; insert into %s values (1), (2)',
  made_unlogged:
    'create table %s (id int primary key, v text); alter table %s set unlogged; alter table %s set logged; insert into %s values (1), (2)',
  in_schema:
    'create schema %s_s create table %s_inner (id int, v text); create view %s as select * from %s_s.%s_inner; insert into %s values (1), (2)',
  Odd: 'create table "%s Odd ""x""" (id int, v text); create view %s as select * from "%s Odd ""x"""; insert into %s values (1), (2)',
};

/** From 18 on: what no replica identity helps. */
const HOPELESS_KINDS: Record<string, string> = {
  hopeless:
    'create table %s (id int, v text, g int generated always as (id + 1)); insert into %s (id) values (1), (2)',
  hopeless_full:
    'create table %s (id int, v text, g int generated always as (id + 1)); alter table %s replica identity full; insert into %s (id) values (1), (2)',
  hopeless_parts:
    'create table %s (id int, v text, g int generated always as (id + 1)) partition by list (id); create table %s_1 partition of %s for values in (1); create table %s_2 partition of %s default; insert into %s (id) values (1), (2)',
  became_hopeless:
    'create table %s (id int primary key, v text, g int generated always as (id + 1)); insert into %s (id) values (1), (2); alter table %s drop constraint %s_pkey; update %s set id = id',
  was_hopeless:
    'create table %s (id int, v text, g int generated always as (id + 1)); insert into %s (id) values (1), (2); update %s set id = id; alter table %s drop column g',
};

/** What an application does with any table. `truncate` only where it is one. */
function statements(kind: string, name: string): string[] {
  const isView = kind === 'in_schema' || kind === 'Odd';
  return [
    `update ${name} set v = 'new' where id = 1`,
    `update ${name} set id = 3 where id = 2`,
    `delete from ${name} where id = 3`,
    `insert into ${name} (id) values (2)`,
    ...(isView
      ? []
      : [
          `alter table ${name} add column w int default 7, add column n timestamptz default clock_timestamp()`,
          `update ${name} set w = 8`,
          `alter table ${name} rename column w to x`,
          `alter table ${name} alter column x type text using x::text`,
          `create index on ${name} (v)`,
          `delete from ${name} where id = 1`,
          `alter table ${name} drop column x`,
          `alter table ${name} rename to ${name}_renamed`,
          `update ${name}_renamed set v = 'z'`,
          `truncate ${name}_renamed`,
          `drop table ${name}_renamed cascade`,
        ]),
  ];
}

const CATALOGS: Record<string, string> = {
  // "i" without its index cannot be set again; "n" is the same to the server.
  tables: `select c.oid::int, c.relname, c.relnamespace::int, c.relkind,
                  case when c.relreplident = 'i' and not exists (select from pg_index i where i.indrelid = c.oid and i.indisreplident)
                       then 'n' else c.relreplident end as identity
             from pg_class c where c.oid >= 16384 order by 1`,
  publications: 'select pubname, puballtables from pg_publication order by 1',
  eventTriggers: 'select evtname from pg_event_trigger order by 1',
  schemas: 'select nspname, nspacl::text from pg_namespace order by 1',
  functions: 'select oid::int, proname, proacl::text from pg_proc where oid >= 16384 order by 1',
  types: 'select oid::int, typname from pg_type where oid >= 16384 order by 1',
  slots: 'select slot_name from pg_replication_slots order by 1',
  triggers: 'select tgname from pg_trigger where not tgisinternal order by 1',
  settings: 'select setdatabase::int, setconfig from pg_db_role_setting order by 1',
  depend: 'select count(*)::int from pg_depend',
  replicaIndexes: 'select indexrelid::int from pg_index where indisreplident order by 1',
};

async function catalogs(server: TestPostgres): Promise<Record<string, unknown>> {
  const dump: Record<string, unknown> = {};
  for (const [name, sql] of Object.entries(CATALOGS)) dump[name] = await server.sql(sql);
  return dump;
}

/** The hooks' messages since the slot `listener` was made or last read. */
async function messages(server: TestPostgres): Promise<SchemaMessage[]> {
  const rows = await server.sql<{ data: Buffer }>(
    `select data from pg_logical_slot_get_binary_changes('listener', null, null, 'proto_version', '1', 'publication_names', 'rivulet', 'messages', 'true')
      where get_byte(data, 0) = 77`,
  );
  const [key] = await server.sql<{ key: string }>('select key from rivulet.message_key');
  return rows.flatMap(({ data }) => {
    const end = data.indexOf(0, 10);
    expect(data[1]).toBe(1); // transactional
    const prefix = data.subarray(10, end).toString();
    return prefix === 'rivulet' ? [readSchemaMessage(data.subarray(end + 5).toString(), key!.key)] : [];
  });
}

describe.each(MAJORS)('harmless to Postgres %i', (major) => {
  const kinds = { ...KINDS, ...(major >= 18 ? HOPELESS_KINDS : {}) };
  let server: TestPostgres;
  const log = (): void => undefined;

  beforeAll(async () => {
    server = await startPostgres({ major, settings: { wal_level: 'logical' } });
  });
  afterAll(() => server?.close());

  /** Tables that are published and should not be, as they are. */
  async function refused(client: pg.Client): Promise<unknown[]> {
    const published = (await readPublishedSchema(client, 'rivulet')).map(({ oid }) => oid);
    return readWeakIdentities(client, published);
  }

  async function runAll(
    client: pg.Client,
    prefix: string,
    made: Readonly<Record<string, string>>,
  ): Promise<void> {
    for (const [kind, sql] of Object.entries(made)) {
      const name = `${prefix}_${kind.toLowerCase()}`;
      const all = [...sql.replaceAll('%s', name).split('; '), ...statements(kind, name)];
      for (const statement of all) {
        await client.query(statement).catch((error: Error) => {
          throw new Error(`${kind}: ${statement}: ${error.message}`);
        });
      }
    }
    await client.query('create temp table t_temp (id int)');
    await client.query(
      'insert into t_temp values (1); update t_temp set id = 2; delete from t_temp; drop table t_temp',
    );
  }

  it('lets every statement on tables from before through, and restores every catalog', async () => {
    for (const [kind, sql] of Object.entries(kinds))
      await server.sql(sql.replaceAll('%s', `old_${kind.toLowerCase()}`));
    const before = await catalogs(server);

    const report = await setup({ url: server.url, ...NAMES, log });
    expect(report.missing).toEqual([]);
    expect(report.leftOut.map(({ table }) => table)).toContain('public.old_unlogged');
    expect(report.tables).not.toContain('"public"."old_unlogged"');
    const client = await server.client();
    expect(await refused(client)).toEqual([]);
    expect((await setup({ url: server.url, ...NAMES, log })).did).toEqual([]);

    const torn = await teardown({ url: server.url, ...NAMES, log });
    expect(torn.left).toEqual([]);
    expect(await catalogs(server)).toEqual(before);
    expect((await teardown({ url: server.url, ...NAMES, log })).did).toEqual([]);

    await setup({ url: server.url, ...NAMES, log });
    for (const kind of Object.keys(kinds)) {
      for (const statement of statements(kind, `old_${kind.toLowerCase()}`)) {
        await client.query(statement).catch((error: Error) => {
          throw new Error(`${kind}: ${statement}: ${error.message}`);
        });
      }
    }
  });

  it('lets every statement on new tables through, for a user without rights too', async () => {
    await setup({ url: server.url, ...NAMES, log });
    const client = await server.client();
    await runAll(client, 'new', kinds);
    await server.sql(
      'create role plain login; create schema plain authorization plain; grant create on database postgres to plain',
    );
    await client.query('set session authorization plain; set search_path = plain');
    await runAll(client, 'plain', kinds);
    await expect(client.query(`select rivulet.announce('x')`)).rejects.toThrow(/permission denied/);
    await client.query('reset session authorization; reset search_path');
    expect(await refused(client)).toEqual([]);
  });

  it('lets statements through that have no transaction block, or that only read', async () => {
    const client = await server.client();
    await client.query('create table c (id int, v int)');
    await client.query('create index concurrently c_v on c (v)');
    await client.query('reindex table concurrently c');
    await client.query('drop index concurrently c_v');
    await client.query('vacuum full c');
    await client.query(
      'create temp table only_temp (a int); begin read only; insert into only_temp values (1); commit',
    );
    await client.query(
      `set session_replication_role = replica; create table quiet (a int); insert into quiet values (1); update quiet set a = 2`,
    );
    await client.query('reset session_replication_role');
    await client.query('create table empty (); insert into empty default values; delete from empty');
    await client.query(
      'create materialized view mv as select 1 as a; refresh materialized view mv; drop materialized view mv',
    );
    await client.query('drop table c, quiet, empty');
  });

  it('survives hooks that are broken on purpose, and says so in the stream', async () => {
    const client = await server.client();
    await setup({ url: server.url, ...NAMES, log });
    await server.sql(`select pg_create_logical_replication_slot('listener', 'pgoutput')`);
    await client.query(`create or replace function rivulet.published_schema_of_few(publication name, only_tables oid[] default null) returns jsonb language plpgsql
      as $$ begin raise exception 'broken' using errcode = 'XX123'; end $$`);
    await client.query('create table broken (id int, v text)');
    await client.query(
      'insert into broken values (1); update broken set v = 1; delete from broken; alter table broken add w int; drop table broken',
    );
    expect(await messages(server)).toEqual(
      Array(3).fill({
        kind: 'failed',
        sqlstate: 'XX123',
        touched: expect.any(Set),
        publishers: new Map([['rivulet', expect.objectContaining({ unpublished: [] })]]),
      }),
    );
    await client.query('alter schema rivulet rename to gone');
    await client.query(
      'create table broken (id int primary key); update broken set id = 1; drop table broken',
    );
    await client.query('alter schema gone rename to rivulet');
    expect((await setup({ url: server.url, ...NAMES, log })).did).toEqual([
      expect.stringMatching(/^installed the schema rivulet .*002_published_schema.sql/),
    ]);
    await server.sql('drop table if exists broken');
    await server.sql(`select pg_drop_replication_slot('listener')`);
  });

  it('does not answer its own changes, and no setting of a session keeps it from its work', async () => {
    const client = await server.client();
    await setup({ url: server.url, ...NAMES, log });
    await server.sql(`select pg_create_logical_replication_slot('listener', 'pgoutput')`);
    await client.query(`set rivulet.hook = 'running'; set rivulet.hook_running = on`);
    // Without a key: the hook alters it, in the same statement.
    await client.query('create table own (a int)');
    expect((await messages(server)).map((message) => message.kind === 'schema' && message.command)).toEqual([
      'CREATE TABLE',
    ]);
    const [own] = await server.sql(`select relreplident from pg_class where relname = 'own'`);
    expect(own).toEqual({ relreplident: 'f' });
    await client.query('drop table own; reset all');
    await server.sql(`select pg_drop_replication_slot('listener')`);
  });

  it('does the same whatever a session has set', async () => {
    await setup({ url: server.url, ...NAMES, log });
    await server.sql(`select pg_create_logical_replication_slot('listener', 'pgoutput')`);
    const { keyless, lost_key, partitioned, made_unlogged, hopeless, became_hopeless } = kinds;
    const chosen = { keyless, lost_key, partitioned, made_unlogged, hopeless, became_hopeless };
    const made = Object.fromEntries(
      Object.entries(chosen).flatMap(([kind, sql]) => (sql ? [[kind, sql]] : [])),
    );
    const told = async (settings: string): Promise<string[]> => {
      const client = await server.client();
      await client.query(settings);
      await runAll(client, 'odd', made as Record<string, string>);
      return (await messages(server)).map((message) =>
        message.kind === 'schema' ? message.command : message.kind,
      );
    };
    const usual = await told('');
    expect(usual).toContain('ALTER TABLE');
    expect(usual).not.toContain('failed');
    expect(
      await told(`set standard_conforming_strings = off; set escape_string_warning = off; set backslash_quote = off;
        set quote_all_identifiers = on; set array_nulls = off; set transform_null_equals = on; set row_security = off;
        set plpgsql.extra_errors = 'all'; set plpgsql.variable_conflict = use_column;
        set datestyle = 'German'; set intervalstyle = 'sql_standard'; set client_encoding = 'LATIN1'`),
    ).toEqual(usual);
    await server.sql(`select pg_drop_replication_slot('listener')`);
  });

  it("is not in the way of the application's own event triggers, nor they in its way", async () => {
    const client = await server.client();
    await teardown({ url: server.url, ...NAMES, log });
    // As they are written: for one search path, and against what an application must not do itself.
    await client.query(`
      create table ddl_audit (id bigserial primary key, tag text, object text);
      create function audit_ddl() returns event_trigger language plpgsql as $$ begin
        insert into ddl_audit (tag, object) select command_tag, object_identity from pg_event_trigger_ddl_commands(); end $$;
      create function audit_drop() returns event_trigger language plpgsql as $$ begin
        insert into ddl_audit (tag, object) select tg_tag, object_identity from pg_event_trigger_dropped_objects() where original; end $$;
      create function guard() returns event_trigger language plpgsql as $$ begin
        if not current_user = 'plain' and current_setting('guard.is_off', true) is distinct from 'yes' then raise 'not by %', current_user; end if; end $$;
      grant all on ddl_audit, ddl_audit_id_seq to plain;
      create event trigger audit_ddl on ddl_command_end execute function audit_ddl();
      create event trigger audit_drop on sql_drop execute function audit_drop();
      create event trigger guard on ddl_command_start when tag in ('ALTER TABLE', 'ALTER PUBLICATION') execute function guard()`);
    const report = await setup({ url: server.url, ...NAMES, log });
    expect(report.missing).toEqual([]);
    await client.query('set session authorization plain; set search_path = plain, public');
    await client.query('create table audited (id int, v text); insert into audited values (1)');
    await client.query('create table keyed (id int primary key); insert into keyed values (1)');
    await client.query('alter table keyed drop constraint keyed_pkey');
    for (const table of ['audited', 'keyed']) await client.query(`update ${table} set id = 2`);
    if (major >= 18) {
      await client.query(
        'create schema audited_s create table t (id int, g int generated always as (id + 1))',
      );
      await client.query('insert into audited_s.t values (1); update audited_s.t set id = 2');
      await client.query('create table named (id int primary key); alter table named set unlogged');
    }
    await client.query('reset session authorization');
    const { rows } = await client.query(
      "select distinct tag from ddl_audit where tag ~ 'PUBLICATION|TRIGGER'",
    );
    expect(rows).toEqual([]);
    const altered = await client.query("select object from ddl_audit where tag = 'ALTER TABLE' order by id");
    expect(altered.rows.map(({ object }) => object)).toEqual([
      'keyed_pkey on plain.keyed',
      'plain.keyed',
      ...(major >= 18 ? ['plain.named'] : []),
    ]);
    expect(await refused(client)).toEqual([]);
    expect((await setup({ url: server.url, ...NAMES, log })).missing).toEqual([]);
    expect((await teardown({ url: server.url, ...NAMES, log })).left).toEqual([]);
    await client.query(`drop event trigger guard; drop event trigger audit_ddl; drop event trigger audit_drop;
      drop function guard, audit_ddl, audit_drop; drop schema if exists audited_s cascade;
      drop table ddl_audit, plain.audited, plain.keyed; drop table if exists plain.named`);
    await setup({ url: server.url, ...NAMES, log });
  });

  it('announces every change of schema at its place, and none of temporary tables', async () => {
    const client = await server.client();
    await server.sql(`select pg_create_logical_replication_slot('listener', 'pgoutput')`);
    const announced = async (sql: string): Promise<string[]> => {
      await client.query(sql);
      return (await messages(server)).map((message) =>
        message.kind === 'schema'
          ? message.command
          : message.kind === 'failed'
            ? `failed ${message.sqlstate}`
            : 'rewritten',
      );
    };
    expect(
      await announced(`create type mood as enum ('a'); create table a (id int primary key, m mood)`),
    ).toContain('CREATE TABLE');
    expect(await announced('alter table a add b int')).toEqual(['ALTER TABLE']);
    expect(await announced('alter table a alter b type bigint')).toEqual(['rewritten', 'ALTER TABLE']);
    expect(await announced('create index a_b on a (b)')).toEqual(['CREATE INDEX']);
    expect(await announced('alter table a rename b to c')).toEqual(['ALTER TABLE']);
    expect(await announced(`alter type mood rename value 'a' to 'z'`)).toEqual(['ALTER TYPE']);
    expect(await announced('drop index a_b')).toEqual(['DROP INDEX']);
    expect(
      await announced(
        'create schema other; alter table a set schema other; alter schema other rename to another',
      ),
    ).toEqual(['ALTER TABLE', 'ALTER SCHEMA']);
    expect(await announced('create temp table tt (a int); alter table tt add b int; drop table tt')).toEqual(
      [],
    );
    expect(await announced('begin; create table rolled (a int); rollback')).toEqual([]);
    expect(
      await announced(
        `comment on table another.a is 'x'; create function f() returns int language sql return 1; grant select on another.a to public`,
      ),
    ).toEqual([]);
    expect(await announced('drop function f(); create view v as select 1; drop view v')).toEqual([]);
    expect(await announced('drop schema another cascade')).toEqual(['DROP SCHEMA']);
    expect(await announced('drop type mood')).toEqual([]);

    await client.query('create table k (id int, v text)');
    await client.query(
      'create table p (id int) partition by range (id); create table p1 partition of p for values from (0) to (10)',
    );
    await messages(server);
    await client.query('alter table p detach partition p1');
    const [message] = await messages(server);
    const relations = await readPublishedSchema(client, 'rivulet');
    expect(message).toMatchObject({
      kind: 'schema',
      command: 'ALTER TABLE',
      relations: relations.filter(({ name }) => name === 'p' || name === 'p1'),
    });
    const oids = Object.fromEntries(relations.map((relation) => [relation.name, relation.oid]));
    const touched = (message as Extract<SchemaMessage, { kind: 'schema' }>).touched!;
    expect([touched.has(oids.p!), touched.has(oids.p1!), touched.has(oids.k!)]).toEqual([true, true, false]);
    await server.sql(`drop table k, p, p1; select pg_drop_replication_slot('listener')`);
  });

  it('tells of a table once in a transaction, and again for as often as it changes', async () => {
    const client = await server.client();
    // Where tables are published by name, the hooks' own naming is a change, too.
    await teardown({ url: server.url, ...NAMES, log });
    await setup({ url: server.url, ...NAMES, log });
    await client.query(
      `create table one (id int primary key, v text); create table two (id int primary key, v text);
       create table p (id int primary key) partition by range (id); create table p1 partition of p for values from (0) to (10)`,
    );
    await server.sql(`select pg_create_logical_replication_slot('listener', 'pgoutput')`);
    const { rows } = await client.query(
      "select oid, relname from pg_class where relname in ('one', 'two', 'p', 'p1')",
    );
    const names = new Map<number, string>(rows.map(({ oid, relname }) => [oid, relname]));
    const told = async (...statements: string[]): Promise<string[]> => {
      for (const sql of ['begin', ...statements, 'commit']) await client.query(sql);
      return (await messages(server)).map((message) =>
        message.kind === 'schema'
          ? [...message.touched!]
              .flatMap((oid) => names.get(oid) ?? [])
              .sort()
              .join(' ')
          : message.kind,
      );
    };
    expect(
      await told('alter table one add a int', 'alter table two add a int', 'alter table one add b int'),
    ).toEqual(['one', 'two', 'one']);
    // What others have done to it by then: a partition emptied, a child's column, an index and its name, a default.
    expect(
      await told(
        'alter table p add a int',
        'alter table one add c int',
        'truncate p1',
        'alter table one drop c',
        'create index p1_a on p1 (a)',
        'alter index p1_a rename to p1_b',
        'alter table p alter a set default 1',
        'alter table p detach partition p1',
        'alter table one drop b',
      ),
    ).toEqual(['p p1', 'one', 'one p p1', 'p p1', 'p p1', 'p p1', 'p p1', 'one']);
    // Its message goes with the savepoint.
    expect(
      await told(
        'savepoint s',
        'alter table one add d int',
        'rollback to s',
        'alter table two add d int',
        'alter table one add d int',
      ),
    ).toEqual(['two', 'one']);
    // Nobody can keep a table from being told of.
    await client.query('begin; alter table two add e int');
    const { rows: settings } = await client.query("select current_setting('rivulet.told') as told");
    await client.query('commit');
    await messages(server);
    const forged = settings[0].told.replaceAll(/"[0-9a-f]{32}"/g, '"00000000000000000000000000000000"');
    expect(
      await told(`select set_config('rivulet.told', '${forged}', true)`, 'alter table two add f int'),
    ).toEqual(['two']);
    await server.sql(`drop table one, two, p, p1; select pg_drop_replication_slot('listener')`);
  });

  it('gives FULL to keyless tables and takes it back when a primary key comes', async () => {
    const client = await server.client();
    const identity = async (name: string): Promise<string> =>
      (await client.query('select relreplident::text as i from pg_class where oid = $1::regclass', [name]))
        .rows[0].i;
    await client.query('create table late (id int not null, v text)');
    expect(await identity('late')).toBe('f');
    await client.query('alter table late add primary key (id)');
    expect(await identity('late')).toBe('d');
    await client.query('alter table late drop constraint late_pkey');
    expect(await identity('late')).toBe('f');
    // What the user sets himself stays.
    await client.query(
      'create unique index late_u on late (id); alter table late replica identity using index late_u',
    );
    expect(await identity('late')).toBe('i');
    await client.query('alter table late replica identity full; alter table late add primary key (id)');
    expect(await identity('late')).toBe('f');
    await client.query('drop table late');
    expect(
      (
        await client.query(
          'select * from rivulet.saved_identity s where not exists (select from pg_class c where c.oid = s.relation_oid)',
        )
      ).rows,
    ).toEqual([]);
  });

  it('keeps no table that VACUUM would lock', async () => {
    await setup({ url: server.url, ...NAMES, log });
    const tables = await server.sql(
      "select relname, reloptions from pg_class where relnamespace = 'rivulet'::regnamespace and relkind = 'r'",
    );
    expect(tables.length).toBeGreaterThan(4);
    for (const { reloptions } of tables) expect(reloptions).toEqual(['vacuum_truncate=off']);
    expect((await setup({ url: server.url, ...NAMES, log })).did).toEqual([]);
  });

  it('never waits for other transactions', async () => {
    const [one, two] = [await server.client(), await server.client()];
    await one.query('create table w1 (id int primary key); create table w2 (id int, v int)');
    for (const client of [one, two])
      await client.query(`set lock_timeout = '2s'; set deadlock_timeout = '100ms'`);
    await one.query('begin; alter table w1 add a int; create table w3 (id int)');
    await two.query(
      'begin; alter table w2 add a int; create table w4 (id int); alter table w2 drop column v',
    );
    await one.query('alter table w1 add b int; drop table w3');
    await two.query('commit');
    await one.query('commit');
    await one.query('drop table w1, w2, w4');
  });

  it('leaves the last word to teardown while a reader holds the slot', async () => {
    await server.sql(`select pg_create_logical_replication_slot('rivulet', 'pgoutput')`);
    const reader = new pg.Client({
      connectionString: server.url,
      replication: 'database',
    } as pg.ClientConfig);
    reader.on('error', () => undefined);
    await reader.connect();
    const started = new Promise((resolve) => reader.connection.once('replicationStart', resolve));
    const streaming = reader
      .query(`START_REPLICATION SLOT rivulet LOGICAL 0/0 (proto_version '1', publication_names 'rivulet')`)
      .catch(() => undefined);
    await started;
    const said: string[] = [];
    const report = await teardown({ url: server.url, ...NAMES, log: (message) => said.push(message) });
    expect(report.did[0]).toBe('dropped the replication slot rivulet');
    expect(said[0]).toMatch(/ending the process \d+ that reads from the slot rivulet/);
    await streaming;
    await reader.end().catch(() => undefined);
    expect(
      await server.sql(
        `select from pg_event_trigger union all select from pg_publication union all select from pg_namespace where nspname = 'rivulet'`,
      ),
    ).toEqual([]);
  });

  it('lets statements through whichever of its functions is gone', async () => {
    const client = await server.client();
    await setup({ url: server.url, ...NAMES, log });
    const functions = await server.sql<{ name: string; call: string }>(
      `select proname as name, oid::regprocedure::text as call from pg_proc
        where pronamespace = 'rivulet'::regnamespace and prorettype <> 'event_trigger'::regtype and proname !~ '^tie_[0-9]'
        order by 1`,
    );
    for (const { name, call } of functions) {
      await client.query('create table named (id int primary key)');
      await client.query('create schema other; create table other.keyed (id int primary key)');
      await client.query(`alter function ${call} rename to gone`);
      await client.query(
        `create table bag (id int, v text); insert into bag values (1), (1); update bag set v = 'new'; alter table bag add w int;
         delete from bag; truncate bag; drop table bag; create table lost (id int not null, v text); create unique index lost_u on lost (id)`,
      );
      await client.query('alter table lost replica identity using index lost_u; drop index lost_u');
      await client.query("insert into lost values (1); update lost set v = 'new'; drop table lost");
      await client.query('alter table named set unlogged; drop table named');
      if (major >= 18) {
        await client.query(
          `create table became (id int primary key, g int generated always as (id + 1)); insert into became values (1);
           alter table became drop constraint became_pkey; update became set id = 2; drop table became`,
        );
        await client.query(
          `create table other.hopeless (id int, g int generated always as (id + 1)); insert into other.hopeless values (1);
           update other.hopeless set id = 2; delete from other.hopeless`,
        );
        await client.query(
          `create schema pair create table hopeless (id int, g int generated always as (id + 1)) create table plain (id int);
           insert into pair.hopeless values (1); update pair.hopeless set id = 2; drop schema pair cascade`,
        );
      }
      await client.query('drop schema other cascade');
      await client.query(`alter function ${call.replace(/^rivulet\.\w+/, 'rivulet.gone')} rename to ${name}`);
    }
    expect((await setup({ url: server.url, ...NAMES, log })).did).toEqual([]);
  });
});
