import type { Lsn } from '../lsn.ts';
import { putBlob } from '../store/blob.ts';
import { type Blob, encodeSegments, type Manifest, type Segment } from '../store/manifest.ts';
import type { ObjectStore, StoreCallOptions } from '../store/object-store.ts';
import type { ManifestWriter } from './manifest-writer.ts';
import { SegmentBuilder } from './segment-builder.ts';

/** A segment is full with so much: a request for less is not worth its round trip, and more is more to lose by a crash. */
export const DEFAULT_SEGMENT_BYTES = 8 * 1024 * 1024;

/** Segments that are stored, but not yet named: so many are named with one replacement of the manifest. */
const NAMED_TOGETHER = 8;
/** The manifest is sent whole with every segment: beyond so many, the oldest move into a list of their own. */
const MAX_IN_MANIFEST = 192;
const MOVED_TOGETHER = 128;

const LONG_AGO = new Date(0).toISOString();

/** Where the log stands. */
export interface LogHead {
  /** Nothing lies between the last transaction that was given to append() and this. */
  readonly position: Lsn;
  /** Whatever had been committed at this time is in it, ms since 1970. */
  readonly asOfMs: number;
  /** Of the source at the archived position; null if it is not known just now. */
  readonly sourceState: string | null;
}

export interface SegmentWriterOptions extends StoreCallOptions {
  readonly store: ObjectStore;
  readonly manifest: ManifestWriter;
  readonly epoch: string;
  readonly resume: Pick<NonNullable<Manifest['resume']>, 'timeline' | 'slot' | 'publication'>;
  /** The log reaches back to here. */
  readonly oldestPosition: Lsn;
  readonly segmentBytes?: number;
}

/**
 * Turns the change log into segments and names them in the manifest, in order and without a gap as long as the log
 * reaches back to where the last one ended. Calls must not overlap.
 *
 * After a failure it is of no use any more: open another, which goes on from what the manifest names.
 */
export class SegmentWriter {
  readonly #options: SegmentWriterOptions;
  readonly #builder: SegmentBuilder;
  readonly #logFrom: Lsn;
  #unnamed: Segment[] = [];
  /** The source's state as it was stored last. */
  #state: { readonly text: string; readonly blob: Blob } | null = null;
  #archived: Lsn;

