import { hash } from 'node:crypto';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import type { Lsn } from '../../src/lsn.ts';
import { Applier } from '../../src/replica/applier.ts';
import { openReplicaFile } from '../../src/replica/replica-file.ts';
import { ManifestWriter } from '../../src/snapshot/manifest-writer.ts';
import { type LogHead, SegmentWriter, type SegmentWriterOptions } from '../../src/snapshot/segment-writer.ts';
import { SnapshotWriter } from '../../src/snapshot/snapshot-writer.ts';
import type { Manifest } from '../../src/store/manifest.ts';
import type { ObjectStore } from '../../src/store/object-store.ts';
import { openStore, type StoreLocation } from '../../src/store/open-store.ts';
import { readManifest } from '../../src/store/read-manifest.ts';
import {
  batch,
  insertItem,
  makeSnapshot,
  SOURCE,
  START,
  temporaryDirectory,
} from '../fanout/test-replicator.ts';

/** Position of the i-th transaction. */
export const at = (index: number): Lsn => START + BigInt(index) * 0x100n;

/** The i-th transaction: `rows` rows of a kB each that do not compress. */
export function tx(index: number, rows = 1): Buffer {
  const changes = Array.from({ length: rows }, (_, row) =>
    insertItem(
      index * 10_000 + row,
      Array.from({ length: 16 }, (_, part) => hash('sha256', `${index} ${row} ${part}`)).join(''),
    ),
  );
  return batch(at(index), changes, { commitTimeUs: BigInt(index) * 1_000_000n }).bytes;
}

export const CHUNK_BYTES = 64 * 1024;

export function headAt(position: Lsn): LogHead {
  return { position, asOfMs: Date.now(), sourceState: '{}' };
}

/** A store with one writer, and a replica file that transactions are applied to. */
export class StoreFixture implements AsyncDisposable {
  readonly directory = temporaryDirectory();
  readonly warnings: string[] = [];
  readonly file = join(this.directory.path, 'archived.db');
  position: Lsn = START;
  store!: ObjectStore;
  manifest!: ManifestWriter;
  snapshots!: SnapshotWriter;

  /** Without a location the store is a directory of the fixture's own. */
  static async open(location?: StoreLocation): Promise<StoreFixture> {
    const fixture = new StoreFixture();
    fixture.store = await openStore(location ?? { url: fixture.url });
    fixture.manifest = fixture.newWriter();
    await fixture.manifest.takeOver();
    fixture.snapshots = new SnapshotWriter({
      store: fixture.store,
      manifest: fixture.manifest,
      chunkBytes: CHUNK_BYTES,
    });
    makeSnapshot(fixture.file, 'e1', START);
    fixture.apply();
    return fixture;
  }

  get url(): string {
    return pathToFileURL(join(this.directory.path, 'store')).href;
  }

  path(key: string): string {
    return join(this.directory.path, 'store', key);
  }

  newWriter(): ManifestWriter {
    return new ManifestWriter({
      store: this.store,
      source: { systemIdentifier: SOURCE.systemIdentifier, database: SOURCE.database },
      onWarning: (message) => this.warnings.push(message),
    });
  }

  segments(more: Partial<SegmentWriterOptions> = {}): SegmentWriter {
    return new SegmentWriter({
      store: this.store,
      manifest: this.manifest,
      epoch: 'e1',
      oldestPosition: START,
      resume: { timeline: 1, slot: 'rivulet', publication: 'rivulet' },
      ...more,
    });
  }

  /** Of the transactions up to 8, 4 to 6 are missing: the store was away for longer than the log was kept. */
  async archiveWithGap(head: Lsn): Promise<void> {
    const before = this.segments();
    for (let index = 1; index <= 3; index++) await before.append(tx(index));
    await before.seal(headAt(at(3)));
    const behind = this.segments({ oldestPosition: at(6) });
    for (let index = 7; index <= 8; index++) await behind.append(tx(index));
    await behind.seal(headAt(head));
  }

  /** Brings the file forward, as the replicator's base file is. */
  apply(...frames: readonly Buffer[]): void {
    const db = openReplicaFile(this.file);
    const applier = new Applier(db);
    for (const each of frames) applier.apply(each);
    this.position = applier.position;
    db.pragma('wal_checkpoint(TRUNCATE)');
    db.close();
  }

  async snapshot(): Promise<Awaited<ReturnType<SnapshotWriter['take']>>> {
    return await this.snapshots.take({ file: this.file, epoch: 'e1', position: this.position });
  }

  async read(): Promise<Manifest> {
    return (await readManifest(this.store))!.manifest;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.store.close();
    this.directory[Symbol.dispose]();
  }
}
