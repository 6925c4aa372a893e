import type { ObjectStore } from '../store/object-store.ts';
import { openStore, type StoreLocation } from '../store/open-store.ts';
import { FallbackLink } from './fallback-link.ts';
import type { HttpLink } from './http-link.ts';
import type { SnapshotFacts } from './snapshot-download.ts';
import {
  type ApplySegmentsOptions,
  applySegments,
  downloadFromStore,
  type StoreBootstrapOptions,
} from './store-bootstrap.ts';
import { StoreLink } from './store-link.ts';

type OnLog = StoreBootstrapOptions['onLog'];

/** The object store as a replica uses it. Loaded only where there is one. */
export class StoreSource {
  /** The replicator, or the store while the replicator is away. */
  readonly link: FallbackLink;
  readonly #store: ObjectStore;
  readonly #onLog: OnLog;

  private constructor(store: ObjectStore, http: HttpLink, onLog: OnLog) {
    this.#store = store;
    this.#onLog = onLog;
    this.link = new FallbackLink(http, new StoreLink(store, (message) => onLog('warn', message, {})));
  }

  static async open(location: StoreLocation, http: HttpLink, onLog: OnLog): Promise<StoreSource> {
    return new StoreSource(await openStore(location), http, onLog);
  }

  download(options: Omit<StoreBootstrapOptions, 'store' | 'onLog'>): Promise<SnapshotFacts> {
    return downloadFromStore({ ...options, store: this.#store, onLog: this.#onLog });
  }

  applySegments(options: Omit<ApplySegmentsOptions, 'store' | 'onLog'>): Promise<void> {
    return applySegments({ ...options, store: this.#store, onLog: this.#onLog });
  }

  async close(): Promise<void> {
    this.link.close();
    await this.#store.close();
  }
}
