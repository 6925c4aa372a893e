import { setTimeout as delay } from 'node:timers/promises';
import type pg from 'pg';
import type { ChangeLog } from '../changelog/change-log.ts';
import { RivuletError } from '../errors.ts';
import type { Log } from '../log.ts';
import { formatLsn } from '../lsn.ts';
import type { SourceIdentity } from '../source/catalog.ts';
import { judgeSlot } from '../source/preflight.ts';
import { readPublication } from '../source/publication.ts';
import { takeTurn } from '../source/setup.ts';
import { readSlot } from '../source/slot.ts';

/** A replicator that was just killed may still hold the slot for a moment. */
const SLOT_RELEASE_TIMEOUT_MS = 15_000;
const SLOT_POLL_MS = 50;

/**
 * Whether the log can go on where it ended: same server, same history, and a slot that has forgotten nothing of
 * what the log lacks. Throws what is the matter, with the recovery that goes with it.
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
  if (source.systemIdentifier !== identity.systemIdentifier || source.database !== identity.database) {
    throw new RivuletError('FILE_UNUSABLE', 'the data directory belongs to another database', {
      hint: `it was made from ${source.database} on system ${source.systemIdentifier}; use another --data directory`,
    });
  }
  if (source.timeline !== identity.timeline) {
    throw new RivuletError(
      'SLOT_LOST',
      `the server is on timeline ${identity.timeline}, the log on ${source.timeline}: history may have branched`,
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
  if (state.confirmedFlush !== null && state.confirmedFlush > changeLog.position) {
    throw new RivuletError(
      'POSITION_GAP',
      `the slot ${slot} was moved past the log's end, to ${formatLsn(state.confirmedFlush)}`,
    );
  }
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