  constructor(options: SegmentWriterOptions) {
    this.#options = options;
    const { manifest, epoch, oldestPosition, segmentBytes = DEFAULT_SEGMENT_BYTES } = options;
    const { current } = manifest;
    const end = current === null ? null : endOfSegments(current, epoch);
    const archived =
      current?.archived?.epoch === epoch && current.archived.position > (end ?? 0n)
        ? current.archived.position
        : end;
    // Nothing lies between the last segment and the archived position, so the row goes on from its end all the same.
    const isUnbroken = archived !== null && archived >= oldestPosition;
    this.#logFrom = isUnbroken ? archived : oldestPosition;
    this.#archived = this.#logFrom;
    this.#builder = new SegmentBuilder({
      epoch,
      from: isUnbroken ? (end ?? archived) : oldestPosition,
      maxBytes: segmentBytes,
    });
  }

  /** The log is to be read from here. */
  get logFrom(): Lsn {
    return this.#logFrom;
  }

  /** Up to here everything is in segments that the manifest names. */
  get archived(): Lsn {
    return this.#archived;
  }

  /** Takes the next frames of the log, and stores what makes whole segments. */
  async append(frames: Buffer): Promise<void> {
    this.#builder.push(frames);
    await this.#store(false);
  }

  /** Names all that came whole. Null: more of the log is to come. Gives the archived position. */
  async seal(head: LogHead | null): Promise<Lsn> {
    await this.#store(true);
    await this.#name(head);
    return this.#archived;
  }

  async #store(evenIfSmall: boolean): Promise<void> {
    const { store, signal } = this.#options;
    const plan = this.#builder.takeSegment(evenIfSmall);
    if (plan !== null) {
      const last = await putBlob(store, 'segments', plan.lastPart, { signal });
      this.#unnamed.push({ ...plan.segment, parts: [...plan.segment.parts, last] });
      if (this.#unnamed.length >= NAMED_TOGETHER) await this.#name(null);
    }
    const part = this.#builder.takePart();
    if (part !== null) this.#builder.partStored(await putBlob(store, 'segments', part, { signal }));
  }

  async #name(head: LogHead | null): Promise<void> {
    const { manifest, epoch } = this.#options;
    const unnamed = this.#unnamed;
    const reached = unnamed.at(-1)?.to ?? this.#archived;
    const archived = head !== null && head.position > reached ? head.position : reached;
    if (unnamed.length === 0 && archived === this.#archived && manifest.current?.archived?.epoch === epoch)
      return;
    const moved = await this.#moveOld();
    const state =
      head === null || head.sourceState === null ? null : await this.#storeState(head.sourceState);
    await manifest.update((before) => {
      const withMoved = moved === null ? before : moved(before);
      const end = endOfSegments(before, epoch) ?? -1n;
      return {
        ...withMoved,
        archived: {
          epoch,
          position: archived,
          at: head === null ? (before.archived?.at ?? LONG_AGO) : new Date(head.asOfMs).toISOString(),
        },
        resume:
          state === null ? before.resume : { epoch, position: archived, ...this.#options.resume, state },
        // What a lost answer was about is there already.
        segments: [...withMoved.segments, ...unnamed.filter(({ to }) => to > end)],
      };
    });
    this.#unnamed = [];
    this.#archived = archived;
  }

  async #storeState(text: string): Promise<Blob> {
    const { store, signal } = this.#options;
    if (this.#state?.text !== text)
      this.#state = { text, blob: await putBlob(store, 'lists', Buffer.from(text), { signal }) };
    return this.#state.blob;
  }

  /** Stores the oldest segments as a list, if there are many; gives what then puts it in their place. */
  async #moveOld(): Promise<((manifest: Manifest) => Manifest) | null> {
    const { store, manifest, signal } = this.#options;
    const segments = manifest.current?.segments ?? [];
    const oldest = segments[0];
    const isOver = oldest !== undefined && oldest.epoch !== this.#options.epoch;
    if (oldest === undefined || (segments.length < MAX_IN_MANIFEST && !isOver)) return null;
    const moved: Segment[] = [];
    for (const segment of segments) {
      const fits = moved.length === 0 || segment.from === moved.at(-1)!.to;
      if (segment.epoch !== oldest.epoch || !fits || moved.length === MOVED_TOGETHER) break;
      moved.push(segment);
    }
    const last = moved.at(-1)!;
    const list = await putBlob(store, 'lists', encodeSegments(moved), { signal });
    const entry = {
      epoch: oldest.epoch,
      from: oldest.from,
      to: last.to,
      firstCommitTime: moved.map((each) => each.firstCommitTime).toSorted()[0]!,
      lastCommitTime: moved
        .map((each) => each.lastCommitTime)
        .toSorted()
        .at(-1)!,
      count: moved.length,
      list,
    };
    return (before) => {
      const isThere = before.segmentLists.some((each) => each.list.hash === list.hash);
      const isAsBefore = moved.every((segment, index) => isSame(before.segments[index], segment));
      if (isThere || !isAsBefore) return before;
      return {
        ...before,
        segmentLists: [...before.segmentLists, entry],
        segments: before.segments.slice(moved.length),
      };
    };
  }
}

/** Where the segments of an epoch end; null if there are none. */
export function endOfSegments(manifest: Manifest, epoch: string): Lsn | null {
  const newest = (row: readonly { epoch: string; to: Lsn }[]): Lsn | null =>
    row.findLast((each) => each.epoch === epoch)?.to ?? null;
  return newest(manifest.segments) ?? newest(manifest.segmentLists);
}

function isSame(a: Segment | undefined, b: Segment): boolean {
  return a !== undefined && a.epoch === b.epoch && a.from === b.from && a.to === b.to;
}
