import type pg from 'pg';
import { RivuletError } from '../errors.ts';
import { type Lsn, parseLsn } from '../lsn.ts';
import { connect, disconnect, postgresError } from './connection.ts';
import { judgeSlot } from './preflight.ts';

/**
 * Creating a slot waits for every transaction that is open at that moment. Longer than this and somebody
 * forgot a transaction: better to name it than to wait for it in silence.
 */
export const DEFAULT_SLOT_CREATION_TIMEOUT_MS = 60_000;

export interface SlotState {
  readonly active: boolean;
  readonly activePid: number | null;
  readonly confirmedFlush: Lsn | null;
  readonly database: string | null;
  readonly plugin: string | null;
  /** reserved, extended, unreserved or lost. https://www.postgresql.org/docs/current/view-pg-replication-slots.html */
  readonly walStatus: string | null;
  /** Bytes that can still be written before the slot may be lost; null without max_slot_wal_keep_size. */
  readonly safeWalBytes: number | null;
  /** WAL that the server keeps for this slot. */
  readonly retainedBytes: number;
}

/** The slot's row, or null if there is none. Never peeks into the slot: that would decode the whole backlog. */
export async function readSlot(client: pg.ClientBase, slot: string): Promise<SlotState | null> {
  const { rows } = await client.query(
    `select active, active_pid, confirmed_flush_lsn::text, database, plugin, wal_status, safe_wal_size::text,
            coalesce(pg_wal_lsn_diff(case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end, restart_lsn), 0)::text as retained
       from pg_replication_slots where slot_name = $1`,
    [slot],
  );
  const row = rows[0];
  if (row === undefined) return null;
  return {
    active: row.active,
    activePid: row.active_pid,
    confirmedFlush: row.confirmed_flush_lsn === null ? null : parseLsn(row.confirmed_flush_lsn),
    database: row.database,
    plugin: row.plugin,
    walStatus: row.wal_status,
    safeWalBytes: row.safe_wal_size === null ? null : Number(row.safe_wal_size),
    retainedBytes: Number(row.retained),
  };
}

/** A new slot and the snapshot that it exported: everything up to `consistentPoint` is in the one, the rest in the other. */
export interface ExportedSlot extends AsyncDisposable {
  readonly consistentPoint: Lsn;
  /** For SET TRANSACTION SNAPSHOT, as long as this object is not closed. */
  readonly snapshot: string;
  /** Lets go of the snapshot; the slot stays. */
  close(): Promise<void>;
}

interface CreateSlotOptions {
  readonly url: string;
  readonly slot: string;
  /** Goes with the connection: for reading tables again at a known position. */
  readonly temporary?: boolean;
  readonly timeoutMs?: number;
  /** Ends the waiting with CLOSED; there is no slot then. */
  readonly signal?: AbortSignal;
}

/**
 * Creates the logical slot and exports its snapshot.
 * https://www.postgresql.org/docs/current/protocol-replication.html#PROTOCOL-REPLICATION-CREATE-REPLICATION-SLOT
 */
export async function createSlot(options: CreateSlotOptions): Promise<ExportedSlot> {
  const session = await connect(options.url, { applicationName: 'rivulet slot', replication: true });
  const close = async (): Promise<void> => {
    await disconnect(session);
  };
  try {
    const created = await createSlotIn(session, options);
    return { ...created, close, [Symbol.asyncDispose]: close };
  } catch (error) {
    await close();
    throw error;
  }
}

