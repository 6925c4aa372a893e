import { join } from 'node:path';
import { expect, test } from 'vitest';
import { openReplica } from '../../src/replica/replica.ts';
import { Pruner } from '../../src/snapshot/pruner.ts';
import { SnapshotWriter } from '../../src/snapshot/snapshot-writer.ts';
import { segmentsBehind } from '../../src/store/segments.ts';
import { START } from '../fanout/test-replicator.ts';
import { useS3Environment } from '../helpers/s3-environment.ts';
import { type Fault, S3Server } from '../helpers/s3-server.ts';
import { checkStore } from '../helpers/store-check.ts';
import { waitUntil } from '../helpers/wait-until.ts';
import { at, CHUNK_BYTES, headAt, StoreFixture, tx } from '../snapshot/store-fixture.ts';

useS3Environment();

/** So long a server without strong consistency answers from before the last write, now and then. */
const STALE_MS = 600;

/** Two of three reads behind a write: an object that was replaced is the one before, one that is new is not there. */
function readsLate(server: S3Server): void {
  const written = new Map<string, number>();
  let reads = 0;
  server.fault = ({ method, key }): Fault | null => {
    if (method === 'PUT') written.set(key, performance.now());
    if (method !== 'GET' && method !== 'HEAD') return null;
    const isRecent = performance.now() - (written.get(key) ?? Number.NEGATIVE_INFINITY) < STALE_MS;
    return isRecent && reads++ % 3 < 2 ? { kind: 'stale' } : null;
  };
}

async function staleStore() {
  const server = await S3Server.start();
  const location = { url: `s3://${server.bucket}/r`, endpoint: server.endpoint };
  const fixture = await StoreFixture.open(location);
  readsLate(server);
  return {
    server,
    location,
    fixture,
    async [Symbol.asyncDispose]() {
      await fixture[Symbol.asyncDispose]();
      await server[Symbol.asyncDispose]();
    },
  };
}

test('with a store that shows old content for a while no writer loses what another one wrote', async () => {
  await using place = await staleStore();
  const { server, fixture } = place;
  const { store } = fixture;
  let segments = fixture.segments();
  const archive = async (index: number): Promise<void> => {
    await segments.append(tx(index));
    await segments.seal(headAt(at(index)));
    fixture.apply(tx(index));
  };
  // As `rivulet snapshot prune` does it: beside the one that writes, without taking over.
  const prune = async (): Promise<void> => {
    const manifest = fixture.newWriter();
    await manifest.refresh();
    const snapshots = new SnapshotWriter({ store, manifest });
    const onWarning = (message: string) => void fixture.warnings.push(message);
    const pruner = new Pruner({ store, manifest, snapshots, graceMs: 0, onWarning });
    // A new snapshot may not be seen whole yet; then nothing is taken out.
    await pruner.prune({ keepCount: 1, keepAgeMs: 0 }).catch((error: Error) => {
      expect(error).toMatchObject({ code: 'SNAPSHOT_CORRUPT' });
    });
  };
  await fixture.snapshot();
  for (let index = 1; index <= 4; index++) await archive(index);
  await Promise.all([archive(5), prune()]);
  await fixture.snapshot();
  await Promise.all([archive(6), prune()]);
  // Another process takes over: it goes on from what the one before wrote last.
  const stale = fixture.manifest;
  fixture.manifest = fixture.newWriter();
  fixture.snapshots = new SnapshotWriter({ store, manifest: fixture.manifest, chunkBytes: CHUNK_BYTES });
  await fixture.manifest.takeOver();
  segments = fixture.segments();
  expect(segments.archived).toBe(at(6));
  await archive(7);
  await expect(stale.update((manifest) => ({ ...manifest, segments: [] }))).rejects.toMatchObject({
    code: 'STORE_FENCED',
  });
  await fixture.snapshot();
  await archive(8);
  await prune();

  server.fault = () => null;
  expect(await checkStore(store)).toEqual([]);
  const manifest = await fixture.read();
  expect(manifest.archived!.position).toBe(at(8));
  const row = await segmentsBehind(store, manifest, manifest.snapshots[0]!);
  expect(row.at(-1)!.to).toBe(at(8));
  expect(manifest.snapshots.at(-1)!.position).toBe(at(7));
  expect(manifest.snapshots[0]!.position).toBeGreaterThanOrEqual(START);
}, 60_000);

test('a replica that starts from such a store, and follows it, is never behind itself and has everything in the end', async () => {
  await using place = await staleStore();
  const { fixture, location } = place;
  const segments = fixture.segments();
  const archive = async (index: number): Promise<void> => {
    await segments.append(tx(index));
    await segments.seal(headAt(at(index)));
    fixture.apply(tx(index));
  };
  for (let index = 1; index <= 3; index++) await archive(index);
  await fixture.snapshot();
  await archive(4);
  const log = { info: () => undefined, warn: () => undefined, error: () => undefined };
  await using replica = await openReplica({
    file: join(fixture.directory.path, 'app.db'),
    replicator: 'http://127.0.0.1:9',
    store: location,
    log: log as never,
  });
  const counts: number[] = [];
  replica.on('commit', () => counts.push(items()));
  const items = (): number => replica.db.prepare('select count(*) from items').pluck().get() as number;
  expect(items()).toBeGreaterThanOrEqual(3);
  for (let index = 5; index <= 8; index++) await archive(index);
  await waitUntil('everything', () => items() === 8);
  expect(counts).toEqual(counts.toSorted((a, b) => a - b));
  await replica.waitFor(at(8), { timeoutMs: 5_000 });
}, 60_000);

test.each([
  ['that there is no manifest', { kind: 'error', status: 404, code: 'NoSuchKey' }],
  ['an older manifest', { kind: 'stale' }],
] as const)('a late answer %s neither stops a writer nor sets it back', async (_what, fault) => {
  await using place = await staleStore();
  const { server, fixture } = place;
  server.fault = () => null;
  const beside = fixture.newWriter();
  await beside.refresh();
  await fixture.manifest.update((manifest) => ({ ...manifest }));
  await beside.refresh();
  const archived = { epoch: 'e1', position: at(1), at: new Date().toISOString() };
  const { sequence } = await beside.update((manifest) => ({ ...manifest, archived }));
  // What the writer knows is no longer there, and for a while it cannot see what is.
  const sinceMs = performance.now();
  server.fault = ({ method }) => (method === 'GET' && performance.now() - sinceMs < STALE_MS ? fault : null);
  const updated = await fixture.manifest.update((manifest) =>
    manifest.archived === null ? { ...manifest } : null,
  );
  expect(updated).toMatchObject({ sequence, archived });
  expect(await fixture.manifest.refresh()).toMatchObject({ archived });
});
