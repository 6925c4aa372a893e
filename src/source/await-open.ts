import { setTimeout as delay } from 'node:timers/promises';
import type pg from 'pg';
import { DEFAULT_SLOT_CREATION_TIMEOUT_MS } from './slot.ts';

/** Of set-up and teardown: as long as making a slot waits. */
export const DEFAULT_OPEN_TRANSACTIONS_TIMEOUT_MS = DEFAULT_SLOT_CREATION_TIMEOUT_MS;

const POLL_MS = 20;

/** Transactions of this database that are open, without our own: as pg_locks.virtualtransaction has them. */
export interface OpenTransactions {
  /** That make or change tables, or wait to do so. */
  readonly defining: readonly string[];
  readonly all: readonly string[];
}

/** Of these, if some are given, those that are open still. */
export async function readOpenTransactions(
  client: pg.ClientBase,
  among: readonly string[] | null = null,
): Promise<OpenTransactions> {
  const { rows } = await client.query<OpenTransactions>(
    `select coalesce(array_agg(distinct l.virtualtransaction) filter (where l.is_defining), '{}') as defining,
            coalesce(array_agg(distinct l.virtualtransaction), '{}') as all
       from (select l.virtualtransaction, l.mode = 'AccessExclusiveLock' as is_defining
               from pg_locks l
               join pg_database d on d.oid = l.database and d.datname = current_database()
               left join pg_class c on c.oid = l.relation
              where l.locktype = 'relation' and l.relation >= 16384 and c.relpersistence is distinct from 't'
                -- prepared ones have no process, and show here only
                and (l.pid is null or l.mode = 'AccessExclusiveLock' and l.pid <> pg_backend_pid())
             union all
             select l.virtualtransaction, false
               from pg_locks l join pg_stat_activity a on a.pid = l.pid
              where l.locktype = 'virtualxid' and l.granted and l.pid <> pg_backend_pid()
                and a.datname = current_database() and a.backend_type = 'client backend'
                and a.application_name not like 'rivulet %') l
      where $1::text[] is null or l.virtualtransaction = any ($1)`,
    [among],
  );
  return rows[0]!;
}

/** Until these have ended, or the time is over. Resolves with those that are left. */
export async function awaitTransactions(
  client: pg.ClientBase,
  transactions: readonly string[],
  timeoutMs: number,
): Promise<readonly string[]> {
  const startedMs = performance.now();
  for (;;) {
    const { all } = await readOpenTransactions(client, transactions);
    if (all.length === 0 || performance.now() - startedMs >= timeoutMs) return all;
    await delay(POLL_MS);
  }
}
