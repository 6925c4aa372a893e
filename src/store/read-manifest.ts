import { setTimeout as delay } from 'node:timers/promises';
import { RivuletError } from '../errors.ts';
import { decodeManifest, MANIFEST_BACKUP_KEY, MANIFEST_KEY, type Manifest } from './manifest.ts';
import type { ObjectStore, StoreCallOptions } from './object-store.ts';

const ATTEMPTS = 3;
const RETRY_MS = 100;

export interface ReadManifest {
  readonly manifest: Manifest;
  /** For ObjectStore.swap(). */
  readonly version: string;
  /** Why this is the copy that was made with the newest snapshot, if the manifest itself cannot be read. */
  readonly damage: RivuletError | null;
}

/**
 * The manifest, or null where there is none yet. One that is damaged is read again, then its backup is taken.
 * Throws SNAPSHOT_CORRUPT if that is of no use either, VERSION_MISMATCH for a newer program's.
 */
export async function readManifest(
  store: ObjectStore,
  options: StoreCallOptions = {},
): Promise<ReadManifest | null> {
  for (let attempt = 1; ; attempt++) {
    const stored = await store.read(MANIFEST_KEY, options);
    if (stored === null) return null;
    try {
      const manifest = decodeManifest(stored.bytes, `${MANIFEST_KEY} in ${store.url}`);
      return { manifest, version: stored.version, damage: null };
    } catch (error) {
      if (!(error instanceof RivuletError) || error.code !== 'SNAPSHOT_CORRUPT') throw error;
      if (attempt === ATTEMPTS) return await readBackup(store, stored.version, error, options);
    }
    await delay(RETRY_MS * attempt, undefined, options);
  }
}

async function readBackup(
  store: ObjectStore,
  version: string,
  damage: RivuletError,
  options: StoreCallOptions,
): Promise<ReadManifest> {
  const backup = await store.get(MANIFEST_BACKUP_KEY, options);
  if (backup === null) throw damage;
  return { manifest: decodeManifest(backup, `${MANIFEST_BACKUP_KEY} in ${store.url}`), version, damage };
}
