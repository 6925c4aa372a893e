import { setTimeout as delay } from 'node:timers/promises';
import pg from 'pg';
import { queryCatalog } from './catalog.ts';
import { isLockError, postgresError } from './connection.ts';

/** REPLICA IDENTITY needs an exclusive lock for an instant; waiting for it, we hold up everybody behind us. */
export const DEFAULT_IDENTITY_LOCK_TIMEOUT_MS = 300;

/** Enough to get between the transactions of a busy table, few enough to end within seconds. */
export const DEFAULT_IDENTITY_ATTEMPTS = 8;

/** A table, or a partition, whose UPDATE and DELETE the server would refuse while it is published. */
export interface WeakIdentity {
  readonly oid: number;
  readonly rootOid: number;
  readonly schema: string;
  readonly name: string;
  /** pg_class.relreplident as it is. */
  readonly identity: string;
  readonly indexOid: number | null;
  /** f or d: what would be usable; null if neither is. */
  readonly wanted: string | null;
  readonly reason: string;
}

export interface IdentityFailure {
  readonly table: WeakIdentity;
  readonly reason: string;
}

/** Of these tables (OIDs; null: of all), with the partitions below them, those without a usable identity. */
export async function readWeakIdentities(
  client: pg.ClientBase,
  tables: readonly number[] | null,
): Promise<WeakIdentity[]> {
  const { rows } = await queryCatalog(client, '003_identity.sql', [tables]);
  return rows.map((row) => ({
    oid: row.oid,
    rootOid: row.root,
    schema: row.schema_name,
    name: row.table_name,
    identity: row.identity,
    indexOid: row.index_oid,
    wanted: row.wanted,
    reason: row.reason,
  }));
}

export interface KeepIdentityOptions {
  readonly client: pg.ClientBase;
  readonly tables: readonly number[] | null;
  readonly log: (message: string) => void;
  /** Whether rivulet.saved_identity exists to remember what was before. */
  readonly remembers: boolean;
  readonly lockTimeoutMs?: number;
  readonly attempts?: number;
  /** True: change nothing, every weak table is a failure. */
  readonly onlyLook?: boolean;
}

/**
 * Makes the replica identity of these tables usable, each in a transaction of its own with a short lock
 * timeout. Returns what was changed and what could not be.
 */
export async function keepIdentities(
  options: KeepIdentityOptions,
): Promise<{ changed: WeakIdentity[]; failed: IdentityFailure[] }> {
  const { client, tables, log, attempts = DEFAULT_IDENTITY_ATTEMPTS } = options;
  const changed: WeakIdentity[] = [];
  const failed: IdentityFailure[] = [];
  for (const table of await readWeakIdentities(client, tables)) {
    if (table.wanted === null || options.onlyLook === true) {
      failed.push({ table, reason: table.reason });
      continue;
    }
    for (let attempt = 1; ; attempt++) {
      try {
        await setIdentity(options, table);
        changed.push(table);
        log(
          `${tableLabel(table)}: REPLICA IDENTITY ${identityClause(table.wanted).toUpperCase()}, because ${table.reason}`,
        );
        break;
      } catch (error) {
        await client.query('rollback').catch(() => undefined);
        const sqlstate = error instanceof pg.DatabaseError ? error.code : undefined;
        // undefined_table: it is gone, so it needs none.
        if (sqlstate === '42P01' || sqlstate === '3F000') break;
        const isLock = isLockError(error);
        if (sqlstate === undefined)
          throw postgresError(error, `setting the replica identity of ${tableLabel(table)}`);
        if (!isLock || attempt >= attempts) {
          const why = isLock
            ? `it stayed locked by other transactions in ${attempt} attempts`
            : (error as Error).message;
          failed.push({ table, reason: `${table.reason}, and REPLICA IDENTITY could not be set: ${why}` });
          break;
        }
        await delay(50 * attempt * (0.5 + Math.random()));
      }
    }
  }
  return { changed, failed };
}

async function setIdentity(options: KeepIdentityOptions, table: WeakIdentity): Promise<void> {
  const { client, remembers, lockTimeoutMs = DEFAULT_IDENTITY_LOCK_TIMEOUT_MS } = options;
  await client.query('begin');
  await client.query(`set local lock_timeout = ${Math.trunc(lockTimeoutMs)}`);
  await client.query(
    `alter table only ${tableLabel(table)} replica identity ${identityClause(table.wanted!)}`,
  );
  if (remembers) {
    await client.query(
      `insert into rivulet.saved_identity (relation_oid, previous, previous_index, set_to) values ($1, $2, $3, $4)
       on conflict (relation_oid) do update set set_to = excluded.set_to`,
      [table.oid, table.identity, table.indexOid, table.wanted],
    );
  }
  await client.query('commit');
}

export function identityClause(identity: string, index: string | null = null): string {
  if (identity === 'f') return 'full';
  if (identity === 'd') return 'default';
  return identity === 'i' && index !== null ? `using index ${pg.escapeIdentifier(index)}` : 'nothing';
}

export function tableLabel(table: { readonly schema: string; readonly name: string }): string {
  return `${pg.escapeIdentifier(table.schema)}.${pg.escapeIdentifier(table.name)}`;
}

/** Whether rivulet.saved_identity is there, for this user to write to. */
export async function remembersIdentities(client: pg.ClientBase): Promise<boolean> {
  const { rows } = await client.query(
    `select exists (select from pg_class c join pg_namespace n on n.oid = c.relnamespace
                     where n.nspname = 'rivulet' and c.relname = 'saved_identity'
                       and has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, 'insert')) as remembers`,
  );
  return rows[0].remembers;
}
