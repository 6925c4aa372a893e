import { createHash } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import pg from 'pg';
import { ConfigError } from '../errors.ts';
import { DEFAULT_OPEN_TRANSACTIONS_TIMEOUT_MS } from './await-open.ts';
import { isLockError, postgresError } from './connection.ts';
import { readSqlFiles } from './sql-files.ts';

/** Set-up and teardown of one database take turns on this advisory lock ("rivulet" in ASCII). */
export const SETUP_LOCK = '32204104842110324';

/** Shorter than the hooks wait: who runs one meanwhile must not give up. */
const LOCK_TIMEOUT_MS = 50;
const LOCK_PAUSE_MS = 200;

export const EVENT_TRIGGER_FILE = '008_event_triggers.sql';

/** Row of rivulet.migration that has the digest of all functions of the schema, as the files made them. */
const FUNCTIONS = { number: 0, name: 'functions' };
/** Files that run again, too, where something of theirs is gone that is no function. */
const LACKS: Readonly<Record<string, (client: pg.ClientBase) => Promise<boolean>>> = {
  '004_announce.sql': lacksMessageKey,
  '006_token.sql': lacksShortTokenName,
};
const MAKES_FUNCTIONS = /^create or replace function /m;

export interface MigrateReport {
  /** Files that were run now. */
  readonly applied: readonly string[];
  /** Why functions that somebody replaced or dropped could not be made anew; null: all are ours. */
  readonly foreignFunctions: string | null;
  /** The schema with its tables and functions is there. */
  readonly hasSchema: boolean;
  readonly hasEventTriggers: boolean;
}

/**
 * Brings the schema `rivulet` up to date. Every file can be run again: a file runs when it is new here or has
 * changed, in one transaction with its row in rivulet.migration. Those that make functions run also when somebody has
 * replaced or dropped one; nothing before them sets off a hook, which may be that one. What the user may not do stays
 * undone, and the report says so; only a schema of that name which is somebody else's is an error.
 */
export async function migrate(client: pg.ClientBase): Promise<MigrateReport> {
  if ((await schemaState(client)) === 'foreign') {
    throw new ConfigError('the database has a schema "rivulet" that Rivulet did not make', {
      hint: 'rename it, or drop it if nothing needs it: Rivulet keeps its own objects in a schema of that name',
    });
  }
  const applied: string[] = [];
  let foreignFunctions: string | null = null;
  let hasSchema = true;
  try {
    if (await makeVersionTable(client)) applied.push('000_migration');
    const { rows } = await client.query('select number, digest from rivulet.migration');
    const digests = new Map<number, string>(rows.map((row) => [row.number, row.digest]));
    const areOurs = digests.get(FUNCTIONS.number) === (await digestOfFunctions(client));
    for (const file of readSqlFiles()) {
      const digest = createHash('sha256').update(file.text).digest('hex');
      const isCurrent = digests.get(file.number) === digest;
      const isTriggers = file.name === EVENT_TRIGGER_FILE;
      const isThere = isTriggers
        ? await hasEventTriggers(client, EVENT_TRIGGERS)
        : (areOurs || !MAKES_FUNCTIONS.test(file.text)) && (await LACKS[file.name]?.(client)) !== true;
      if (isCurrent && isThere) continue;
      try {
        await withShortLocks(async () => {
          await inTransaction(client, async () => {
            await client.query(`set local lock_timeout = ${LOCK_TIMEOUT_MS}; ${file.text}`);
            await note(client, { ...file, digest });
          });
        });
      } catch (error) {
        if (isTriggers && isPrivilegeError(error)) continue;
        if (!isTriggers && isCurrent && error instanceof pg.DatabaseError) {
          foreignFunctions = error.message;
          continue;
        }
        throw error;
      }
      applied.push(file.name);
    }
    if (applied.length > 0 && foreignFunctions === null)
      await note(client, { ...FUNCTIONS, digest: await digestOfFunctions(client) });
  } catch (error) {
    if (!isPrivilegeError(error)) throw postgresError(error, 'installing the schema rivulet');
    hasSchema = false;
  }
  return { applied, foreignFunctions, hasSchema, hasEventTriggers: await hasEventTriggers(client) };
}

/** Whether it is not there, or empty as after a dump of the schema alone was restored. */
async function lacksMessageKey(client: pg.ClientBase): Promise<boolean> {
  const { rows } = await client.query<{ lacks: boolean }>(
    `select not exists (select from pg_class c where c.oid = to_regclass('rivulet.message_key') and c.relispopulated) as lacks`,
  );
  return rows[0]!.lacks;
}

