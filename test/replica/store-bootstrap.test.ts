import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { join } from 'node:path';
import Database from 'better-sqlite3';
import { expect, test, vi } from 'vitest';
import type { Lsn } from '../../src/lsn.ts';
import { openReader } from '../../src/read/reader.ts';
import { HttpLink } from '../../src/replica/http-link.ts';
import { openReplica, type Replica } from '../../src/replica/replica.ts';
import { ReplicaKeeper } from '../../src/replica/replica-keeper.ts';
import { StoreSource } from '../../src/replica/store-source.ts';
import { blobKey } from '../../src/store/blob.ts';
import { fetchChunkList } from '../../src/store/chunk-list.ts';
import type { Snapshot } from '../../src/store/manifest.ts';
import { insertItem, makeSnapshot, START, TestReplicator } from '../fanout/test-replicator.ts';
import { waitUntil } from '../helpers/wait-until.ts';
import { headAt, StoreFixture } from '../snapshot/store-fixture.ts';
import { keeperEvents } from './keeper-events.ts';

/** A replicator whose log goes to a store, as the archiver does it, when the test says so. */
class Archived implements AsyncDisposable {
  readonly fixture: StoreFixture;
  replicator: TestReplicator;
  readonly #logs: string[] = [];
  #segments: ReturnType<StoreFixture['segments']> | null = null;
  #seq = 1;

  private constructor(fixture: StoreFixture, replicator: TestReplicator) {
    this.fixture = fixture;
    this.replicator = replicator;
  }

  static async start(): Promise<Archived> {
    const fixture = await StoreFixture.open();
    return new Archived(fixture, await TestReplicator.start({ dir: join(fixture.directory.path) }));
  }

  get logs(): string {
    return this.#logs.join('\n');
  }

  /** Everything in the log goes into segments, and with `snapshot` a snapshot is taken. */
  async archive({ snapshot = false } = {}): Promise<void> {
    const { log } = this.replicator;
    this.#segments ??= this.fixture.segments({ epoch: log.epoch, oldestPosition: log.oldestPosition });
    const cursor = log.openCursorAt(this.#seq);
    for (let frames = cursor.next(1e6); frames !== null; frames = cursor.next(1e6)) {
      await this.#segments.append(frames);
      this.fixture.apply(frames);
    }
    this.#seq = cursor.nextSeq;
    await this.#segments.seal(headAt(log.position));
    if (snapshot) await this.fixture.snapshot();
  }

  open(name = 'app.db', more: { readonly url?: string } = {}): Promise<Replica> {
    const log = { info: this.#log, warn: this.#log, error: this.#log };
    return openReplica({
      file: join(this.fixture.directory.path, name),
      replicator: this.replicator.url,
      store: { url: more.url ?? this.fixture.url },
      log: log as never,
    });
  }

  readonly #log = (facts: Readonly<Record<string, unknown>>, message: string): void => {
    this.#logs.push(
      `${message} ${JSON.stringify(facts, (_key, value) => (typeof value === 'bigint' ? `${value}` : value))}`,
    );
  };

  async snapshots(): Promise<readonly Snapshot[]> {
    return (await this.fixture.read()).snapshots;
  }

  async damage(snapshot: Snapshot, index: number): Promise<string> {
    const { chunks } = await fetchChunkList(this.fixture.store, snapshot);
    const key = blobKey('chunks', chunks.at(index)![0]);
    writeFileSync(this.fixture.path(key), 'damaged');
    return key;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.replicator[Symbol.asyncDispose]().catch(() => undefined);
    await this.fixture[Symbol.asyncDispose]();
  }
}

const items = (replica: Replica): number =>
  replica.db.prepare('select count(*) from items').pluck().get() as number;
const commitMany = (archived: Archived, from: number, count: number): Lsn => {
  let lsn: Lsn = 0n;
  for (let index = from; index < from + count; index++)
    lsn = archived.replicator.commit(insertItem(index, `item ${index} ${'x'.repeat(500)}`));
  return lsn;
};

test('a new replica takes its file from the store, and follows the replicator', async () => {
  await using archived = await Archived.start();
  commitMany(archived, 0, 500);
  await archived.archive({ snapshot: true });
  commitMany(archived, 500, 5);
  await archived.archive();
  const lsn = commitMany(archived, 505, 5);
  await using replica = await archived.open();
  expect(items(replica)).toBe(510);
  await waitUntil('live', () => replica.state === 'live');
  expect(replica.position).toBe(lsn);
  expect(archived.logs).toMatch(/snapshot at .* taken from file/);
  expect(archived.logs).toMatch(/1 segments applied/);
  expect(archived.replicator.leases).toBe(0);
  // Nothing is left beside the file.
  expect(readdirSync(archived.fixture.directory.path).filter((name) => name.includes('download'))).toEqual(
    [],
  );
});

