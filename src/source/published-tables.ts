import { setTimeout as delay } from 'node:timers/promises';
import pg from 'pg';
import { RivuletError } from '../errors.ts';
import { HOPELESS } from './catalog.ts';
import { isLockError, postgresError } from './connection.ts';
import { DEFAULT_IDENTITY_ATTEMPTS } from './identity.ts';
import { canCall } from './own-functions.ts';
import { creationBlocked, DEFAULT_SLOT_CREATION_TIMEOUT_MS } from './slot.ts';

/** Taking a table in waits for those that write to it, and who wants to write to it waits behind that. */
const LOCK_TIMEOUT_MS = 100;

/** Others may be in the middle of what must end first: it is tried again later. */
const STEP_TIMEOUT_MS = 200;
const STEP_POLL_MS = 20;

export interface PlacementOptions {
  readonly client: pg.ClientBase;
  readonly publication: string;
  readonly log: (message: string) => void;
  readonly attempts?: number;
}

export interface MisplacedTable {
  readonly oid: number;
  /** What is wrong with it, and why it could not be mended. */
  readonly problem: string;
  /** Nothing is wrong but that transactions have to end first. */
  readonly isWaiting: boolean;
}

/**
 * Leaves out of a publication those tables that no replica identity helps, and takes in those that it lacks: what the
 * hooks could not do at once, because somebody held a lock. And names those that are published with their schema. Each
 * step in a transaction of its own. Returns those that are still misplaced; none, where set-up could not make the
 * functions for it. See sql/007_published_tables.sql.
 */
export async function keepPublishedTables(options: PlacementOptions): Promise<MisplacedTable[]> {
  const { client, publication } = options;
  if (!(await canCall(client, 'place_table'))) return [];
  await nameTables(client, publication);
  const { rows } = await client.query<{ oid: number; label: string; is_hopeless: boolean }>(
    'select oid, label, is_hopeless from rivulet.misplaced_tables($1)',
    [publication],
  );
  const misplaced: MisplacedTable[] = [];
  for (const { oid, label, is_hopeless: isHopeless } of rows) {
    const failure = await place(options, { oid, label, isHopeless });
    if (failure === null) continue;
    const problem = isHopeless
      ? `${label}: UPDATE and DELETE fail in Postgres, and it could not be taken out of the publication: ${failure}`
      : `${label} could not be taken into the publication: ${failure}`;
    misplaced.push({ oid, problem, isWaiting: failure === WAITING });
  }
  return misplaced;
}

/** A table that is named when others have been reading for a while is as good, once their transactions have ended. */
const NAMING_TIMEOUT_MS = 5_000;

/**
 * Before the slot is made: names all tables that are published with their schema, those too that transactions from
 * before the publication have made. The slot would have to wait for these anyway, and as long. See
 * rivulet.begin_reading.
 */
export async function beginReading(
  client: pg.ClientBase,
  {
    publication,
    slot,
    timeoutMs = DEFAULT_SLOT_CREATION_TIMEOUT_MS,
    signal,
  }: {
    readonly publication: string;
    readonly slot: string;
    readonly timeoutMs?: number;
    readonly signal?: AbortSignal;
  },
): Promise<void> {
  if (!(await canCall(client, 'begin_reading'))) return;
  const startedMs = performance.now();
  let namingSinceMs = Number.POSITIVE_INFINITY;
  for (;;) {
    const { rows } = await client.query<{ first: 'transactions' | 'tables' | null }>(
      'select rivulet.begin_reading($1, $2) as first',
      [publication, performance.now() - namingSinceMs < NAMING_TIMEOUT_MS],
    );
    const { first } = rows[0]!;
    if (first === null) return;
    if (first === 'tables') namingSinceMs = Math.min(namingSinceMs, performance.now());
    else if (performance.now() - startedMs > timeoutMs)
      throw await creationBlocked(client, { what: `the slot ${slot}`, timeoutMs });
    if (signal?.aborted)
      throw new RivuletError('CLOSED', 'the replicator was stopped before it made its slot');
    await nameTables(client, publication);
    await delay(STEP_POLL_MS);
  }
}

const WAITING = 'transactions that were open when other tables of its schema were named have to end first';

async function nameTables(client: pg.ClientBase, publication: string): Promise<void> {
  // Of an older set-up.
  if (!(await canCall(client, 'name_tables'))) return;
  try {
    for (let isMore = true; isMore; ) {
      const { rows } = await client.query('select rivulet.name_tables($1) as is_more', [publication]);
      isMore = rows[0].is_more;
    }
  } catch (error) {
    // Somebody else is changing the publication: later.
    if (!isLockError(error)) throw error;
  }
}

/** Null if it is done. */
async function place(
  { client, publication, log, attempts = DEFAULT_IDENTITY_ATTEMPTS }: PlacementOptions,
  table: { readonly oid: number; readonly label: string; readonly isHopeless: boolean },
): Promise<string | null> {
  const startedMs = performance.now();
  for (let attempt = 1; ; ) {
    try {
      await client.query('begin');
      await client.query(`set local lock_timeout = ${LOCK_TIMEOUT_MS}`);
      const { rows } = await client.query('select rivulet.place_table($1, $2) as placed', [
        publication,
        table.oid,
      ]);
      await client.query('commit');
      if (rows[0].placed) {
        log(
          table.isHopeless
            ? `${table.label} leaves the publication: ${HOPELESS}`
            : `${table.label} comes into the publication`,
        );
        return null;
      }
      await nameTables(client, publication);
      if (performance.now() - startedMs > STEP_TIMEOUT_MS) return WAITING;
      await delay(STEP_POLL_MS);
    } catch (error) {
      await client.query('rollback').catch(() => undefined);
      if (!(error instanceof pg.DatabaseError)) throw postgresError(error, `publishing ${table.label}`);
      if (!isLockError(error)) return error.message;
      if (attempt++ >= attempts) return `locks stayed with other transactions in ${attempts} attempts`;
      await delay(50 * attempt * (0.5 + Math.random()));
    }
  }
}