/** Whether the short name went, with the schema public say, and this user may make it. */
async function lacksShortTokenName(client: pg.ClientBase): Promise<boolean> {
  const { rows } = await client.query<{ lacks: boolean }>(
    `select to_regprocedure('public.rivulet_token()') is null and has_schema_privilege(p.oid, 'create')
              and pg_has_role(r.nspowner, 'usage') as lacks
       from pg_namespace p, pg_namespace r where p.nspname = 'public' and r.nspname = 'rivulet'`,
  );
  return rows[0]?.lacks ?? false;
}

/** Whether somebody has replaced or dropped a function of the schema; false where this user may not see that. */
export async function hasForeignFunctions(client: pg.ClientBase): Promise<boolean> {
  const { rows: own } = await client.query(
    `select from pg_class c where c.oid = to_regclass('rivulet.migration') and has_table_privilege(c.oid, 'select')`,
  );
  if (own.length === 0) return false;
  const { rows } = await client.query('select digest from rivulet.migration where number = $1', [
    FUNCTIONS.number,
  ]);
  return rows.length > 0 && rows[0].digest !== (await digestOfFunctions(client));
}

/** Tries again while locks stay with others, which is as long as transactions last in which a hook has run. */
async function withShortLocks(work: () => Promise<void>): Promise<void> {
  const startedMs = performance.now();
  for (;;) {
    try {
      return await work();
    } catch (error) {
      if (!isLockError(error) || performance.now() - startedMs > DEFAULT_OPEN_TRANSACTIONS_TIMEOUT_MS)
        throw error;
      await delay(LOCK_PAUSE_MS * (0.5 + Math.random()));
    }
  }
}

async function digestOfFunctions(client: pg.ClientBase): Promise<string> {
  const { rows } = await client.query(
    `select md5(string_agg(f, '' order by f collate "C")) as digest
       from (select concat_ws(' ', p.proname, p.proargtypes::text, p.prosecdef, p.proconfig::text, p.prosrc) as f
               from pg_proc p join pg_namespace n on n.oid = p.pronamespace where n.nspname = 'rivulet' and p.proname !~ '^tie_') each`,
  );
  return rows[0].digest ?? 'none';
}

async function note(
  client: pg.ClientBase,
  { number, name, digest }: { readonly number: number; readonly name: string; readonly digest: string },
): Promise<void> {
  await client.query(
    `insert into rivulet.migration (number, name, digest) values ($1, $2, $3)
     on conflict (number) do update set name = excluded.name, digest = excluded.digest, applied_at = now()`,
    [number, name, digest],
  );
}

/** `ours` has the version table, or nothing at all in it yet. */
export async function schemaState(client: pg.ClientBase): Promise<'none' | 'ours' | 'foreign'> {
  const { rows } = await client.query(
    `select exists (select from pg_class c where c.relnamespace = n.oid and c.relname = 'migration') as has_versions,
            exists (select from pg_class c where c.relnamespace = n.oid)
            or exists (select from pg_proc p where p.pronamespace = n.oid) as has_objects
       from pg_namespace n where n.nspname = 'rivulet'`,
  );
  if (rows.length === 0) return 'none';
  return rows[0].has_versions || !rows[0].has_objects ? 'ours' : 'foreign';
}

const ANNOUNCING_TRIGGERS = ['_rivulet_ddl', '_rivulet_drop', '_rivulet_rewrite'];
/** Those, and the two that let a table that is named in the publication become UNLOGGED. */
export const EVENT_TRIGGERS = [...ANNOUNCING_TRIGGERS, '_rivulet_alter', '_rivulet_untie'];

/** Whether the stream tells of every schema change. */
export async function hasEventTriggers(
  client: pg.ClientBase,
  names: readonly string[] = ANNOUNCING_TRIGGERS,
): Promise<boolean> {
  const { rows } = await client.query(
    `select count(*)::int as count from pg_event_trigger where evtname = any ($1) and evtenabled = 'A'`,
    [names],
  );
  return rows[0].count === names.length;
}

/** Runs `work` in a transaction that has the set-up lock. */
export async function inTransaction<T>(client: pg.ClientBase, work: () => Promise<T>): Promise<T> {
  await client.query('begin');
  try {
    await client.query('select pg_advisory_xact_lock($1::bigint)', [SETUP_LOCK]);
    const result = await work();
    await client.query('commit');
    return result;
  } catch (error) {
    await client.query('rollback').catch(() => undefined);
    throw error;
  }
}

export function isPrivilegeError(error: unknown): boolean {
  return error instanceof pg.DatabaseError && error.code === '42501';
}

async function makeVersionTable(client: pg.ClientBase): Promise<boolean> {
  return inTransaction(client, async () => {
    const { rows } = await client.query(`select to_regclass('rivulet.migration') is not null as exists`);
    if (rows[0].exists) return false;
    await client.query('create schema if not exists rivulet');
    await client.query(
      `create table rivulet.migration (
         number int primary key, name text not null, digest text not null, applied_at timestamptz not null default now())`,
    );
    return true;
  });
}
