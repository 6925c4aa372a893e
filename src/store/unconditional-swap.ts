import { randomBytes } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import { RivuletError } from '../errors.ts';
import type { ObjectStore, StoreCallOptions } from './object-store.ts';

/** A writer that has not renewed its lease for so long is gone. */
const DEFAULT_LEASE_MS = 30_000;
/** Between taking a lease and looking whether somebody else took it at the same moment. */
const SETTLE_MS = 500;

/**
 * swap() for servers that ignore conditions: a lease object beside the manifest, taken by writing and reading
 * back, keeps writers apart as long as none of them stops between its last look and its write for longer than
 * the lease. That cannot be ruled out, so this is for one writer; the lease makes a second one wait, and what was
 * written is read back.
 */
export class UnconditionalSwap {
  readonly #store: Pick<ObjectStore, 'url' | 'get' | 'put' | 'read'>;
  readonly #leaseMs: number;
  readonly #owner = randomBytes(8).toString('hex');
  #renewals = 0;
  #renewedAtMs = Number.NEGATIVE_INFINITY;
  #leaseKey: string | null = null;

  constructor(store: Pick<ObjectStore, 'url' | 'get' | 'put' | 'read'>, leaseMs: number = DEFAULT_LEASE_MS) {
    this.#store = store;
    this.#leaseMs = leaseMs;
  }

  async swap(
    key: string,
    bytes: Uint8Array,
    expected: string | null,
    options: StoreCallOptions,
  ): Promise<string | null> {
    const found = (await this.#store.read(key, options))?.version ?? null;
    if (found !== expected) return null;
    this.#leaseKey = `${key}.owner`;
    await this.#takeLease(this.#leaseKey, options);
    const present = await this.#store.read(key, options);
    if ((present?.version ?? null) !== expected) return null;
    await this.#store.put(key, bytes, options);
    const after = await this.#store.read(key, options);
    return after?.bytes.equals(Buffer.from(bytes)) === true ? after.version : null;
  }

  async #takeLease(key: string, options: StoreCallOptions): Promise<void> {
    const isOurs = performance.now() - this.#renewedAtMs < this.#leaseMs / 2;
    if (!isOurs) await this.#untilFree(key, options);
    await this.#renew(key, options);
    if (isOurs) return;
    await delay(SETTLE_MS, undefined, options);
    const holder = await this.#holder(key, options);
    if (holder === this.#lease) return;
    this.#renewedAtMs = Number.NEGATIVE_INFINITY;
    throw new RivuletError('STORE_UNREACHABLE', `another process writes to ${this.#store.url}`, {
      hint: 'this server has no conditional writes, so one writer at a time is safe: stop the other one',
    });
  }

  /** By our own clock: a lease that does not change for its whole time is nobody's. */
  async #untilFree(key: string, options: StoreCallOptions): Promise<void> {
    let seen = await this.#holder(key, options);
    if (seen === null || seen === '' || seen.startsWith(this.#owner)) return;
    for (let sinceMs = performance.now(); performance.now() - sinceMs < this.#leaseMs; ) {
      await delay(this.#leaseMs / 20, undefined, options);
      const now = await this.#holder(key, options);
      if (now === null || now === '') return;
      if (now !== seen) {
        seen = now;
        sinceMs = performance.now();
      }
    }
  }

  get #lease(): string {
    return `${this.#owner} ${this.#renewals}`;
  }

  async #renew(key: string, options: StoreCallOptions): Promise<void> {
    this.#renewals++;
    await this.#store.put(key, Buffer.from(this.#lease), options);
    this.#renewedAtMs = performance.now();
  }

  async #holder(key: string, options: StoreCallOptions): Promise<string | null> {
    return (await this.#store.get(key, options))?.toString('latin1') ?? null;
  }

  /** Lets the next writer in at once. */
  async release(): Promise<void> {
    const key = this.#leaseKey;
    if (key === null || this.#renewedAtMs === Number.NEGATIVE_INFINITY) return;
    this.#renewedAtMs = Number.NEGATIVE_INFINITY;
    if ((await this.#holder(key, {})) === this.#lease) await this.#store.put(key, Buffer.alloc(0));
  }
}
