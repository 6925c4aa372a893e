import { FORMAT_VERSION, FRAME, type Hello, jsonFrame, positionFrame } from '../change/frame.ts';
import { RivuletError } from '../errors.ts';
import { formatLsn, type Lsn } from '../lsn.ts';
import type { Manifest } from '../store/manifest.ts';
import type { ObjectStore } from '../store/object-store.ts';
import { readManifest } from '../store/read-manifest.ts';
import { readSegment, segmentsBehind } from '../store/segments.ts';
import type { FollowerLink, FollowRequest, LinkStream, StreamHandlers } from './follower-link.ts';

/** How often the manifest is read: segments come every few seconds at most. */
const POLL_INTERVAL_MS = 2_000;
/** A slow store may take its time for a segment. */
const SILENCE_LIMIT_MS = 120_000;
/** What may be on its way to the file: two segments. */
const CREDIT_BYTES = 16 * 1024 * 1024;

/** Follows the segments in an object store, without a word to the replicator: some seconds behind it. */
export class StoreLink implements FollowerLink {
  readonly #store: ObjectStore;
  readonly #onWarning: (message: string) => void;
  /** The newest one seen: a read may give an older one. */
  #newest: Manifest | null = null;
  #wake: (() => void) | null = null;

  constructor(store: ObjectStore, onWarning: (message: string) => void) {
    this.#store = store;
    this.#onWarning = onWarning;
  }

