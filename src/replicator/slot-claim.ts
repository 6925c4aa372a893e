import { closeSync, fsyncSync, openSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

const CLAIM_FILE = 'slot.json';

/** The slot that a data directory has made, or is about to make. */
export interface SlotClaim {
  readonly systemIdentifier: string;
  readonly database: string;
  readonly slot: string;
}

/**
 * Written before the slot is made, and kept: a slot without a log is this directory's own leftover then, as after a
 * first copy that was interrupted, and not the slot of a replicator that happens to be stopped.
 */
export function claimSlot(dir: string, claim: SlotClaim): void {
  if (hasClaimed(dir, claim)) return;
  const file = join(dir, CLAIM_FILE);
  const { systemIdentifier, database, slot } = claim;
  writeFileSync(`${file}.new`, `${JSON.stringify({ systemIdentifier, database, slot })}\n`, { flush: true });
  renameSync(`${file}.new`, file);
  const directory = openSync(dir, 'r');
  try {
    fsyncSync(directory);
  } finally {
    closeSync(directory);
  }
}

export function hasClaimed(dir: string, { systemIdentifier, database, slot }: SlotClaim): boolean {
  try {
    const claim = JSON.parse(readFileSync(join(dir, CLAIM_FILE), 'utf8')) as Partial<SlotClaim>;
    return claim.systemIdentifier === systemIdentifier && claim.database === database && claim.slot === slot;
  } catch {
    return false;
  }
}
