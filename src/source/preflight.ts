import type pg from 'pg';
import { ConfigError, RivuletError } from '../errors.ts';

/** 14 is the first with everything the replicator relies on, and the oldest that got fixes while this was written. */
export const MIN_SERVER_VERSION = 140000;

/** What decides whether a server and a user will do. */
export interface ServerFacts {
  readonly version: number;
  readonly versionText: string;
  readonly inRecovery: boolean;
  readonly walLevel: string;
  readonly maxSlots: number;
  readonly usedSlots: number;
  readonly maxWalSenders: number;
  readonly usedWalSenders: number;
  readonly user: string;
  readonly isSuperuser: boolean;
  readonly mayReplicate: boolean;
  readonly database: string;
  readonly slot: {
    readonly name: string;
    readonly exists: boolean;
    readonly active: boolean;
    readonly plugin: string | null;
    readonly database: string | null;
  };
}

/** The names go unquoted into the replication protocol by way of its client, so only safe ones are taken. */
export function checkSlotName(slot: string): void {
  if (/^[a-z0-9_]{1,63}$/.test(slot)) return;
  throw new ConfigError(`not a replication slot name: ${JSON.stringify(slot.slice(0, 70))}`, {
    hint: 'a slot name has 1 to 63 characters of a-z, 0-9 and _',
  });
}

export function checkPublicationName(publication: string): void {
  const bytes = Buffer.byteLength(publication);
  if (bytes >= 1 && bytes <= 63 && !publication.includes('\0')) return;
  throw new ConfigError(`not a publication name: ${JSON.stringify(publication.slice(0, 70))}`, {
    hint: 'a publication name has 1 to 63 bytes',
  });
}

export async function readServerFacts(client: pg.ClientBase, slot: string): Promise<ServerFacts> {
  const { rows } = await client.query(
    `select current_setting('server_version_num')::int as version, current_setting('server_version') as version_text,
            pg_is_in_recovery() as in_recovery, current_setting('wal_level') as wal_level,
            current_setting('max_replication_slots')::int as max_slots,
            (select count(*)::int from pg_replication_slots) as used_slots,
            current_setting('max_wal_senders')::int as max_wal_senders,
            (select count(*)::int from pg_stat_activity where backend_type = 'walsender') as used_wal_senders,
            current_user::text as "user", r.rolsuper as is_superuser,
            -- hosts that keep the attribute to themselves lend it through a role
            r.rolsuper or r.rolreplication or exists (
              select from pg_roles h where h.rolname = 'rds_replication' and pg_has_role(h.oid, 'usage')) as may_replicate,
            current_database()::text as database,
            s.slot_name is not null as slot_exists, coalesce(s.active, false) as slot_active,
            s.plugin::text as slot_plugin, s.database::text as slot_database
       from pg_roles r left join pg_replication_slots s on s.slot_name = $1
      where r.rolname = current_user`,
    [slot],
  );
  const row = rows[0];
  return {
    version: row.version,
    versionText: row.version_text,
    inRecovery: row.in_recovery,
    walLevel: row.wal_level,
    maxSlots: row.max_slots,
    usedSlots: row.used_slots,
    maxWalSenders: row.max_wal_senders,
    usedWalSenders: row.used_wal_senders,
    user: row.user,
    isSuperuser: row.is_superuser,
    mayReplicate: row.may_replicate,
    database: row.database,
    slot: {
      name: slot,
      exists: row.slot_exists,
      active: row.slot_active,
      plugin: row.slot_plugin,
      database: row.slot_database,
    },
  };
}

/** The first reason for which replication from this server cannot work, or null. */
export function judgeServer(facts: ServerFacts): RivuletError | null {
  return serverProblems(facts)[0] ?? null;
}

/** Why queries of the catalog would fail on this server, or null. */
export function judgeVersion(version: number, versionText: string): RivuletError | null {
  if (version >= MIN_SERVER_VERSION) return null;
  return new RivuletError('SERVER_UNSUITABLE', `the server is Postgres ${versionText}, older than 14`, {
    hint: 'upgrade Postgres to 14 or newer',
  });
}

/** All reasons for which replication from this server cannot work, the most fundamental first. */
export function serverProblems(facts: ServerFacts): RivuletError[] {
  const { slot } = facts;
  const problems: RivuletError[] = [];
  const unsuitable = (message: string, hint: string): void => {
    problems.push(new RivuletError('SERVER_UNSUITABLE', message, { hint }));
  };
  const tooOld = judgeVersion(facts.version, facts.versionText);
  if (tooOld !== null) problems.push(tooOld);
  if (facts.inRecovery) {
    unsuitable('the server is a standby and takes no changes', 'give the URL of the primary');
  }
  if (facts.walLevel !== 'logical') {
    unsuitable(
      `wal_level is ${facts.walLevel}, logical is needed`,
      "run ALTER SYSTEM SET wal_level = 'logical' and restart Postgres (on a managed host, look for its logical replication setting)",
    );
  }
  if (!facts.mayReplicate) {
    problems.push(
      new RivuletError('PRIVILEGE', `the user ${facts.user} may not replicate`, {
        hint: `as a superuser: ALTER ROLE ${JSON.stringify(facts.user)} REPLICATION`,
      }),
    );
  }
  if (slot.exists) {
    const problem = judgeSlot(slot, facts.database);
    return problem === null ? problems : [...problems, problem];
  }
  if (facts.usedSlots >= facts.maxSlots) {
    unsuitable(
      `all ${facts.maxSlots} replication slots are in use`,
      'raise max_replication_slots (needs a restart), or drop a slot that nothing reads (pg_replication_slots)',
    );
  }
  // Slot creation and streaming take turns on one sender.
  if (facts.usedWalSenders >= facts.maxWalSenders) {
    unsuitable(
      `all ${facts.maxWalSenders} WAL senders are in use`,
      'raise max_wal_senders (needs a restart)',
    );
  }
  return problems;
}

/** Why a slot of that name is somebody else's, and must be neither read nor dropped; null if it may be ours. */
export function judgeSlot(
  slot: { readonly name: string; readonly plugin: string | null; readonly database: string | null },
  database: string,
): RivuletError | null {
  if (slot.plugin === 'pgoutput' && slot.database === database) return null;
  return new RivuletError(
    'SERVER_UNSUITABLE',
    `the slot ${slot.name} is there already, for ${slot.plugin === null ? 'physical replication' : `${slot.plugin} on database ${slot.database}`}`,
    { hint: 'choose another name with --slot', facts: { slot: slot.name } },
  );
}

/** Tables, or partitions, that the initial copy could not read whole, and why. */
export async function readUnreadableTables(
  client: pg.ClientBase,
  tables: readonly number[],
): Promise<{ table: string; reason: string }[]> {
  const { rows } = await client.query(
    `with recursive member(oid) as (
       select unnest($1::oid[])
       union
       select i.inhrelid from member m join pg_inherits i on i.inhparent = m.oid
         join pg_class c on c.oid = i.inhrelid and c.relispartition
     )
     select format('%I.%I', n.nspname, c.relname) as table,
            case when not has_schema_privilege(n.oid, 'usage') then 'no USAGE on its schema'
                 when not has_table_privilege(c.oid, 'select') then 'no SELECT'
                 else 'row-level security hides rows' end as reason
       from member m join pg_class c on c.oid = m.oid join pg_namespace n on n.oid = c.relnamespace
      where not has_schema_privilege(n.oid, 'usage') or not has_table_privilege(c.oid, 'select') or row_security_active(c.oid)
      order by 1`,
    [tables],
  );
  return rows.map((row) => ({ table: row.table, reason: row.reason }));
}
