import { setTimeout as delay } from 'node:timers/promises';
import type pg from 'pg';
import type { ChangeLog } from '../changelog/change-log.ts';
import { RivuletError } from '../errors.ts';
import type { Log } from '../log.ts';
import { formatLsn, parseLsn } from '../lsn.ts';
import type { SourceIdentity } from '../source/catalog.ts';
import { connect, disconnect } from '../source/connection.ts';
import { judgeSlot } from '../source/preflight.ts';
import { readPublication } from '../source/publication.ts';
import type { WalSender } from '../source/replication-stream.ts';
import { takeTurn } from '../source/setup.ts';
import { readSlot } from '../source/slot.ts';

/** A replicator that was just killed may still hold the slot for a moment. */
const SLOT_RELEASE_TIMEOUT_MS = 15_000;
const SLOT_POLL_MS = 50;

/** The check of a stream that has begun takes moments; a server that does not answer is no server, ms. */
const BEGUN_TIMEOUT_MS = 10_000;

/** Throws FILE_UNUSABLE unless the data directory is of this database, slot and publication. */
export function checkBelongs(
  { source }: ChangeLog,
  {
    identity,
    slot,
    publication,
  }: { readonly identity: SourceIdentity; readonly slot: string; readonly publication: string },
): void {
  if (source.systemIdentifier !== identity.systemIdentifier || source.database !== identity.database) {
    throw new RivuletError('FILE_UNUSABLE', 'the data directory belongs to another database', {
      hint: `it was made from ${source.database} on system ${source.systemIdentifier}; use another --data directory`,
    });
  }
  if (source.slot !== slot || source.publication !== publication) {
    throw new RivuletError(
      'FILE_UNUSABLE',
      `the data directory belongs to slot ${source.slot} and publication ${source.publication}`,
      { hint: 'give --slot and --publication as they were, or another --data directory' },
    );
  }
}

/**
 * Whether there is something for the log to go on from: same history, and a slot that may be read.
 * Throws what is the matter, with the recovery that goes with it. Whether the slot is the one that the log was
 * read from only checkBegun can tell.
 */
export async function checkContinuity(
  client: pg.ClientBase,
  options: {
    readonly slot: string;
    readonly publication: string;
    readonly identity: SourceIdentity;
    readonly changeLog: ChangeLog;
    /** False: whoever took slot and publication away while this process ran meant it. */
    readonly mayStartOver: boolean;
  },
): Promise<void> {
  const { slot, publication, identity, changeLog, mayStartOver } = options;
  const { source } = changeLog;
  if (source.timeline !== identity.timeline) {
    throw new RivuletError(
      'SLOT_LOST',
      `the server is on timeline ${identity.timeline}, the log on ${source.timeline}: history may have branched`,
    );
  }
  // A standby may simply be behind.
  const { rows } = await client.query<{ lsn: string | null }>(
    'select case when not pg_is_in_recovery() then pg_current_wal_insert_lsn()::text end as lsn',
  );
  const walEnd = rows[0]!.lsn;
  if (walEnd !== null && parseLsn(walEnd) < changeLog.position) {
    throw new RivuletError(
      'POSITION_GAP',
      `the server is at ${walEnd}, the log at ${formatLsn(changeLog.position)}: it was restored from a copy of before`,
    );
  }
  const state = await readSlot(client, slot);
  if (state === null) {
    // A teardown drops the slot first: wait until it is through before judging what it has left.
    if (!mayStartOver) await takeTurn(client);
    if (!mayStartOver && (await readPublication(client, publication)) === null) {
      throw new RivuletError('PUBLICATION', `slot ${slot} and publication ${publication} were taken away`, {
        hint: 'after a teardown stop this replicator; `rivulet setup` or a restart makes it begin again with a new copy',
      });
    }
    throw new RivuletError('SLOT_LOST', `the replication slot ${slot} is gone`);
  }
  const foreign = judgeSlot(
    { name: slot, plugin: state.plugin, database: state.database },
    identity.database,
  );
  if (foreign !== null) throw foreign;
  if (state.walStatus === 'lost') {
    throw new RivuletError('SLOT_LOST', `the replication slot ${slot} was invalidated`, {
      hint: 'max_slot_wal_keep_size is smaller than what was written while no replicator ran',
    });
  }
}

