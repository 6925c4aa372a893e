import { once } from 'node:events';
import { connect, type Socket } from 'node:net';
import { expect, test } from 'vitest';
import { FRAME, FrameSplitter } from '../../src/change/frame.ts';
import { formatLsn, type Lsn } from '../../src/lsn.ts';
import { waitUntil } from '../helpers/wait-until.ts';
import { insertItem, START, TestReplicator, temporaryDirectory } from './test-replicator.ts';

/** Reads a stream from a bare socket, when it is told to. */
class RawFollower implements Disposable {
  readonly socket: Socket;
  readonly transactions: Lsn[] = [];
  readonly #splitter = new FrameSplitter();
  #head: Buffer | null = Buffer.alloc(0);

  constructor(port: number, id: string) {
    this.socket = connect(port, '127.0.0.1');
    this.socket.on('error', () => undefined);
    this.socket.on('data', (chunk) => this.#take(chunk));
    this.socket.write(
      `GET /v1/stream?epoch=e1&lsn=${formatLsn(START)}&follower=${id} HTTP/1.1\r\nhost: localhost\r\n\r\n`,
    );
  }

  #take(chunk: Buffer): void {
    if (this.#head !== null) {
      this.#head = Buffer.concat([this.#head, chunk]);
      const end = this.#head.indexOf('\r\n\r\n');
      if (end < 0) return;
      chunk = this.#head.subarray(end + 4);
      this.#head = null;
      if (chunk.length === 0) return;
    }
    const frames = this.#splitter.push(chunk);
    if (frames === null) return;
    for (let at = 0; at < frames.length; at += frames.readUInt32LE(at)) {
      if (frames[at + 4] === FRAME.transaction) this.transactions.push(frames.readBigUInt64LE(at + 16));
    }
  }

  [Symbol.dispose](): void {
    this.socket.destroy();
  }
}

test('a socket that is not read costs the others nothing, and gets everything once it is read again', async () => {
  using dir = temporaryDirectory();
  await using replicator = await TestReplicator.start({
    dir: dir.path,
    publisher: { bufferLimitBytes: 1024 * 1024 },
  });
  const { port } = replicator.server.address;
  using fast = new RawFollower(port, 'fast');
  using slow = new RawFollower(port, 'slow');
  const stateOf = (id: string): string | undefined =>
    replicator.publisher.followers().find((follower) => follower.id === id)?.state;
  await waitUntil('both live', () => stateOf('fast') === 'live' && stateOf('slow') === 'live');
  slow.socket.pause();
  const sent: Lsn[] = [];
  const label = 'x'.repeat(100_000);
  // More than the system's own socket buffers take.
  for (let id = 1; id <= 300; id++) {
    sent.push(replicator.commit(insertItem(id, label)));
    if (id % 10 === 0) await waitUntil('the fast one', () => fast.transactions.length === id);
  }
  expect(stateOf('slow')).toBe('catching-up');
  expect(stateOf('fast')).toBe('live');
  slow.socket.resume();
  await waitUntil('the slow one', () => slow.transactions.length === sent.length);
  expect(slow.transactions).toEqual(sent);
  await waitUntil('live again', () => stateOf('slow') === 'live');
  sent.push(replicator.commit(insertItem(301)));
  await waitUntil('the last one', () => slow.transactions.length === sent.length);
});

test('a follower that vanishes is forgotten at once', async () => {
  using dir = temporaryDirectory();
  await using replicator = await TestReplicator.start({ dir: dir.path });
  using follower = new RawFollower(replicator.server.address.port, 'f');
  await waitUntil('connected', () => replicator.publisher.size === 1);
  follower.socket.destroy();
  await waitUntil('gone', () => replicator.publisher.size === 0);
});

test('a replicator that closes says so before it hangs up', async () => {
  using dir = temporaryDirectory();
  await using replicator = await TestReplicator.start({ dir: dir.path });
  using follower = new RawFollower(replicator.server.address.port, 'f');
  await waitUntil('connected', () => replicator.publisher.size === 1);
  let bytes = '';
  follower.socket.on('data', (chunk: Buffer) => {
    bytes += chunk.toString('latin1');
  });
  const ended = once(follower.socket, 'close');
  await replicator.publisher.close();
  await ended;
  expect(bytes).toContain('"code":"CLOSED"');
});
