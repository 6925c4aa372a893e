import { setTimeout as delay } from 'node:timers/promises';
import type pg from 'pg';
import { creationBlocked, DEFAULT_SLOT_CREATION_TIMEOUT_MS } from './slot.ts';

const POLL_MS = 20;

/**
 * Waits for the transactions that are making or changing tables at this moment. What they have made nobody else sees,
 * and no hook saw to it: published meanwhile, it could refuse what they do with it next.
 */
export async function awaitOpenDefinitions(
  client: pg.ClientBase,
  {
    what,
    log,
    timeoutMs = DEFAULT_SLOT_CREATION_TIMEOUT_MS,
  }: { readonly what: string; readonly log: (message: string) => void; readonly timeoutMs?: number },
): Promise<void> {
  const startedMs = performance.now();
  let first: readonly string[] | null = null;
  for (;;) {
    const result: pg.QueryResult<{ open: readonly string[] }> = await client.query(
      `select coalesce(array_agg(distinct l.virtualtransaction), '{}') as open
         from pg_locks l left join pg_class c on c.oid = l.relation
        where l.locktype = 'relation' and l.mode = 'AccessExclusiveLock' and l.granted and l.relation >= 16384
          and l.database = (select d.oid from pg_database d where d.datname = current_database())
          and l.pid is distinct from pg_backend_pid() and c.relpersistence is distinct from 't'
          and ($1::text[] is null or l.virtualtransaction = any ($1))`,
      [first],
    );
    const { open } = result.rows[0]!;
    if (open.length === 0) return;
    if (first === null) {
      first = open;
      log(
        `${what} waits for ${open.length === 1 ? 'a transaction that is' : `${open.length} transactions that are`} making or changing tables`,
      );
    }
    if (performance.now() - startedMs > timeoutMs) throw await creationBlocked(client, { what, timeoutMs });
    await delay(POLL_MS);
  }
}