test('without its replicator it comes up from the store, follows that, says so, and switches back', async () => {
  await using archived = await Archived.start();
  commitMany(archived, 0, 50);
  await archived.archive({ snapshot: true });
  commitMany(archived, 50, 50);
  await archived.archive();
  const { port } = new URL(archived.replicator.url);
  await archived.replicator.server.close();
  await using replica = await archived.open();
  expect(items(replica)).toBe(100);
  await waitUntil(
    'following the store',
    () => replica.state === 'following-store' && replica.status().lag.ms !== null,
  );
  expect(replica.status()).toMatchObject({
    isHealthy: true,
    reasons: [expect.stringContaining('is not there')],
    lag: { connected: false },
  });
  const lsn = commitMany(archived, 100, 20);
  await archived.archive();
  await replica.waitFor(lsn, { timeoutMs: 10_000 });
  expect([items(replica), replica.state]).toEqual([120, 'following-store']);
  const before = archived.replicator;
  await before.publisher.close();
  await before.log.close();
  archived.replicator = await TestReplicator.restart({ dir: before.dir, port: Number(port) });
  const live = archived.replicator.commit(insertItem(1000));
  await waitUntil('the replicator again', () => replica.state === 'live');
  await replica.waitFor(live, { timeoutMs: 5_000 });
  expect([items(replica), replica.status().reasons]).toEqual([121, []]);
});

test('a damaged snapshot is named, and the one before is used', async () => {
  await using archived = await Archived.start();
  commitMany(archived, 0, 300);
  await archived.archive({ snapshot: true });
  commitMany(archived, 300, 300);
  await archived.archive({ snapshot: true });
  const [, newest] = await archived.snapshots();
  const key = await archived.damage(newest!, -1);
  await using replica = await archived.open();
  expect(items(replica)).toBe(600);
  expect(archived.logs).toContain(`${key} in ${archived.fixture.url} is damaged`);
  expect(archived.logs).toMatch(/taken from file/);
  expect(archived.replicator.leases).toBe(0);
});

test('with nothing usable in the store the replicator gives the file', async () => {
  await using archived = await Archived.start();
  const lsn = commitMany(archived, 0, 10);
  await using empty = await archived.open('empty.db');
  await empty.waitFor(lsn);
  expect(archived.logs).toMatch(/there is no snapshot in/);
  await archived.archive({ snapshot: true });
  for (const snapshot of await archived.snapshots())
    rmSync(archived.fixture.path(blobKey('lists', snapshot.chunkList.hash)));
  await using damaged = await archived.open('damaged.db');
  expect(items(damaged)).toBe(10);
  expect(archived.logs).toMatch(/lists\/.* is missing/);
  rmSync(join(archived.fixture.directory.path, 'store'), { recursive: true });
  await using gone = await archived.open('gone.db');
  expect(items(gone)).toBe(10);
  expect(archived.logs).toMatch(/cannot be read: ENOENT/);
});

test.each([
  ['ENOSPC', 'DISK_FULL', 'no space is left for the snapshot'],
  ['EMFILE', 'PROTOCOL', 'the snapshot cannot be written: it failed'],
])(
  'a file from the store that cannot be synced (%s) ends nobody: it comes in another way',
  async (code, said, says) => {
    await using archived = await Archived.start();
    const lsn = commitMany(archived, 0, 10);
    await archived.archive({ snapshot: true });
    const link = new HttpLink({ url: archived.replicator.url });
    const logged: unknown[] = [];
    const positions: Lsn[] = [];
    const ignore = (): void => undefined;
    // On this thread, where its files can be made to fail.
    const keeper = new ReplicaKeeper({
      file: join(archived.fixture.directory.path, 'app.db'),
      link,
      store: await StoreSource.open({ url: archived.fixture.url }, link, ignore),
      id: 'app',
      name: 'app',
      localScript: null,
      events: keeperEvents({
        onFile: ({ position }) => positions.push(position),
        onLog: (_level, message, facts) => logged.push({ message, code: facts.code }),
      }),
    });
    const handle = await open(import.meta.filename);
    await handle.close();
    const failing = vi
      .spyOn(Object.getPrototypeOf(handle) as FileHandle, 'sync')
      .mockRejectedValueOnce(Object.assign(new Error('it failed'), { code }));
    const stop = new AbortController();
    const running = keeper.run(stop.signal);
    try {
      await Promise.race([running, waitUntil('the file', () => positions.length > 0)]);
      expect(positions).toEqual([lsn]);
      expect(logged).toContainEqual({ message: says, code: said });
    } finally {
      failing.mockRestore();
      stop.abort();
      await running.catch(ignore);
    }
  },
);

test('a file from the store that cannot be made is said, and waits for somebody', async () => {
  await using archived = await Archived.start();
  commitMany(archived, 0, 10);
  await archived.archive({ snapshot: true });
  mkdirSync(join(archived.fixture.directory.path, 'app.db.store-download'));
  await expect(archived.open()).rejects.toMatchObject({
    code: 'FILE_UNUSABLE',
    message: expect.stringContaining('the snapshot cannot be written: EISDIR'),
  });
});