  async open(request: FollowRequest, handlers: StreamHandlers, signal: AbortSignal): Promise<LinkStream> {
    const { epoch, position } = request;
    const manifest = await this.#read(signal);
    const head = this.#check(manifest, epoch, position);
    const stop = new AbortController();
    const running = AbortSignal.any([signal, stop.signal]);
    const credit = new Credit();
    const hello: Hello = {
      version: FORMAT_VERSION,
      epoch,
      position: formatLsn(head),
      reportIntervalMs: POLL_INTERVAL_MS,
      silenceLimitMs: SILENCE_LIMIT_MS,
    };
    const give = async (bytes: Buffer): Promise<void> => {
      await credit.take(bytes.length, running);
      running.throwIfAborted();
      handlers.onBytes(bytes);
    };
    // Whoever waits for the promise must have its stream before the first bytes come.
    setImmediate(() => {
      this.#stream({ manifest, epoch, position, give, hello: jsonFrame(FRAME.hello, hello) }, running).catch(
        (error: unknown) => {
          if (!running.aborted) handlers.onEnd(error as Error);
        },
      );
    });
    return { consumed: (bytes) => credit.give(bytes), close: () => stop.abort() };
  }

  async report(): Promise<null> {
    return null;
  }

  async digest(): Promise<void> {}

  async hasten(): Promise<void> {
    this.#wake?.();
  }

  close(): void {}

  async #stream(
    start: {
      readonly manifest: Manifest;
      readonly epoch: string;
      readonly position: Lsn;
      readonly give: (bytes: Buffer) => Promise<void>;
      readonly hello: Buffer;
    },
    signal: AbortSignal,
  ): Promise<void> {
    const { epoch, give } = start;
    let { manifest, position } = start;
    await give(start.hello);
    for (;;) {
      const row = await segmentsBehind(this.#store, manifest, { epoch, position }, { signal });
      for (const segment of row) {
        try {
          for await (const frames of readSegment(this.#store, segment, { signal })) await give(frames);
        } catch (error) {
          throw this.#judgeDamage(error, manifest, epoch, segment.to);
        }
        position = segment.to;
      }
      const { archived } = manifest;
      if (archived?.epoch === epoch && position >= endOfRow(manifest, epoch)) {
        const ageMs = Math.max(0, Date.now() - Date.parse(archived.at));
        await give(positionFrame(archived.position, BigInt(ageMs) * 1000n));
      }
      await this.#pause(signal);
      manifest = await this.#read(signal);
      this.#check(manifest, epoch, position);
    }
  }

  /** Gives the position that the store leads to. Throws if it does not lead there from `position`. */
  #check(manifest: Manifest, epoch: string, position: Lsn): Lsn {
    const { archived, snapshots } = manifest;
    if (
      archived === null ||
      (archived.epoch !== epoch && !snapshots.some((each) => each.epoch === archived.epoch))
    )
      throw new RivuletError('NOT_READY', `${this.#store.url} has nothing of this history yet`);
    if (archived.epoch !== epoch) {
      throw new RivuletError(
        // A history that the store has not heard of is newer than its own: a file from there would be the older one.
        isFormer(manifest, epoch) ? 'EPOCH_MISMATCH' : 'STORE_UNREACHABLE',
        `${this.#store.url} is of epoch ${archived.epoch}, the file of epoch ${epoch}`,
      );
    }
    const behind = [...manifest.segmentLists, ...manifest.segments].filter(
      (each) => each.epoch === epoch && each.to > position,
    );
    const isBroken = behind.some(({ from }, index) =>
      index === 0 ? from > position : from !== behind[index - 1]!.to,
    );
    if (!isBroken) return archived.position;
    const isAhead = snapshots.some((each) => each.epoch === epoch && each.position > position);
    throw new RivuletError(
      // Without a newer snapshot a new file would stand where this one does.
      isAhead ? 'POSITION_TOO_OLD' : 'STORE_UNREACHABLE',
      `the segments in ${this.#store.url} do not lead on from ${formatLsn(position)}`,
    );
  }

  /** A snapshot behind the damaged segment is a way round it; without one the file stays where it is. */
  #judgeDamage(error: unknown, manifest: Manifest, epoch: string, to: Lsn): unknown {
    if (!(error instanceof RivuletError) || error.code !== 'SNAPSHOT_CORRUPT') return error;
    if (manifest.snapshots.some((each) => each.epoch === epoch && each.position >= to)) return error;
    return new RivuletError('STORE_UNREACHABLE', `the store leads no further: ${error.message}`, {
      cause: error,
    });
  }

  async #read(signal: AbortSignal): Promise<Manifest> {
    const read = await readManifest(this.#store, { signal });
    if (read === null) throw new RivuletError('NOT_READY', `there is nothing in ${this.#store.url} yet`);
    if (read.damage !== null) this.#onWarning(`${read.damage.message}: its backup is used`);
    if (this.#newest === null || read.manifest.sequence >= this.#newest.sequence)
      this.#newest = read.manifest;
    return this.#newest;
  }

  #pause(signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const onAbort = (): void => {
        clearTimeout(timer);
        this.#wake = null;
        reject(signal.reason as Error);
      };
      const wake = (): void => {
        clearTimeout(timer);
        this.#wake = null;
        signal.removeEventListener('abort', onAbort);
        resolve();
      };
      const timer = setTimeout(wake, POLL_INTERVAL_MS);
      this.#wake = wake;
      signal.addEventListener('abort', onAbort, { once: true });
      if (signal.aborted) onAbort();
    });
  }
}

/** Whether the store has left this history behind for another one. */
function isFormer({ snapshots, segmentLists, segments, removed }: Manifest, epoch: string): boolean {
  if (snapshots.at(-1)?.epoch === epoch) return false;
  const named = [{ snapshots, segmentLists, segments }, ...removed].flatMap((each) => [
    ...each.snapshots,
    ...each.segmentLists,
    ...each.segments,
  ]);
  return named.some((each) => each.epoch === epoch);
}

function endOfRow(manifest: Manifest, epoch: string): Lsn {
  const ends = [...manifest.segmentLists, ...manifest.segments].filter((each) => each.epoch === epoch);
  return ends.at(-1)?.to ?? 0n;
}

/** Waits while too much is on its way; a single piece larger than all credit still passes. */
export class Credit {
  #used = 0;
  #wake: (() => void) | null = null;

  async take(bytes: number, signal: AbortSignal): Promise<void> {
    while (this.#used > 0 && this.#used + bytes > CREDIT_BYTES) {
      signal.throwIfAborted();
      await new Promise<void>((resolve) => {
        const wake = (): void => {
          signal.removeEventListener('abort', wake);
          resolve();
        };
        this.#wake = wake;
        signal.addEventListener('abort', wake, { once: true });
      });
    }
    this.#used += bytes;
  }

  give(bytes: number): void {
    this.#used -= bytes;
    this.#wake?.();
  }
}
