import { fetchBlob } from './blob.ts';
import { type ChunkList, chunkAt, decodeChunkList, type Snapshot } from './manifest.ts';
import type { ObjectReader } from './object-reader.ts';
import type { StoreCallOptions } from './object-store.ts';

/** The chunks of a snapshot. Throws SNAPSHOT_CORRUPT. */
export async function fetchChunkList(
  store: ObjectReader,
  snapshot: Snapshot,
  options: StoreCallOptions = {},
): Promise<ChunkList> {
  const bytes = await fetchBlob(store, 'lists', snapshot.chunkList, options);
  return decodeChunkList(bytes, `the chunk list ${snapshot.chunkList.hash} in ${store.url}`);
}

/** One chunk's content, checked. Throws SNAPSHOT_CORRUPT. */
export async function fetchChunk(
  store: ObjectReader,
  list: ChunkList,
  index: number,
  options: StoreCallOptions = {},
): Promise<Buffer> {
  return await fetchBlob(store, 'chunks', chunkAt(list, index), options);
}
