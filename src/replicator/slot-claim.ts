import { closeSync, fsyncSync, openSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

const CLAIM_FILE = 'slot.json';

/** The slot that a data directory has made, or is about to make. */
export interface SlotClaim {
  readonly systemIdentifier: string;
  readonly database: string;
  readonly slot: string;
}

/** A slot has nothing by which it could be known again, but each that is made begins an epoch. */
const EPOCHS_KEPT = 10;

/**
 * Written before the slot is made, and kept: a slot without a log is this directory's own leftover then, as after a
 * first copy that was interrupted, and not the slot of a replicator that happens to be stopped. `epoch`: one in which
 * the slot is this directory's; null: none has been entered.
 */
export function claimSlot(dir: string, claim: SlotClaim, epoch: string | null): void {
  const before = readEpochs(dir, claim);
  if (before !== null && (epoch === null || before.includes(epoch))) return;
  const file = join(dir, CLAIM_FILE);
  const { systemIdentifier, database, slot } = claim;
  const epochs = [...(before ?? []), ...(epoch === null ? [] : [epoch])].slice(-EPOCHS_KEPT);
  const text = JSON.stringify({ systemIdentifier, database, slot, epochs });
  writeFileSync(`${file}.new`, `${text}\n`, { flush: true });
  renameSync(`${file}.new`, file);
  const directory = openSync(dir, 'r');
  try {
    fsyncSync(directory);
  } finally {
    closeSync(directory);
  }
}

/** Whether the slot is this directory's. `epoch`: the one that was entered last, by whomever; null where nobody knows. */
export function hasClaimed(dir: string, claim: SlotClaim, epoch: string | null): boolean {
  const epochs = readEpochs(dir, claim);
  return epochs !== null && (epoch === null || epochs.includes(epoch));
}

/** Null: another slot was claimed, or none. */
function readEpochs(dir: string, { systemIdentifier, database, slot }: SlotClaim): readonly string[] | null {
  try {
    const claim = JSON.parse(readFileSync(join(dir, CLAIM_FILE), 'utf8')) as Partial<ClaimFile>;
    const isOfThis =
      claim.systemIdentifier === systemIdentifier && claim.database === database && claim.slot === slot;
    return isOfThis ? (claim.epochs ?? []) : null;
  } catch {
    return null;
  }
}

interface ClaimFile extends SlotClaim {
  readonly epochs: readonly string[];
}
