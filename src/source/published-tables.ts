import { setTimeout as delay } from 'node:timers/promises';
import pg from 'pg';
import { HOPELESS } from './catalog.ts';
import { isLockError, postgresError } from './connection.ts';
import { DEFAULT_IDENTITY_ATTEMPTS } from './identity.ts';
import { canCall } from './own-functions.ts';

/** Taking a table in waits for those that write to it, and who wants to write to it waits behind that. */
const LOCK_TIMEOUT_MS = 100;

export interface PlacementOptions {
  readonly client: pg.ClientBase;
  readonly publication: string;
  readonly log: (message: string) => void;
  readonly attempts?: number;
}

export interface MisplacedTable {
  /** 0: it is none in particular. */
  readonly oid: number;
  /** What is wrong with it, and why it could not be mended. */
  readonly problem: string;
}

/**
 * Leaves out of a publication those tables that no replica identity helps, and takes in those that it lacks: what the
 * hooks could not do at once, because somebody held a lock. And ties those that somebody else has named there. Each step
 * in a transaction of its own. Returns those that are still misplaced; none, where set-up could not make the functions
 * for it. See sql/007_published_tables.sql.
 */
export async function keepPublishedTables(options: PlacementOptions): Promise<MisplacedTable[]> {
  const { client, publication } = options;
  // Not of an older set-up.
  if (!(await canCall(client, 'name_and_tie'))) return [];
  const misplaced: MisplacedTable[] = [];
  try {
    while (await nameAndTie(client, publication));
  } catch (error) {
    if (!(error instanceof pg.DatabaseError)) throw error;
    // Somebody else is altering the publication: later.
    if (!isLockError(error))
      misplaced.push({
        oid: 0,
        problem: `what keeps tables in the publication could not be mended: ${error.message}`,
      });
  }
  const { rows } = await client.query<{ oid: number; label: string; is_hopeless: boolean }>(
    'select oid, label, is_hopeless from rivulet.misplaced_tables($1)',
    [publication],
  );
  for (const { oid, label, is_hopeless: isHopeless } of rows) {
    const failure = await place(options, { oid, label, isHopeless });
    if (failure === null) continue;
    const problem = isHopeless
      ? `${label}: UPDATE and DELETE fail in Postgres, and it could not be taken out of the publication: ${failure}`
      : `${label} could not be taken into the publication: ${failure}`;
    misplaced.push({ oid, problem });
  }
  return misplaced;
}

/**
 * Ties tables that the publication names, as many as the server has room for in one transaction; resolves with whether
 * there may be more. `isUnread`: names those that it lacks; only before anybody reads from it, as nothing of what they
 * hold is announced.
 */
export async function nameAndTie(
  client: pg.ClientBase,
  publication: string,
  { isUnread = false }: { readonly isUnread?: boolean } = {},
): Promise<boolean> {
  const { rows } = await client.query<{ is_more: boolean }>(
    'select rivulet.name_and_tie($1, $2) as is_more',
    [publication, isUnread],
  );
  return rows[0]!.is_more;
}

/** Takes away what is left of tables that are gone; `ofAll`: of all, which takes these out of the publications. */
export async function sweepTies(
  client: pg.ClientBase,
  { ofAll = false }: { readonly ofAll?: boolean } = {},
): Promise<void> {
  if (!(await canCall(client, 'sweep_ties'))) return;
  for (let isMore = true; isMore; ) {
    const { rows } = await client.query<{ is_more: boolean }>('select rivulet.sweep_ties($1) as is_more', [
      ofAll,
    ]);
    isMore = rows[0]!.is_more;
  }
}

/** Null if it is done. */
async function place(
  { client, publication, log, attempts = DEFAULT_IDENTITY_ATTEMPTS }: PlacementOptions,
  table: { readonly oid: number; readonly label: string; readonly isHopeless: boolean },
): Promise<string | null> {
  for (let attempt = 1; ; attempt++) {
    try {
      await client.query('begin');
      await client.query(`set local lock_timeout = ${LOCK_TIMEOUT_MS}`);
      await client.query('select rivulet.place_table($1, $2)', [publication, table.oid]);
      await client.query('commit');
      log(
        table.isHopeless
          ? `${table.label} leaves the publication: ${HOPELESS}`
          : `${table.label} comes into the publication`,
      );
      return null;
    } catch (error) {
      await client.query('rollback').catch(() => undefined);
      if (!(error instanceof pg.DatabaseError)) throw postgresError(error, `publishing ${table.label}`);
      if (!isLockError(error)) return error.message;
      if (attempt >= attempts) return `locks stayed with other transactions in ${attempts} attempts`;
      await delay(50 * attempt * (0.5 + Math.random()));
    }
  }
}
