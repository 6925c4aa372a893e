import { setTimeout as delay } from 'node:timers/promises';
import type { ReplicaDigest } from '../change/table-digest.ts';
import { RivuletError } from '../errors.ts';
import type {
  FollowerLink,
  FollowerReport,
  FollowRequest,
  LinkStream,
  StreamHandlers,
} from './follower-link.ts';
import type { HttpLink } from './http-link.ts';
import type { StoreLink } from './store-link.ts';

/** A replicator that restarts is back sooner; the store is for when it is not. */
const PATIENCE_MS = 3_000;
/** While the store is followed, the replicator is asked whether it is back. */
const FIRST_PROBE_MS = 1_000;
const LONGEST_PROBE_MS = 10_000;

/**
 * The replicator while it is there; the object store, some seconds behind, while it is not. From the store it goes
 * back by itself: the stream ends once the replicator answers, and the next one is the replicator's.
 */
export class FallbackLink implements FollowerLink {
  readonly #http: HttpLink;
  readonly #store: StoreLink;
  #missingSinceMs: number | null = null;
  /** It is worth waiting for one that was there a moment ago only. */
  #hasBeenThere = false;
  #probeMs = FIRST_PROBE_MS;
  /** Why the store is followed; null while it is not. */
  #reason: RivuletError | null = null;

  constructor(http: HttpLink, store: StoreLink) {
    this.#http = http;
    this.#store = store;
  }

  /** Why it is the store that is followed; null while it is the replicator. */
  get fallbackReason(): RivuletError | null {
    return this.#reason;
  }

  async open(request: FollowRequest, handlers: StreamHandlers, signal: AbortSignal): Promise<LinkStream> {
    try {
      const stream = await this.#http.open(request, handlers, signal);
      this.#reason = null;
      this.#hasBeenThere = true;
      this.#missingSinceMs = null;
      this.#probeMs = FIRST_PROBE_MS;
      return stream;
    } catch (error) {
      if (!isMissing(error)) throw error;
      this.#missingSinceMs ??= performance.now();
      if (this.#hasBeenThere && performance.now() - this.#missingSinceMs < PATIENCE_MS) throw error;
      return await this.#openStore(error, request, handlers, signal);
    }
  }

  async report(id: string, report: FollowerReport): Promise<number | null> {
    return this.#reason === null ? await this.#http.report(id, report) : null;
  }

  async digest(id: string, digest: ReplicaDigest): Promise<void> {
    if (this.#reason === null) await this.#http.digest(id, digest);
  }

  async hasten(): Promise<void> {
    await (this.#reason === null ? this.#http : this.#store).hasten();
  }

  close(): void {
    this.#http.close();
    this.#store.close();
  }

  async #openStore(
    missing: RivuletError,
    request: FollowRequest,
    handlers: StreamHandlers,
    signal: AbortSignal,
  ): Promise<LinkStream> {
    const stop = new AbortController();
    const end = (error: Error): void => {
      stop.abort();
      handlers.onEnd(error);
    };
    let stream: LinkStream;
    try {
      stream = await this.#store.open(request, { onBytes: handlers.onBytes, onEnd: end }, signal);
    } catch (error) {
      if (!(error instanceof RivuletError) || error.recovery !== 'retry') throw error;
      throw new RivuletError(missing.code, `${missing.message}, and ${error.message}`, {
        cause: error,
        ...(missing.hint === undefined ? {} : { hint: missing.hint }),
      });
    }
    this.#reason = missing;
    const probing = AbortSignal.any([signal, stop.signal]);
    void this.#untilBack(probing).then((isBack) => {
      if (!isBack) return;
      stream.close();
      end(new RivuletError('REPLICATOR_UNREACHABLE', 'the replicator is back: from the object store to it'));
    });
    return {
      consumed: (bytes) => stream.consumed(bytes),
      close: () => {
        stop.abort();
        stream.close();
      },
    };
  }

  /** True once the replicator answers, whatever it says; false if nobody waits for it any more. */
  async #untilBack(signal: AbortSignal): Promise<boolean> {
    while (!signal.aborted) {
      await delay(this.#probeMs, undefined, { signal }).catch(() => undefined);
      if (signal.aborted) return false;
      // If it then cannot be followed after all, the next look comes later.
      this.#probeMs = Math.min(LONGEST_PROBE_MS, this.#probeMs * 2);
      const answer = await this.#http.get('healthz', { signal }).catch(() => null);
      if (answer === null) continue;
      answer.close();
      return !signal.aborted;
    }
    return false;
  }
}

function isMissing(error: unknown): error is RivuletError {
  return (
    error instanceof RivuletError && (error.code === 'REPLICATOR_UNREACHABLE' || error.code === 'NOT_READY')
  );
}
