import { hash } from 'node:crypto';
import Database from 'better-sqlite3';
import { fetchBlob } from '../../src/store/blob.ts';
import { fetchChunk, fetchChunkList } from '../../src/store/chunk-list.ts';
import { decodeSegments, type Segment } from '../../src/store/manifest.ts';
import type { ObjectStore } from '../../src/store/object-store.ts';
import { readManifest } from '../../src/store/read-manifest.ts';
import { readSegment } from '../../src/store/segments.ts';

/** What the manifest names and is not there, or is not what it says. `seen` spares those of earlier calls. */
export async function checkStore(store: ObjectStore, seen = new Set<string>()): Promise<string[]> {
  const problems: string[] = [];
  const once = async (name: string, work: () => Promise<unknown>): Promise<void> => {
    if (seen.has(name)) return;
    try {
      await work();
      seen.add(name);
    } catch (error) {
      problems.push((error as Error).message);
    }
  };
  const read = await readManifest(store);
  if (read === null) return [];
  if (read.damage !== null) problems.push(read.damage.message);
  const { manifest } = read;
  for (const snapshot of manifest.snapshots) {
    const list = await fetchChunkList(store, snapshot).catch((error: Error) => {
      problems.push(error.message);
      return null;
    });
    for (const [index, [name]] of (list?.chunks ?? []).entries())
      await once(name, () => fetchChunk(store, list!, index));
  }
  const segments: Segment[] = [...manifest.segments];
  for (const { list } of manifest.segmentLists) {
    await once(list.hash, async () => {
      segments.push(...decodeSegments(await fetchBlob(store, 'lists', list), list.hash));
    });
  }
  for (const segment of segments) {
    for (const part of segment.parts) {
      await once(part.hash, async () => {
        for await (const _ of readSegment(store, { ...segment, parts: [part] }));
      });
    }
  }
  return problems;
}

/** The content of every mirrored table, as one hash. */
export function contentHash(file: string): string {
  const db = new Database(file, { readonly: true });
  try {
    const tables = db.prepare<[], string>('select sqlite_name from _rivulet_table order by 1').pluck().all();
    const rows = tables.flatMap((table) => [
      table,
      ...db
        .prepare<[], unknown[]>(`select * from "${table}"`)
        .raw()
        .safeIntegers()
        .all()
        .map((row) => row.map(String).join('\u0001'))
        .sort(),
    ]);
    return hash('sha256', rows.join('\n'));
  } finally {
    db.close();
  }
}
