import { ConfigError } from '../errors.ts';
import type { ReaderLocation } from './object-reader.ts';
import type { StoreLocation } from './open-store.ts';

/** A small object that is replaced in place, as it was read. */
export interface StoredVersion {
  readonly bytes: Buffer;
  /** Names exactly this content in this place, for swap(). */
  readonly version: string;
}

export interface ListedObject {
  readonly key: string;
  readonly bytes: number;
  readonly modifiedAtMs: number;
}

export interface StoreCallOptions {
  readonly signal?: AbortSignal | undefined;
}

/**
 * Where snapshots and segments live. Objects are immutable: whoever puts a key twice puts the same content. The
 * one exception is the manifest, which is read with read() and replaced with swap() only.
 *
 * A call that fails was tried again inside already, where that could help; then it throws STORE_UNREACHABLE
 * (trying later can help) or STORE_REFUSED (only a human can).
 */
export interface ObjectStore extends AsyncDisposable {
  /** For messages: without credentials. */
  readonly url: string;
  /** With this another thread opens the same store. */
  readonly location: StoreLocation;
  /** With this another thread reads many objects of it; best asked for once something has been read here. */
  reading(): Promise<ReaderLocation>;
  /**
   * Whether swap() is atomic for any number of writers. Where the server lacks conditional writes it is not:
   * then one writer at a time is safe. Known once prepareWriting() has run.
   */
  readonly hasAtomicSwap: boolean;
  /** Finds out whether this place can be written, and how. Call once before the first swap(). */
  prepareWriting(options?: StoreCallOptions): Promise<void>;
  /** Stores an object. Once it resolves the object survives the death of this machine. */
  put(key: string, bytes: Uint8Array, options?: StoreCallOptions): Promise<void>;
  /** The whole object, or null if there is none. */
  get(key: string, options?: StoreCallOptions): Promise<Buffer | null>;
  /** Its size, or null if there is none. */
  head(key: string, options?: StoreCallOptions): Promise<{ readonly bytes: number } | null>;
  /** The present version of an object that is replaced in place. */
  read(key: string, options?: StoreCallOptions): Promise<StoredVersion | null>;
  /**
   * Replaces `expected` (null: nothing is there yet) with `bytes`, which must differ from everything that ever
   * was there. Gives the new version, or null with nothing changed if something else is there by now.
   */
  swap(
    key: string,
    bytes: Uint8Array,
    expected: string | null,
    options?: StoreCallOptions,
  ): Promise<string | null>;
  /** Keys that do not exist are no error. */
  delete(keys: readonly string[], options?: StoreCallOptions): Promise<void>;
  /** Slow and billed by the page: for finding what nothing names any more, never for reading. */
  list(prefix: string, options?: StoreCallOptions): AsyncIterable<ListedObject>;
  close(): Promise<void>;
}

const KEY = /^[A-Za-z0-9][A-Za-z0-9._-]*(\/[A-Za-z0-9][A-Za-z0-9._-]*)*$/;

/** Keys come out of manifests too: none may lead out of the store. */
export function checkKey(key: string): string {
  if (key.length <= 512 && KEY.test(key)) return key;
  throw new ConfigError(`not a key of the object store: ${JSON.stringify(key.slice(0, 80))}`);
}
