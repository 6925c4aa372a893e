import type { ObjectReader } from './object-reader.ts';
import { checkKey, type ObjectStore, type StoreCallOptions } from './object-store.ts';
import { openStore, type StoreLocation } from './open-store.ts';
import { IDLE_TIMEOUT_MS, MAX_CONNECTIONS } from './s3-store.ts';
import { type SignedAccess, SignedGets, UnexpectedAnswer } from './signed-gets.ts';

const FORBIDDEN = 403;

/**
 * Reads many objects of an S3 store. What goes well needs no SDK; whatever else happens, the SDK asks again, and
 * knows about retries, redirects and credentials that have expired.
 */
export class S3Reader implements ObjectReader {
  readonly url: string;
  readonly #location: StoreLocation;
  readonly #gets: SignedGets;
  /** Its credentials are good for nothing any more. */
  #isForbidden = false;
  #store: Promise<ObjectStore> | null = null;

  constructor(location: StoreLocation, access: SignedAccess) {
    this.url = location.url;
    this.#location = location;
    this.#gets = new SignedGets(access, { maxConnections: MAX_CONNECTIONS, idleTimeoutMs: IDLE_TIMEOUT_MS });
  }

  async get(key: string, options: StoreCallOptions = {}): Promise<Buffer | null> {
    if (!this.#isForbidden) {
      try {
        return await this.#gets.get(checkKey(key), options.signal);
      } catch (error) {
        options.signal?.throwIfAborted();
        if (error instanceof UnexpectedAnswer && error.status === FORBIDDEN) this.#isForbidden = true;
      }
    }
    this.#store ??= openStore(this.#location);
    return await (await this.#store).get(key, options);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#gets.close();
    await (await this.#store?.catch(() => null))?.close();
  }
}
