import { execFileSync } from 'node:child_process';
import {
  copyFileSync,
  existsSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { join } from 'node:path';
import { MessageChannel } from 'node:worker_threads';
import Database from 'better-sqlite3';
import { expect, test } from 'vitest';
import { servePort } from '../../src/fanout/port-sink.ts';
import { silentLog } from '../../src/log.ts';
import { formatLsn } from '../../src/lsn.ts';
import { formatChecksum } from '../../src/replica/page-checksum.ts';
import { type DownloadProgress, openReplica, type Replica } from '../../src/replica/replica.ts';
import { checksumOf } from '../../src/snapshot/file-checksum.ts';
import {
  batch,
  insertItem,
  makeSnapshot,
  partBatch,
  START,
  TestReplicator,
  temporaryDirectory,
} from '../fanout/test-replicator.ts';
import { waitUntil } from '../helpers/wait-until.ts';

const count = (replica: Replica): number =>
  replica.db.prepare('SELECT count(*) FROM items').pluck().get() as number;

test('a new replica starts from the snapshot, catches up and follows live', async () => {
  using dir = temporaryDirectory();
  await using replicator = await TestReplicator.start({ dir: dir.path });
  for (let id = 1; id <= 100; id++) replicator.commit(insertItem(id));
  await using replica = await openReplica({
    file: join(dir.path, 'app.db'),
    replicator: replicator.url,
    name: 'app 1',
  });
  expect(count(replica)).toBe(100);
  const commits: unknown[] = [];
  replica.on('commit', (commit) => commits.push(commit));
  const lsn = replicator.commit(insertItem(101));
  await replica.waitFor(lsn, { timeoutMs: 5000 });
  expect(count(replica)).toBe(101);
  expect(commits).toEqual([{ position: lsn, tables: ['items'], transactions: 1 }]);
  await waitUntil('live', () => replica.state === 'live');
  expect(replica.status()).toMatchObject({
    state: 'live',
    isHealthy: true,
    reasons: [],
    epoch: 'e1',
    bootstraps: 0,
  });
  expect(replica.lag).toMatchObject({ connected: true, bytes: 0 });
  await waitUntil('the report', () => replicator.publisher.followers()[0]?.position === formatLsn(lsn));
  expect(replicator.publisher.followers()).toMatchObject([{ name: 'app 1', state: 'live', lagBytes: 0 }]);
  expect(readdirSync(dir.path).filter((name) => name.includes('download'))).toEqual([]);
});

test('a quiet database is measured, too: by what its clock showed when it said that there is no more', async () => {
  using dir = temporaryDirectory();
  await using replicator = await TestReplicator.start({
    dir: dir.path,
    publisher: { reportIntervalMs: 50 },
  });
  await using replica = await openReplica({ file: join(dir.path, 'app.db'), replicator: replicator.url });
  await waitUntil('live', () => replica.state === 'live');
  expect(replica.lag.p99Ms).toBeNull();
  replicator.publisher.heard(0, BigInt(Date.now() - 200) * 1000n);
  await waitUntil('its lag', () => replica.lag.p99Ms !== null);
  expect(replica.lag.p50Ms).toBeGreaterThan(190);
  expect(replica.lag.p50Ms).toBeLessThan(2000);
  await waitUntil('the report', () => replicator.publisher.followers()[0]?.lagMs.p99 != null);
});

test('tells of the first download before it is open', async () => {
  using dir = temporaryDirectory();
  await using replicator = await TestReplicator.start({ dir: dir.path });
  const heard: DownloadProgress[] = [];
  const opening = openReplica({
    file: join(dir.path, 'app.db'),
    replicator: replicator.url,
    onProgress: (progress) => heard.push(progress),
  });
  await using _replica = await opening;
  const { totalBytes } = heard[0]!;
  expect(totalBytes).toBeGreaterThan(0);
  expect(heard.at(-1)).toEqual({ bytes: totalBytes, totalBytes });
});

test('the database that is handed out cannot be written', async () => {
  using dir = temporaryDirectory();
  await using replicator = await TestReplicator.start({ dir: dir.path });
  await using replica = await openReplica({ file: join(dir.path, 'app.db'), replicator: replicator.url });
  expect(() => replica.db.exec("INSERT INTO items VALUES (1, 'mine')")).toThrow(/readonly/);
});

test('goes on after its replicator was killed and restarted, and after a restart of its own', async () => {
  using dir = temporaryDirectory();
  const file = join(dir.path, 'app.db');
  let replicator = await TestReplicator.start({ dir: dir.path });
  const { port } = replicator.server.address;
  {
    await using replica = await openReplica({ file, replicator: replicator.url });
    await replica.waitFor(replicator.commit(insertItem(1)));
    replicator.publish(partBatch(replicator.log.position, [insertItem(1000)]));
    await replicator[Symbol.asyncDispose]();
    await waitUntil('disconnected', () => replica.state === 'disconnected');
    expect(replica.status().reasons[0]).toMatch(/replicator/);
    expect(count(replica)).toBe(1);
    replicator = await TestReplicator.restart({ dir: dir.path, port });
    await replica.waitFor(replicator.commit(insertItem(2)));
    expect(count(replica)).toBe(2);
  }
  const lsn = replicator.commit(insertItem(3));
  await using replica = await openReplica({ file, replicator: replicator.url });
  await replica.waitFor(lsn);
  expect(count(replica)).toBe(3);
  expect(replica.status().bootstraps).toBe(0);
  await replicator[Symbol.asyncDispose]();
});

test('an existing file is served at once when nobody else is there', async () => {
  using dir = temporaryDirectory();
  const file = join(dir.path, 'app.db');
  makeSnapshot(file, 'e1', START);
  await using replica = await openReplica({ file, replicator: 'http://127.0.0.1:9' });
  expect(count(replica)).toBe(0);
  expect(replica.position).toBe(START);
  expect(replica.lag.connected).toBe(false);
  await expect(replica.waitFor(START + 1n, { timeoutMs: 10 })).rejects.toMatchObject({
    code: 'WAIT_TIMEOUT',
    exitCode: 3,
  });
  await replica.waitFor(START);
});

test('a new epoch brings a new file, while those who read the old one go on', async () => {
  using dir = temporaryDirectory();
  await using replicator = await TestReplicator.start({ dir: dir.path });
  await using replica = await openReplica({ file: join(dir.path, 'app.db'), replicator: replicator.url });
  await replica.waitFor(replicator.commit(insertItem(1)));
  using reader = new Handle(new Database(join(dir.path, 'app.db'), { readonly: true }));
  const oldDb = replica.db;
  await replicator.newEpoch('e2');
  const lsn = replicator.commit(insertItem(5), insertItem(6));
  await waitUntil('the new file', () => replica.epoch === 'e2');
  await replica.waitFor(lsn);
  expect(count(replica)).toBe(2);
  expect(replica.db).not.toBe(oldDb);
  expect(oldDb.prepare('SELECT count(*) FROM items').pluck().get()).toBe(1);
  expect(reader.db.prepare('SELECT count(*) FROM items').pluck().get()).toBe(1);
  expect(replica.status().bootstraps).toBe(1);
  expect(new Handle(new Database(join(dir.path, 'app.db'), { readonly: true })).count()).toBe(2);
});

test('a file that somebody moves, removes or replaces is told of; who has it open reads on', async () => {
  using dir = temporaryDirectory();
  const file = join(dir.path, 'app.db');
  await using replicator = await TestReplicator.start({ dir: dir.path });
  await using replica = await openReplica({ file, replicator: replicator.url });
  const expectTold = (reason: string): void =>
    expect(replica.status()).toMatchObject({
      isHealthy: false,
      reasons: [expect.stringContaining(`app.db ${reason}`)],
    });
  // Nothing was read so far.
  renameSync(file, `${file}.moved`);
  expectTold('was moved or removed');
  await replica.waitFor(replicator.commit(insertItem(1)));
  expect(count(replica)).toBe(1);
  symlinkSync(`${file}.moved`, file);
  expectTold('was replaced');
  rmSync(file);
  copyFileSync(`${file}.moved`, file);
  expectTold('was replaced');
  renameSync(`${file}.moved`, file);
  expect(replica.status()).toMatchObject({ isHealthy: true, reasons: [] });
  await replicator.newEpoch('e2');
  await waitUntil('the new file', () => replica.epoch === 'e2');
  await waitUntil('live', () => replica.state === 'live');
  expect(replica.status()).toMatchObject({ isHealthy: true, reasons: [] });
  rmSync(file);
  expectTold('was moved or removed');
  expect(count(replica)).toBe(0);
});

test('one that fell out of the log starts from the snapshot again', async () => {
  using dir = temporaryDirectory();
  const file = join(dir.path, 'app.db');
  await using replicator = await TestReplicator.start({ dir: dir.path });
  makeSnapshot(file, 'e1', START - 8n);
  const lsn = replicator.commit(insertItem(1));
  await using replica = await openReplica({ file, replicator: replicator.url });
  await replica.waitFor(lsn);
  expect(count(replica)).toBe(1);
  expect(replica.status().bootstraps).toBe(1);
});

test('a new file is not put in place before it is as new as the old one', async () => {
  using dir = temporaryDirectory();
  await using replicator = await TestReplicator.start({ dir: dir.path });
  await using replica = await openReplica({ file: join(dir.path, 'app.db'), replicator: replicator.url });
  let lsn = START;
  for (let id = 1; id <= 20; id++) lsn = replicator.commit(insertItem(id));
  await replica.waitFor(lsn);
  const seen: bigint[] = [];
  replica.on('file', ({ position }) => seen.push(position));
  // A row that the file does not have: it has diverged.
  const bad = replicator.log.position + 0x100n;
  replicator.publish(batch(bad, [{ delete: 500, key: [999, null] }]));
  await waitUntil('an attempt', () => replica.state === 'bootstrapping' || seen.length > 0);
  expect(replica.position).toBeGreaterThanOrEqual(lsn);
  for (const position of seen) expect(position).toBeGreaterThanOrEqual(lsn);
});

test('a wrong token, a file that is not ours, one of another database, one that is kept already: refused', async () => {
  using dir = temporaryDirectory();
  const file = join(dir.path, 'app.db');
  await using replicator = await TestReplicator.start({ dir: dir.path, token: 'right-token' });
  const open = (path: string) =>
    openReplica({ file: path, replicator: replicator.url, token: 'right-token' });
  const text = join(dir.path, 'notes.txt');
  writeFileSync(text, 'not a database at all');
  await expect(open(text)).rejects.toMatchObject({ code: 'FILE_UNUSABLE' });
  const foreign = join(dir.path, 'foreign.db');
  makeSnapshot(foreign, 'other', START, 'another_shop');
  await expect(open(foreign)).rejects.toMatchObject({
    code: 'FILE_UNUSABLE',
    message: expect.stringContaining('another_shop'),
  });
  using unchanged = new Handle(new Database(foreign, { readonly: true }));
  expect(unchanged.db.prepare('SELECT epoch FROM _rivulet_position').pluck().get()).toBe('other');
  await using _replica = await open(file);
  await expect(open(file)).rejects.toMatchObject({ code: 'FILE_LOCKED' });
  const link = join(dir.path, 'link.db');
  symlinkSync(file, link);
  await expect(open(link)).rejects.toMatchObject({
    code: 'FILE_UNUSABLE',
    hint: expect.stringContaining(file),
  });
  await expect(open(join(dir.path, 'missing', 'app.db'))).rejects.toMatchObject({ code: 'FILE_UNUSABLE' });
  await expect(openReplica({ file, replicator: 'nonsense' })).rejects.toMatchObject({ code: 'CONFIG' });
});

test('opening can be given up', async () => {
  using dir = temporaryDirectory();
  const stop = new AbortController();
  const opening = openReplica({
    file: join(dir.path, 'app.db'),
    replicator: 'http://127.0.0.1:9',
    signal: stop.signal,
  });
  setTimeout(() => stop.abort(), 100);
  await expect(opening).rejects.toThrow(/abort/i);
});

test('close is final, wakes who waits, and may be called twice', async () => {
  using dir = temporaryDirectory();
  await using replicator = await TestReplicator.start({ dir: dir.path });
  const replica = await openReplica({ file: join(dir.path, 'app.db'), replicator: replicator.url });
  const waiting = replica.waitFor(START + 100n);
  const closed = expect(waiting).rejects.toMatchObject({ code: 'CLOSED' });
  await Promise.all([replica.close(), replica.close()]);
  await closed;
  expect(() => replica.db).toThrow(expect.objectContaining({ code: 'CLOSED' }));
  // What is reached already cannot be read any more either.
  for (const target of [START, { epoch: 'e1', lsn: START }, null])
    await expect(replica.waitFor(target)).rejects.toMatchObject({ code: 'CLOSED' });
  await expect(replica.waitUntilFresh(1e9)).rejects.toMatchObject({ code: 'CLOSED' });
  // Everything is in the file itself; who may only read needs the other two all the same.
  expect(statSync(`${replica.file}-wal`).size).toBe(0);
  // Nobody keeps the file any more.
  await using again = await openReplica({ file: replica.file, replicator: replicator.url });
  expect(again.position).toBe(START);
});

test('a signal ends a wait', async () => {
  using dir = temporaryDirectory();
  await using replicator = await TestReplicator.start({ dir: dir.path });
  await using replica = await openReplica({ file: join(dir.path, 'app.db'), replicator: replicator.url });
  const stop = new AbortController();
  const waiting = replica.waitFor(START + 100n, { signal: stop.signal });
  stop.abort(new Error('enough'));
  await expect(waiting).rejects.toThrow('enough');
});

test('on an idle database a wait asks the server at once', async () => {
  using dir = temporaryDirectory();
  await using replicator = await TestReplicator.start({ dir: dir.path });
  await using replica = await openReplica({ file: join(dir.path, 'app.db'), replicator: replicator.url });
  replicator.onHasten = () => replicator.advance(START + 64n);
  await replica.waitFor(START + 50n, { timeoutMs: 2000 });
  expect(replica.position).toBe(START + 64n);
});

test('a connection that is cut at any time loses and repeats nothing', async () => {
  using dir = temporaryDirectory();
  await using replicator = await TestReplicator.start({ dir: dir.path });
  await using proxy = await CuttingProxy.start(replicator.server.address.port);
  await using replica = await openReplica({ file: join(dir.path, 'app.db'), replicator: proxy.url });
  let lsn = START;
  for (let id = 1; id <= 400; id++) {
    lsn = replicator.commit(insertItem(id, 'x'.repeat(2000)));
    if (id % 40 === 0) proxy.cut();
    if (id % 5 === 0) await new Promise((resolve) => setImmediate(resolve));
  }
  await replica.waitFor(lsn, { timeoutMs: 15_000 });
  expect(count(replica)).toBe(400);
  expect(replica.status().bootstraps).toBe(0);
});

test('a download that is cut goes on where it was', async () => {
  using dir = temporaryDirectory();
  await using replicator = await TestReplicator.start({ dir: dir.path });
  {
    using large = new Handle(new Database(replicator.snapshotPath));
    large.db.exec(`INSERT INTO items WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000)
      SELECT i, hex(randomblob(2000)) FROM n`);
  }
  await using proxy = await CuttingProxy.start(replicator.server.address.port, {
    cutAfterBytes: 3_000_000,
    cuts: 3,
  });
  await using replica = await openReplica({ file: join(dir.path, 'app.db'), replicator: proxy.url });
  expect(count(replica)).toBe(3000);
  expect(proxy.cutsMade).toBe(3);
  // Three times three million bytes of twelve, and the rest: nothing came twice but what was on its way.
  expect(proxy.bytes).toBeLessThan(18_000_000);
});

test('a snapshot whose bytes changed on the way, or on the disk, is never put in place', async () => {
  using dir = temporaryDirectory();
  await using replicator = await TestReplicator.start({ dir: dir.path });
  const bytes = readFileSync(replicator.snapshotPath);
  const damaged = Buffer.from(bytes);
  damaged[damaged.indexOf('CREATE TABLE') + 3]! ^= 1;
  replicator.snapshotChecksum = formatChecksum(checksumOf(replicator.snapshotPath));
  writeFileSync(replicator.snapshotPath, damaged);
  const file = join(dir.path, 'app.db');
  const opening = openReplica({ file, replicator: replicator.url });
  // The replicator is told of it with the next request, and may look at its file.
  await waitUntil('the complaint', () => replicator.rechecks > 0);
  expect(existsSync(file)).toBe(false);
  writeFileSync(replicator.snapshotPath, bytes);
  await using replica = await opening;
  await replica.waitFor(replicator.commit(insertItem(1)));
  expect(count(replica)).toBe(1);
});

test('follows a replicator in the same process over a port', async () => {
  using dir = temporaryDirectory();
  await using replicator = await TestReplicator.start({ dir: dir.path });
  const file = join(dir.path, 'app.db');
  makeSnapshot(file, 'e1', START);
  const { port1, port2 } = new MessageChannel();
  servePort(port1, {
    publisher: replicator.publisher,
    log: silentLog(),
    hasten: () => replicator.advance(replicator.log.position + 8n),
    startOver: () => undefined,
  });
  let lsn = START;
  for (let id = 1; id <= 300; id++) lsn = replicator.commit(insertItem(id, 'x'.repeat(50_000)));
  await using replica = await openReplica({ file, replicator: port2 });
  await replica.waitFor(lsn);
  expect(count(replica)).toBe(300);
  await replica.waitFor(replicator.commit(insertItem(301)));
  await replica.waitFor(replicator.log.position + 1n, { timeoutMs: 2000 });
  expect(count(replica)).toBe(301);
});

test('a full disk stops it, loudly, and it goes on when there is space', async (context) => {
  using dir = temporaryDirectory();
  using small = temporaryDirectory();
  try {
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=3m', 'tmpfs', small.path], { stdio: 'ignore' });
  } catch {
    return context.skip('mounting a tmpfs needs root');
  }
  try {
    await using replicator = await TestReplicator.start({ dir: dir.path });
    await using replica = await openReplica({ file: join(small.path, 'app.db'), replicator: replicator.url });
    const filler = join(small.path, 'filler');
    writeFileSync(filler, Buffer.alloc(2_500_000));
    let lsn = START;
    for (let id = 1; id <= 12; id++) lsn = replicator.commit(insertItem(id, 'x'.repeat(80_000)));
    await waitUntil(
      'the complaint',
      () => replica.status().reasons.some((reason) => reason.includes('space')),
      { timeoutMs: 5000 },
    );
    rmSync(filler);
    await replica.waitFor(lsn, { timeoutMs: 15_000 });
    expect(count(replica)).toBe(12);
    expect(replica.status().bootstraps).toBe(0);
  } finally {
    execFileSync('umount', ['-l', small.path]);
  }
});

/** A database that is closed with its block. */
class Handle implements Disposable {
  readonly db: Database.Database;

  constructor(db: Database.Database) {
    this.db = db;
  }

  count(): number {
    try {
      return this.db.prepare('SELECT count(*) FROM items').pluck().get() as number;
    } finally {
      this.db.close();
    }
  }

  [Symbol.dispose](): void {
    this.db.close();
  }
}

/** Passes connections on to a port, and cuts them when told to. */
class CuttingProxy implements AsyncDisposable {
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  bytes = 0;
  cutsMade = 0;

  static async start(
    port: number,
    { cutAfterBytes = Number.POSITIVE_INFINITY, cuts = 0 } = {},
  ): Promise<CuttingProxy> {
    const proxy = new CuttingProxy(port, cutAfterBytes, cuts);
    await new Promise<void>((resolve) => proxy.#server.listen(0, '127.0.0.1', resolve));
    return proxy;
  }

  private constructor(port: number, cutAfterBytes: number, cuts: number) {
    this.#server = createServer((inside) => {
      const outside = connect(port, '127.0.0.1');
      let bytes = 0;
      outside.on('data', (chunk) => {
        bytes += chunk.length;
        this.bytes += chunk.length;
        if (bytes > cutAfterBytes && this.cutsMade < cuts) {
          this.cutsMade++;
          inside.destroy();
          outside.destroy();
        }
      });
      for (const socket of [inside, outside]) {
        this.#sockets.add(socket);
        socket.on('error', () => undefined);
        socket.on('close', () => {
          this.#sockets.delete(socket);
          inside.destroy();
          outside.destroy();
        });
      }
      inside.pipe(outside);
      outside.pipe(inside);
    });
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#server.address() as { port: number }).port}`;
  }

  cut(): void {
    for (const socket of this.#sockets) socket.destroy();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.cut();
    await new Promise((resolve) => this.#server.close(resolve));
  }
}
