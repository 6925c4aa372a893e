import type { ObjectStore } from './object-store.ts';
import { openStore, type StoreLocation } from './open-store.ts';
import type { SignedAccess } from './signed-gets.ts';

/** The part of a store that brings objects. */
export interface ObjectReader extends Pick<ObjectStore, 'url' | 'get'>, AsyncDisposable {}

/** What another thread needs to read the same store; it can be posted. */
export interface ReaderLocation {
  readonly store: StoreLocation;
  /** Of S3, once it is known how it is asked; it is a secret. */
  readonly access: SignedAccess | null;
}

/** Opens a store for reading many objects; nothing is read yet. */
export async function openReader({ store, access }: ReaderLocation): Promise<ObjectReader> {
  if (access === null) return await openStore(store);
  const { S3Reader } = await import('./s3-reader.ts');
  return new S3Reader(store, access);
}
