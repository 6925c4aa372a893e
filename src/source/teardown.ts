import { setTimeout as delay } from 'node:timers/promises';
import pg from 'pg';
import { RivuletError } from '../errors.ts';
import {
  awaitTransactions,
  DEFAULT_OPEN_TRANSACTIONS_TIMEOUT_MS,
  readOpenTransactions,
} from './await-open.ts';
import { connect, disconnect, isLockError, postgresError } from './connection.ts';
import { forgetEpoch } from './current-epoch.ts';
import {
  DEFAULT_IDENTITY_ATTEMPTS,
  DEFAULT_IDENTITY_LOCK_TIMEOUT_MS,
  identityClause,
  tableLabel,
} from './identity.ts';
import { EVENT_TRIGGERS, inTransaction, schemaState } from './migrate.ts';
import { checkPublicationName, checkSlotName } from './preflight.ts';
import { readConfig } from './publication.ts';
import { sweepTies } from './published-tables.ts';
import { takeTurn } from './setup.ts';
import { dropSlot, readSlot } from './slot.ts';

/** A replicator that is still running comes back to its slot at once: end it a few times, then tell. */
const SLOT_ATTEMPTS = 5;

export interface TeardownOptions {
  readonly url: string;
  readonly publication: string;
  readonly slot: string;
  readonly log: (message: string) => void;
  /** How long transactions that have changed tables are waited for. */
  readonly openTransactionsTimeoutMs?: number;
}

export interface TeardownReport {
  readonly did: string[];
  /** What is still there, and why. */
  readonly left: string[];
}

/**
 * Takes away what set-up and the replicator made on the server. May be run again after it was interrupted:
 * what it needs to know (the schema) goes last.
 *
 * First the publication: a published table without a usable identity would refuse UPDATE and DELETE. Then the hooks, so
 * that they do not undo the rest.
 */
export async function teardown(options: TeardownOptions): Promise<TeardownReport> {
  checkSlotName(options.slot);
  checkPublicationName(options.publication);
  const { openTransactionsTimeoutMs: timeoutMs = DEFAULT_OPEN_TRANSACTIONS_TIMEOUT_MS } = options;
  const client = await connect(options.url, { applicationName: 'rivulet teardown' });
  const report: TeardownReport = { did: [], left: [] };
  try {
    await takeTurn(client);
    await client.query(`set lock_timeout = ${timeoutMs}`);
    await removeSlot(client, options, report);
    const state = await schemaState(client);
    if (state === 'foreign') report.left.push('the schema rivulet, which Rivulet did not make');
    const others = state === 'ours' ? await otherPublications(client, options.publication) : [];
    // Thousands of tables at once would be more than the server has locks for.
    if (state === 'ours' && others.length === 0)
      await sweepTies(client, { ofAll: true }).catch((error) => {
        // Functions that somebody has replaced: then at once, as far as there are locks.
        if (!(error instanceof pg.DatabaseError)) throw error;
      });
    await removePublication(client, options.publication, report);
    if (others.length === 0) await dropEventTriggers(client, report);
    if (state === 'ours') {
      if (others.length > 0) {
        report.left.push(
          `schema, hooks and replica identities: the publications ${others.join(', ')} need them`,
        );
      } else {
        await awaitOpen(client, timeoutMs);
        await restoreIdentities(client, options, report);
        await client.query('drop schema rivulet cascade');
        report.did.push('dropped the schema rivulet');
      }
    }
    return report;
  } catch (error) {
    if (error instanceof pg.DatabaseError && error.code === '55P03') throw stillOpen(timeoutMs);
    throw postgresError(error, 'tearing down');
  } finally {
    await disconnect(client);
  }
}

async function removeSlot(
  client: pg.ClientBase,
  options: TeardownOptions,
  report: TeardownReport,
): Promise<void> {
  const { slot, log } = options;
  for (let attempt = 1; ; attempt++) {
    const state = await readSlot(client, slot);
    if (state === null) return;
    const { rows } = await client.query('select current_database()::text as database');
    if (state.plugin !== 'pgoutput' || state.database !== rows[0].database) {
      report.left.push(
        `the replication slot ${slot}: it belongs to ${state.database === null ? 'physical replication' : `database ${state.database}`}`,
      );
      return;
    }
    if (state.activePid !== null)
      log(`ending the process ${state.activePid} that reads from the slot ${slot}`);
    try {
      await dropSlot(client, slot, true);
      report.did.push(`dropped the replication slot ${slot}`);
      return;
    } catch (error) {
      const mapped = postgresError(error, `dropping the slot ${slot}`);
      if (mapped.code !== 'SLOT_IN_USE' || attempt === SLOT_ATTEMPTS) throw mapped;
      await delay(100 * attempt);
    }
  }
}