/** The same on a walsender session of the caller's, which can then stream from a temporary slot: no other can. */
export async function createSlotIn(
  session: pg.ClientBase,
  options: CreateSlotOptions,
): Promise<{ readonly consistentPoint: Lsn; readonly snapshot: string }> {
  const { url, slot, temporary = false, timeoutMs = DEFAULT_SLOT_CREATION_TIMEOUT_MS, signal } = options;
  let timer: NodeJS.Timeout | undefined;
  let stop = (): void => undefined;
  try {
    signal?.throwIfAborted();
    const { rows: self } = await session.query('select pg_backend_pid() as pid');
    const creation = session.query(
      `CREATE_REPLICATION_SLOT "${slot}"${temporary ? ' TEMPORARY' : ''} LOGICAL pgoutput EXPORT_SNAPSHOT`,
    );
    const end = new Promise<'timeout' | 'stopped'>((resolve) => {
      timer = setTimeout(resolve, timeoutMs, 'timeout');
      stop = () => resolve('stopped');
    });
    signal?.addEventListener('abort', stop, { once: true });
    const outcome = await Promise.race([creation, end]);
    if (outcome === 'timeout' || outcome === 'stopped') {
      creation.catch(() => undefined);
      const blocked = await giveUp(url, slot, self[0].pid, timeoutMs);
      throw outcome === 'timeout'
        ? blocked
        : new RivuletError('CLOSED', 'the creation of the slot was cancelled');
    }
    const row = outcome.rows[0];
    return { consistentPoint: parseLsn(row.consistent_point), snapshot: row.snapshot_name };
  } catch (error) {
    throw postgresError(error, `creating the replication slot ${slot}`);
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener('abort', stop);
  }
}

/** A walsender that waits in slot creation does not notice that its client has gone: it has to be ended. */
async function giveUp(url: string, slot: string, pid: number, timeoutMs: number): Promise<RivuletError> {
  const client = await connect(url, { applicationName: 'rivulet slot' });
  try {
    await client.query('select pg_terminate_backend($1)', [pid]);
    return await creationBlocked(client, { what: `the slot ${slot}`, timeoutMs, pid });
  } finally {
    await disconnect(client);
  }
}

/** Names the transactions that are open; `pid` is one that only waits for them. */
export async function creationBlocked(
  client: pg.ClientBase,
  { what, timeoutMs, pid = 0 }: { readonly what: string; readonly timeoutMs: number; readonly pid?: number },
): Promise<RivuletError> {
  const { rows } = await client.query(
    `select pid, usename, application_name, state, extract(epoch from now() - xact_start)::int as seconds
       from pg_stat_activity where backend_xid is not null and pid not in ($1, pg_backend_pid())
     union all select null, owner, gid, 'prepared', extract(epoch from now() - prepared)::int from pg_prepared_xacts
     order by seconds desc limit 5`,
    [pid],
  );
  const blockers = rows.map((row) =>
    row.pid === null
      ? `prepared transaction '${row.application_name}' (${row.seconds} s)`
      : `pid ${row.pid} ${row.application_name} (${row.state}, ${row.seconds} s)`,
  );
  return new RivuletError(
    'SLOT_CREATION_BLOCKED',
    `${what} was not created within ${timeoutMs} ms: open transactions hold it up`,
    {
      hint: `end or wait for: ${blockers.join('; ') || 'the oldest transactions in pg_stat_activity'}`,
      facts: { timeoutMs },
    },
  );
}

/** Drops the slot; false if there was none. Never one of another plugin or database: it is somebody else's. An active slot is freed first by ending the process that reads it. */
export async function dropSlot(
  client: pg.ClientBase,
  slot: string,
  terminateReader: boolean,
): Promise<boolean> {
  const state = await readSlot(client, slot);
  if (state === null) return false;
  const { rows } = await client.query('select current_database()::text as database');
  const problem = judgeSlot({ name: slot, plugin: state.plugin, database: state.database }, rows[0].database);
  if (problem !== null) throw problem;
  if (state.activePid !== null) {
    if (!terminateReader) {
      throw new RivuletError(
        'SLOT_IN_USE',
        `process ${state.activePid} of the server is reading from the slot ${slot}`,
        {
          hint: 'stop the other replicator, or use another --slot',
          facts: { slot, pid: state.activePid },
        },
      );
    }
    await client.query('select pg_terminate_backend($1, 5000)', [state.activePid]);
  }
  await client.query('select pg_drop_replication_slot($1)', [slot]);
  return true;
}