test('a damaged segment is named, and the file stays before it until there is a way round', async () => {
  await using archived = await Archived.start();
  commitMany(archived, 0, 10);
  await archived.archive({ snapshot: true });
  commitMany(archived, 10, 10);
  await archived.archive();
  commitMany(archived, 20, 10);
  await archived.archive();
  commitMany(archived, 30, 10);
  await archived.archive();
  const segment = (await archived.fixture.read()).segments.at(-2)!;
  const key = blobKey('segments', segment.parts[0]!.hash);
  const whole = readFileSync(archived.fixture.path(key));
  writeFileSync(archived.fixture.path(key), whole.subarray(9));
  await archived.replicator.server.close();
  await using replica = await archived.open();
  expect(items(replica)).toBe(20);
  expect(archived.logs).toContain(key);
  await waitUntil('the reason', () => replica.status().reasons.join().includes(key));
  commitMany(archived, 40, 10);
  await archived.archive({ snapshot: true });
  // A new file, beside readers that keep the old one.
  const old = replica.db;
  await waitUntil('the way round', () => replica.db !== old && items(replica) === 50);
  expect(old.prepare('select count(*) from items').pluck().get()).toBe(20);
});

test('a store whose history is over does not keep a replica from the replicator', async () => {
  await using archived = await Archived.start();
  commitMany(archived, 0, 10);
  await archived.archive({ snapshot: true });
  await archived.replicator.newEpoch('e2');
  const lsn = archived.replicator.commit(insertItem(1));
  await using replica = await archived.open();
  await replica.waitFor(lsn);
  expect([replica.epoch, items(replica)]).toEqual(['e2', 1]);
});

test('a store that has not heard of the present history does not bring the one before back', async () => {
  await using archived = await Archived.start();
  commitMany(archived, 0, 20);
  await archived.archive({ snapshot: true });
  await archived.replicator.newEpoch('e2');
  const lsn = commitMany(archived, 100, 30);
  await using replica = await archived.open();
  await replica.waitFor(lsn);
  const { db } = replica;
  await archived.replicator.server.close();
  await waitUntil('the reason', () =>
    replica.status().reasons.join().includes('is of epoch e1, the file of epoch e2'),
  );
  // As soon as it has, it is followed.
  await archived.fixture.manifest.update((manifest) => ({
    ...manifest,
    archived: { ...manifest.archived!, epoch: 'e2', position: lsn },
    snapshots: [...manifest.snapshots, { ...manifest.snapshots[0]!, epoch: 'e2', position: lsn }],
  }));
  await waitUntil('following the store', () => replica.state === 'following-store');
  expect([replica.epoch, items(replica), replica.db]).toEqual(['e2', 30, db]);
});

test('with its replicator away a file of a history that is over is made anew from the store', async () => {
  await using archived = await Archived.start();
  commitMany(archived, 0, 20);
  await archived.archive({ snapshot: true });
  {
    await using replica = await archived.open();
    expect(items(replica)).toBe(20);
  }
  await archived.replicator.server.close();
  const made = join(archived.fixture.directory.path, 'e2.db');
  makeSnapshot(made, 'e2', START);
  await archived.fixture.snapshots.take({ file: made, epoch: 'e2', position: START });
  await archived.fixture.segments({ epoch: 'e2' }).seal(headAt(START));
  await using replica = await archived.open();
  await waitUntil('the new history', () => replica.epoch === 'e2');
  expect(items(replica)).toBe(0);
});

test('a replica that fell out of the log starts again from the store, with what its old file has', async () => {
  await using archived = await Archived.start();
  commitMany(archived, 0, 500);
  await archived.archive({ snapshot: true });
  const file = join(archived.fixture.directory.path, 'app.db');
  {
    await using replica = await archived.open();
    expect(items(replica)).toBe(500);
  }
  commitMany(archived, 500, 20);
  await archived.archive({ snapshot: true });
  await archived.replicator.log.prune({ maxAgeMs: -1, maxBytes: 0, keepFrom: 0xffffffffn });
  const reader = new Database(file, { readonly: true });
  await using replica = await archived.open();
  await waitUntil('the new file', () => items(replica) === 520);
  const taken = /taken from file\S+ (\{.*\})/g;
  const [, again] = [...archived.logs.matchAll(taken)].map((match) => JSON.parse(match[1]!));
  expect(again.reusedBytes).toBeGreaterThan(again.downloadedBytes);
  expect(reader.prepare('select count(*) from items').pluck().get()).toBe(500);
  reader.close();
  expect(existsSync(file)).toBe(true);
});

test('a store of another database is refused, and the file stays', async () => {
  await using archived = await Archived.start();
  commitMany(archived, 0, 10);
  await archived.archive({ snapshot: true });
  {
    await using replica = await archived.open();
    expect(items(replica)).toBe(10);
  }
  await archived.fixture.manifest.update((manifest) => ({
    ...manifest,
    source: { systemIdentifier: '1', database: 'other' },
    archived: { ...manifest.archived!, epoch: 'other' },
    snapshots: manifest.snapshots.map((snapshot) => ({ ...snapshot, epoch: 'other' })),
  }));
  await archived.replicator.server.close();
  await expect(archived.open()).rejects.toThrow(/made from another database/);
  using reader = openReader({ file: join(archived.fixture.directory.path, 'app.db') });
  expect(reader.db.prepare('select count(*) from items').pluck().get()).toBe(10);
});
