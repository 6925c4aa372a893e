import type pg from 'pg';
import { connect, disconnect } from '../../source/connection.ts';
import { hasEventTriggers, hasForeignFunctions, schemaState } from '../../source/migrate.ts';
import { readServerFacts, type ServerFacts } from '../../source/preflight.ts';
import { type PublicationState, readPublication } from '../../source/publication.ts';
import { readSlot, type SlotState } from '../../source/slot.ts';

/** Server settings that decide how replication runs; those that a server does not know stay away. */
const SETTINGS = [
  'max_slot_wal_keep_size',
  'wal_sender_timeout',
  'logical_decoding_work_mem',
  'synchronous_commit',
  'fsync',
  'statement_timeout',
  'idle_in_transaction_session_timeout',
  'idle_session_timeout',
  'transaction_timeout',
  'idle_replication_slot_timeout',
  'event_triggers',
  'server_encoding',
] as const;
export type SettingName = (typeof SETTINGS)[number];

/** Roles that hosts give in a superuser's place; most of them may make event triggers. */
const HOST_ADMIN_ROLES = [
  'rds_superuser',
  'cloudsqlsuperuser',
  'azure_pg_admin',
  'supabase_admin',
  'neon_superuser',
];

/** Younger transactions end before anybody could look at them. */
const LONG_TRANSACTION_SECONDS = 2;

/** A transaction that creating a slot has to wait for. */
export interface OpenTransaction {
  readonly pid: number | null;
  /** Of a prepared transaction. */
  readonly gid: string | null;
  readonly seconds: number;
  readonly says: string;
}

export interface ServerReport {
  readonly facts: ServerFacts;
  /** In the unit that pg_settings gives, as text: the session of this user, before Rivulet pins its own. */
  readonly settings: Readonly<Partial<Record<SettingName, { value: string; unit: string | null }>>>;
  /** The host's role in a superuser's place that this user has, or null. */
  readonly hostAdminRole: string | null;
  readonly mayCreateInDatabase: boolean;
  /** Whether other users' transactions and WAL senders can be seen (pg_read_all_stats). */
  readonly seesAllActivity: boolean;
  readonly openTransactions: readonly OpenTransaction[];
  readonly slot: SlotState | null;
  readonly publication: PublicationState | null;
  readonly schema: 'none' | 'ours' | 'foreign';
  readonly hasEventTriggers: boolean;
  /** Somebody has replaced or dropped what the hooks are made of. */
  readonly hasForeignFunctions: boolean;
  /** What a replication connection said; null where the user may not have one anyway. */
  readonly replication: { readonly works: boolean; readonly says: string } | null;
}

/** Looks, and changes nothing. A replication connection is opened for a moment, to see whether one can be. */
export async function readServerReport(
  client: pg.ClientBase,
  options: { readonly url: string; readonly slot: string; readonly publication: string },
): Promise<ServerReport> {
  const facts = await readServerFacts(client, options.slot);
  const settings = await client.query(
    // reset_val: what this user's sessions start with. The present value is the one that we pinned.
    'select name, reset_val as value, unit from pg_settings where name = any ($1)',
    [SETTINGS],
  );
  const { rows: rights } = await client.query(
    `select has_database_privilege(current_database(), 'create') as may_create,
            pg_has_role('pg_read_all_stats', 'usage') as sees_activity,
            (select rolname from pg_roles where rolname = any ($1) and pg_has_role(oid, 'usage') limit 1) as host_role`,
    [HOST_ADMIN_ROLES],
  );
  return {
    facts,
    settings: Object.fromEntries(
      settings.rows.map(({ name, value, unit }) => [name, { value: value ?? '', unit }]),
    ),
    hostAdminRole: rights[0].host_role,
    mayCreateInDatabase: rights[0].may_create,
    seesAllActivity: rights[0].sees_activity,
    openTransactions: await readOpenTransactions(client),
    slot: await readSlot(client, options.slot),
    publication: await readPublication(client, options.publication),
    schema: await schemaState(client),
    hasEventTriggers: await hasEventTriggers(client),
    hasForeignFunctions: await hasForeignFunctions(client),
    replication: facts.mayReplicate ? await tryReplication(options.url, client) : null,
  };
}

async function readOpenTransactions(client: pg.ClientBase): Promise<OpenTransaction[]> {
  const { rows } = await client.query(
    `select pid, null as gid, extract(epoch from now() - xact_start)::int as seconds,
            concat_ws(', ', nullif(application_name, ''), 'user ' || usename, state) as says
       from pg_stat_activity
      where backend_xid is not null and pid <> pg_backend_pid() and xact_start < now() - make_interval(secs => $1)
     union all
     select null, gid, extract(epoch from now() - prepared)::int, 'prepared by ' || owner || ' in database ' || database
       from pg_prepared_xacts
      order by seconds desc`,
    [LONG_TRANSACTION_SECONDS],
  );
  return rows.map(({ pid, gid, seconds, says }) => ({ pid, gid, seconds, says }));
}

/** Poolers answer queries, but most do not pass the replication protocol, or lead to another server. */
async function tryReplication(
  url: string,
  client: pg.ClientBase,
): Promise<NonNullable<ServerReport['replication']>> {
  try {
    const walsender = await connect(url, { applicationName: 'rivulet doctor', replication: true });
    try {
      const { rows } = await walsender.query('IDENTIFY_SYSTEM');
      const { rows: own } = await client.query(
        'select system_identifier::text as id from pg_control_system()',
      );
      if (rows[0].systemid === own[0].id) return { works: true, says: '' };
      return { works: false, says: 'a replication connection leads to another server than a query does' };
    } finally {
      await disconnect(walsender);
    }
  } catch (error) {
    const cause = (error as Error).cause;
    return { works: false, says: cause instanceof Error ? cause.message : (error as Error).message };
  }
}