/**
 * Whether the stream that has just begun goes on where the log ends. Before the begin nothing could be said: a
 * slot may be dropped, and another made under its name, at any moment in which nobody reads from it. Once a walsender
 * has it, it stays what it is until that walsender ends.
 *
 * A slot has no number or age by which one could know it again, but it has a position. The one that we know
 * confirms only what we acknowledged, so it never stands past the log's end; a slot that was made after it
 * stands behind everything that was written before it was made, so always past the log's end, and the server
 * then starts there without a word, whatever start it was asked for.
 * https://www.postgresql.org/docs/current/protocol-replication.html#PROTOCOL-REPLICATION-START-REPLICATION-SLOT-LOGICAL
 *
 * It counts on nothing having been acknowledged on this connection: servers before the releases of 2025 let an
 * acknowledgement move a slot backwards, and the new one would then stand where the old one did.
 */
export async function checkBegun(
  url: string,
  options: { readonly slot: string; readonly changeLog: ChangeLog; readonly walSender: WalSender },
): Promise<void> {
  const { slot, changeLog, walSender } = options;
  const { systemIdentifier, timeline } = changeLog.source;
  if (walSender.systemIdentifier !== systemIdentifier || walSender.timeline !== timeline)
    throw elsewhere('another server answers');
  const client = await connect(url, {
    applicationName: 'rivulet check',
    connectTimeoutMs: BEGUN_TIMEOUT_MS,
    queryTimeoutMs: BEGUN_TIMEOUT_MS,
  });
  try {
    const state = await readSlot(client, slot);
    if (state === null || state.activePid !== walSender.pid)
      throw elsewhere(`the slot ${slot} is not read by process ${walSender.pid} of the server any more`);
    const { confirmedFlush } = state;
    if (confirmedFlush === null || confirmedFlush > changeLog.position) {
      throw new RivuletError(
        'POSITION_GAP',
        `the slot ${slot} stands past the log's end: it was made anew, or somebody else has read from it`,
        { facts: { slot, confirmedFlush, position: changeLog.position } },
      );
    }
  } finally {
    await disconnect(client);
  }
}

/** The stream broke, or its server changed, while it was looked at: the next connection looks at everything again. */
function elsewhere(what: string): RivuletError {
  return new RivuletError('POSTGRES_UNREACHABLE', `${what}: the stream begins again`);
}

/** For a data directory that knows nothing of the slot: throws SLOT_NOT_OURS if somebody may come back to it. */
export async function checkSlotIsFree(client: pg.ClientBase, slot: string, database: string): Promise<void> {
  const state = await readSlot(client, slot);
  if (state === null) return;
  const foreign = judgeSlot({ name: slot, plugin: state.plugin, database: state.database }, database);
  if (foreign !== null) throw foreign;
  // One that is lost is of no use to anybody.
  if (state.walStatus === 'lost') return;
  throw new RivuletError(
    'SLOT_NOT_OURS',
    `the replication slot ${slot} is there already, and another data directory's log goes on from it`,
    {
      hint: 'give the --data directory that it belongs to; if that is gone for good, --takeover drops the slot and makes a new copy; for a second replicator give another --slot and --publication',
      facts: { slot },
    },
  );
}

/** Waits a moment for the slot to be free; throws SLOT_IN_USE if somebody goes on reading from it. */
export async function waitForSlot(
  client: pg.ClientBase,
  options: { readonly slot: string; readonly log: Log; readonly signal: AbortSignal },
): Promise<void> {
  const { slot, log, signal } = options;
  const deadline = performance.now() + SLOT_RELEASE_TIMEOUT_MS;
  for (let said = false; ; said = true) {
    const state = await readSlot(client, slot);
    if (state === null || !state.active) return;
    if (performance.now() > deadline) {
      throw new RivuletError(
        'SLOT_IN_USE',
        `process ${state.activePid} of the server is reading from the slot ${slot}`,
        { hint: 'another replicator runs: stop it, or give this one a --slot and --publication of its own' },
      );
    }
    if (!said) log.warn({ slot, pid: state.activePid }, 'the slot is still in use; waiting for it');
    await delay(SLOT_POLL_MS, undefined, { signal });
  }
}