async function otherPublications(client: pg.ClientBase, publication: string): Promise<string[]> {
  const { rows: exists } = await client.query(`select to_regclass('rivulet.config') is not null as exists`);
  if (!exists[0].exists) return [];
  const { rows } = await client.query(
    'select c.publication::text from rivulet.config c join pg_publication p on p.pubname = c.publication where c.publication <> $1',
    [publication],
  );
  return rows.map((row) => row.publication);
}

async function dropEventTriggers(client: pg.ClientBase, report: TeardownReport): Promise<void> {
  const { rows } = await client.query(
    'select evtname::text as name from pg_event_trigger where evtname = any ($1) order by 1',
    [EVENT_TRIGGERS],
  );
  if (rows.length === 0) return;
  for (const row of rows) await client.query(`drop event trigger if exists ${row.name}`);
  report.did.push('dropped the event triggers');
}

async function removePublication(
  client: pg.ClientBase,
  publication: string,
  report: TeardownReport,
): Promise<void> {
  const config = await readConfig(client, publication);
  const { rows } = await client.query('select from pg_publication where pubname = $1', [publication]);
  const isOurs = config?.madePublication === true;
  if (rows.length > 0 && !isOurs)
    report.left.push(`the publication ${publication}, which set-up did not make`);
  if (config === null) return;
  await inTransaction(client, async () => {
    // Before the hooks hear of the publication's end: they would take it for one that is about to be made.
    await client.query('delete from rivulet.config where publication = $1', [publication]);
    if (rows.length > 0 && isOurs) await client.query(`drop publication ${pg.escapeIdentifier(publication)}`);
    await forgetEpoch(client, publication);
  });
  if (rows.length > 0 && isOurs) report.did.push(`dropped the publication ${publication}`);
}

/**
 * Sessions go by the event triggers that they knew when their transaction began: a hook that is gone would make their
 * next ALTER TABLE fail. And an identity that a hook has changed shows only when that transaction has ended.
 */
async function awaitOpen(client: pg.ClientBase, timeoutMs: number): Promise<void> {
  const { all } = await readOpenTransactions(client);
  const { length } = await awaitTransactions(client, all, timeoutMs);
  if (length > 0) throw stillOpen(timeoutMs);
}

function stillOpen(timeoutMs: number): RivuletError {
  return new RivuletError('TEARDOWN_BLOCKED', 'transactions that were open before are still open', {
    hint: 'run teardown again when they have ended: what is left of it does no harm until then',
    facts: { timeoutMs },
  });
}

async function restoreIdentities(
  client: pg.ClientBase,
  options: TeardownOptions,
  report: TeardownReport,
): Promise<void> {
  const { rows: exists } = await client.query(
    `select to_regclass('rivulet.saved_identity') is not null as exists`,
  );
  if (!exists[0].exists) return;
  const { rows } = await client.query(
    `select s.relation_oid as oid, n.nspname::text as schema, c.relname::text as name, s.previous::text as previous, i.relname::text as index
       from rivulet.saved_identity s
       join pg_class c on c.oid = s.relation_oid and c.relreplident = s.set_to
       join pg_namespace n on n.oid = c.relnamespace
       left join pg_class i on i.oid = s.previous_index
      order by 2, 3`,
  );
  const locked: string[] = [];
  for (const row of rows) {
    if (await restore(client, row)) {
      report.did.push(`gave ${tableLabel(row)} back its replica identity`);
      options.log(
        `${tableLabel(row)}: REPLICA IDENTITY ${identityClause(row.previous, row.index).toUpperCase()}, as before set-up`,
      );
    } else locked.push(tableLabel(row));
  }
  if (locked.length > 0) {
    throw new RivuletError(
      'REPLICA_IDENTITY',
      `these tables are locked and keep REPLICA IDENTITY FULL so far: ${locked.slice(0, 10).join(', ')}`,
      {
        hint: 'run teardown again at a quieter time: everything else is done',
      },
    );
  }
}

interface SavedIdentity {
  readonly oid: number;
  readonly schema: string;
  readonly name: string;
  readonly previous: string;
  readonly index: string | null;
}

/** False if the table stayed locked. */
async function restore(client: pg.ClientBase, table: SavedIdentity): Promise<boolean> {
  for (let attempt = 1; ; attempt++) {
    try {
      await client.query('begin');
      await client.query(`set local lock_timeout = ${DEFAULT_IDENTITY_LOCK_TIMEOUT_MS}`);
      await client.query(
        `alter table only ${tableLabel(table)} replica identity ${identityClause(table.previous, table.index)}`,
      );
      await client.query('delete from rivulet.saved_identity where relation_oid = $1', [table.oid]);
      await client.query('commit');
      return true;
    } catch (error) {
      await client.query('rollback').catch(() => undefined);
      const sqlstate = error instanceof pg.DatabaseError ? error.code : undefined;
      if (sqlstate === '42P01' || sqlstate === '3F000') return true; // dropped meanwhile
      if (!isLockError(error)) throw error;
      if (attempt >= DEFAULT_IDENTITY_ATTEMPTS) return false;
      await delay(50 * attempt * (0.5 + Math.random()));
    }
  }
}
