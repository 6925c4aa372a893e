import type { Lsn } from '../lsn.ts';
import { fetchBlob } from './blob.ts';
import { checkFrameVersion, decodeSegments, type Manifest, type Segment } from './manifest.ts';
import type { ObjectStore, StoreCallOptions } from './object-store.ts';

/**
 * The unbroken row of segments that brings a file at `position` forward, oldest first: the first one holds the
 * transaction behind `position`, and each begins where the one before ends. Empty if there is none.
 */
export async function segmentsBehind(
  store: ObjectStore,
  manifest: Manifest,
  from: { readonly epoch: string; readonly position: Lsn },
  options: StoreCallOptions = {},
): Promise<readonly Segment[]> {
  const isOurs = (each: { epoch: string; to: Lsn }): boolean =>
    each.epoch === from.epoch && each.to > from.position;
  const all: Segment[] = [];
  for (const { list } of manifest.segmentLists.filter(isOurs)) {
    const bytes = await fetchBlob(store, 'lists', list, options);
    all.push(...decodeSegments(bytes, `the segment list ${list.hash} in ${store.url}`));
  }
  all.push(...manifest.segments);
  return unbrokenRow(all.filter(isOurs), from.position);
}

/** As far as each one begins where the one before ends. Pure. */
export function unbrokenRow(segments: readonly Segment[], position: Lsn): readonly Segment[] {
  const row: Segment[] = [];
  let reached = position;
  for (const segment of segments) {
    const fits = row.length === 0 ? segment.from <= reached : segment.from === reached;
    if (!fits) break;
    row.push(segment);
    reached = segment.to;
  }
  return row;
}

/** The frames of a segment, part by part, checked; each part is of whole frames. */
export async function* readSegment(
  store: ObjectStore,
  segment: Segment,
  options: StoreCallOptions = {},
): AsyncIterable<Buffer> {
  checkFrameVersion(segment, store.url);
  for (const part of segment.parts) yield await fetchBlob(store, 'segments', part, options);
}
