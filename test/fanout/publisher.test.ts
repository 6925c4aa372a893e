import { afterEach, beforeEach, expect, test } from 'vitest';
import { FRAME, FrameSplitter, type Hello } from '../../src/change/frame.ts';
import type { SqliteChangeLog } from '../../src/changelog/sqlite-change-log.ts';
import type { FollowerSink } from '../../src/fanout/follower-sink.ts';
import { Publisher, type PublisherOptions } from '../../src/fanout/publisher.ts';
import { silentLog } from '../../src/log.ts';
import { formatLsn, type Lsn } from '../../src/lsn.ts';
import { waitUntil } from '../helpers/wait-until.ts';
import {
  abortBatch,
  batch,
  insertItem,
  newChangeLog,
  partBatch,
  START,
  temporaryDirectory,
} from './test-replicator.ts';

/** A follower that reads as it is told to. */
class FakeSink implements FollowerSink {
  readonly chunks: Buffer[] = [];
  bufferedBytes = 0;
  onDrain = (): void => undefined;
  onGone = (): void => undefined;
  isReading = true;
  ended: 'end' | 'destroy' | null = null;
  readonly highWaterBytes = 16 * 1024;

  write(bytes: Buffer): boolean {
    this.chunks.push(bytes);
    if (!this.isReading) this.bufferedBytes += bytes.length;
    return this.bufferedBytes < this.highWaterBytes;
  }

  /** Reads everything that waits, and goes on reading. */
  read(): void {
    this.isReading = true;
    this.bufferedBytes = 0;
    this.onDrain();
  }

  end(): void {
    this.ended = 'end';
  }

  destroy(): void {
    this.ended = 'destroy';
  }

  get frames(): Buffer[] {
    const whole = new FrameSplitter().push(Buffer.concat(this.chunks)) ?? Buffer.alloc(0);
    const frames: Buffer[] = [];
    for (let at = 0; at < whole.length; at += whole.readUInt32LE(at))
      frames.push(whole.subarray(at, at + whole.readUInt32LE(at)));
    return frames;
  }

  ofType(type: number): Buffer[] {
    return this.frames.filter((frame) => frame[4] === type);
  }

  get transactions(): Lsn[] {
    return this.ofType(FRAME.transaction).map((frame) => frame.readBigUInt64LE(16));
  }

  get positions(): Lsn[] {
    return this.ofType(FRAME.position).map((frame) => frame.readBigUInt64LE(8));
  }

  get endCode(): string | null {
    const [frame] = this.ofType(FRAME.end);
    return frame === undefined ? null : (JSON.parse(frame.subarray(8).toString()) as { code: string }).code;
  }
}

let dir: ReturnType<typeof temporaryDirectory>;
let log: SqliteChangeLog;
let publisher: Publisher;
let next: number;

const at = (index: number): Lsn => START + BigInt(index) * 0x100n;
const range = (from: number, to: number): Lsn[] =>
  Array.from({ length: to - from + 1 }, (_, index) => at(from + index));

function start(options: Partial<PublisherOptions> = {}): void {
  publisher = new Publisher({ log: silentLog(), ...options });
  publisher.attach(log);
  publisher.open();
}

beforeEach(() => {
  dir = temporaryDirectory();
  log = newChangeLog(dir.path);
  next = 1;
});

afterEach(async () => {
  await publisher.close();
  await log.close();
  dir[Symbol.dispose]();
});

function commit(count = 1, bytes = 10): void {
  for (let index = 0; index < count; index++, next++) {
    const one = batch(at(next), [insertItem(next, 'x'.repeat(bytes))]);
    log.append(one);
    publisher.publish(one);
  }
}

function follow(position: Lsn = START, id = 'f1'): FakeSink {
  const sink = new FakeSink();
  publisher.follow({ id, name: `name of ${id}`, epoch: 'e1', position }, sink);
  return sink;
}

/** Each write costs some time, as on a socket. */
function slowDown(sink: FakeSink): void {
  const write = sink.write.bind(sink);
  sink.write = (bytes) => {
    const end = performance.now() + 0.05;
    while (performance.now() < end);
    return write(bytes);
  };
}

const stateOf = (id: string): string | undefined =>
  publisher.followers().find((follower) => follower.id === id)?.state;

test('a stream begins with hello, then a position, and then every batch at once, the same bytes for all', () => {
  start();
  const [one, two] = [follow(START, 'f1'), follow(START, 'f2')];
  expect(JSON.parse(one.frames[0]!.subarray(8).toString())).toEqual({
    version: 1,
    epoch: 'e1',
    position: formatLsn(START),
    reportIntervalMs: 2000,
    silenceLimitMs: 5000,
  } satisfies Hello);
  expect(one.positions).toEqual([START]);
  commit();
  expect(one.transactions).toEqual([at(1)]);
  // Not equal bytes: the very same.
  expect(one.chunks.at(-1)).toBe(two.chunks.at(-1));
});

test('one that comes late catches up from the log and goes live without gap or repetition', async () => {
  start();
  commit(50, 20_000);
  const sink = follow(at(10));
  // While it reads the log, more is published.
  commit(5);
  await waitUntil('live', () => stateOf('f1') === 'live');
  commit(5);
  expect(sink.transactions).toEqual(range(11, 60));
});

test('one that stops reading is cut to catch-up, delays nobody, and misses nothing', async () => {
  start({ bufferLimitBytes: 64 * 1024 });
  const [fast, slow] = [follow(START, 'fast'), follow(START, 'slow')];
  slow.isReading = false;
  commit(600, 5000);
  await waitUntil('the fast one', () => fast.transactions.length === 600);
  expect(fast.transactions).toEqual(range(1, 600));
  expect(stateOf('slow')).toBe('catching-up');
  // The limit and one round, at most.
  expect(slow.bufferedBytes).toBeLessThan(1200 * 1024);
  slow.read();
  await waitUntil('live', () => stateOf('slow') === 'live');
  commit();
  await waitUntil('the last one', () => slow.transactions.length === 601);
  expect(slow.transactions).toEqual(range(1, 601));
  expect(slow.positions.at(-1)).toBe(at(600));
});

test('memory for many that stall is bounded', () => {
  start();
  const sinks = Array.from({ length: 200 }, (_, index) => follow(START, `f${index}`));
  for (const sink of sinks) sink.isReading = false;
  commit(200, 50_000);
  const all = sinks.reduce((sum, { bufferedBytes }) => sum + bufferedBytes, 0);
  expect(all).toBeLessThan(100 * 1024 * 1024);
});

test('with many followers rounds are gathered, and nothing is lost or repeated', async () => {
  start();
  const sinks = Array.from({ length: 50 }, (_, index) => follow(START, `f${index}`));
  for (const sink of sinks) slowDown(sink);
  commit(100);
  const late = follow(at(20), 'late');
  await waitUntil('all rounds', () => sinks.every((sink) => sink.transactions.length === 100));
  expect(sinks[0]!.chunks.length).toBeLessThan(90);
  expect(sinks[49]!.transactions).toEqual(range(1, 100));
  await waitUntil('the late one', () => late.transactions.length >= 80);
  expect(late.transactions).toEqual(range(21, 100));
});

test('a round that was gathered when the last of many followers left is not sent to who comes later', async () => {
  start();
  const sinks = Array.from({ length: 50 }, (_, index) => follow(START, `f${index}`));
  for (const sink of sinks) slowDown(sink);
  // The rounds are dear now: the last of these waits for its turn.
  commit(10);
  for (const sink of sinks) sink.onGone();
  commit();
  const late = follow(at(11), 'late');
  expect(stateOf('late')).toBe('live');
  commit(2);
  await waitUntil('the newest', () => late.transactions.includes(at(13)));
  expect(late.transactions).toEqual([at(12), at(13)]);
});

test('positions go to live followers on every advance, behind what was published', () => {
  start();
  const sink = follow();
  commit();
  // Whatever a round that is still gathered holds goes out before the position.
  log.advance(at(9));
  publisher.advance();
  expect(sink.frames.map((frame) => frame[4])).toEqual([
    FRAME.hello,
    FRAME.position,
    FRAME.transaction,
    FRAME.position,
  ]);
  expect(sink.positions).toEqual([START, at(9)]);
});

test('a live follower hears a position at every heartbeat', async () => {
  start({ heartbeatIntervalMs: 10 });
  const sink = follow();
  await waitUntil('heartbeats', () => sink.positions.length >= 3);
});

test('one that reads nothing for too long is disconnected; one that merely has nothing to read is not', async () => {
  start({ heartbeatIntervalMs: 10, stallLimitMs: 100 });
  const [stuck, quiet] = [follow(START, 'stuck'), follow(START, 'quiet')];
  stuck.isReading = false;
  await waitUntil('disconnected', () => stuck.ended === 'destroy');
  expect(quiet.ended).toBeNull();
  expect(stateOf('stuck')).toBe('gone');
  expect(publisher.size).toBe(1);
});

test('parts that are open are sent to whoever connects among them', async () => {
  start();
  commit();
  const publish = (each: ReturnType<typeof batch>): void => {
    log.append(each);
    publisher.publish(each);
  };
  publish(partBatch(at(1), [insertItem(100)]));
  const sink = follow(at(1));
  expect(sink.ofType(FRAME.part)).toHaveLength(1);
  await waitUntil('live', () => stateOf('f1') === 'live');
  publish(partBatch(at(1), [insertItem(101)]));
  publish(abortBatch(at(1)));
  expect(sink.frames.map((frame) => frame[4]).filter((type) => type !== FRAME.position)).toEqual([
    FRAME.hello,
    FRAME.part,
    FRAME.part,
    FRAME.abort,
  ]);
});

test('refuses with nothing written', () => {
  start();
  const sink = new FakeSink();
  const ask = (epoch: string, position: Lsn) => () =>
    publisher.follow({ id: 'f', name: 'f', epoch, position }, sink);
  expect(ask('e2', START)).toThrow(expect.objectContaining({ code: 'EPOCH_MISMATCH' }));
  expect(ask('e1', START - 1n)).toThrow(expect.objectContaining({ code: 'POSITION_TOO_OLD' }));
  expect(ask('e1', START + 1n)).toThrow(expect.objectContaining({ code: 'NOT_READY' }));
  publisher.detach();
  expect(ask('e1', START)).toThrow(expect.objectContaining({ code: 'NOT_READY' }));
  expect(sink.chunks).toEqual([]);
});

test('a batch pruned from under one that catches up ends its stream, which says why', async () => {
  start();
  commit(50, 100_000);
  const sink = follow();
  sink.isReading = false;
  sink.bufferedBytes = sink.highWaterBytes;
  await waitUntil('full', () => sink.transactions.length > 0 && sink.bufferedBytes > 0);
  await log.prune({ maxAgeMs: 1e9, maxBytes: 0, keepFrom: at(50) });
  sink.read();
  await waitUntil('ended', () => sink.ended !== null);
  expect(sink.endCode).toBe('POSITION_TOO_OLD');
});

test('the same follower connecting again replaces its older stream', () => {
  start();
  const older = follow();
  const newer = follow();
  expect(older.endCode).toBe('CLOSED');
  older.onGone();
  commit();
  expect(newer.transactions).toEqual([at(1)]);
  expect(publisher.size).toBe(1);
});

test('the registry knows every follower, what it reported, and those that went', () => {
  start();
  const sink = follow();
  commit(3);
  publisher.report('f1', { name: 'app 1', position: at(2), lagMs: { p50: 1, p99: 2, last: 3 } });
  expect(publisher.followers()).toMatchObject([
    {
      id: 'f1',
      name: 'app 1',
      state: 'live',
      position: formatLsn(at(2)),
      lagMs: { p50: 1, p99: 2, last: 3 },
      lagBytes: 0x100,
    },
  ]);
  sink.onGone();
  expect(stateOf('f1')).toBe('gone');
  follow(at(3));
  expect(stateOf('f1')).toBe('live');
});

test('close ends every stream, and says so', async () => {
  start();
  const sink = follow();
  await publisher.close();
  expect(sink.endCode).toBe('CLOSED');
  expect(sink.ended).toBe('end');
  expect(() => follow()).toThrow(expect.objectContaining({ code: 'CLOSED' }));
});

test('what all followers together leave unread has a limit: who reads nothing goes, who reads gets everything', async () => {
  const totalBufferBytes = 1024 * 1024;
  start({ heartbeatIntervalMs: 20, totalBufferBytes });
  commit(400, 10_000);
  const stuck = Array.from({ length: 20 }, (_, index) => {
    const sink = new FakeSink();
    sink.isReading = false;
    publisher.follow({ id: `stuck-${index}`, name: 'stuck', epoch: 'e1', position: START }, sink);
    return sink;
  });
  const reads = follow(START, 'reads');
  let most = 0;
  await waitUntil('the one that reads', () => {
    most = Math.max(most, publisher.buffers.bufferedBytes);
    return reads.transactions.length === 400;
  });
  expect(reads.transactions).toEqual(range(1, 400));
  // A chunk may have been on its way.
  expect(most).toBeLessThan(totalBufferBytes + 512 * 1024);
  expect(stuck.some(({ ended }) => ended === 'destroy')).toBe(true);
  expect(publisher.buffers).toMatchObject({ totalBufferBytes });
});

test('one that has reported, and then does not any more, is disconnected', async () => {
  start({ heartbeatIntervalMs: 10, stallLimitMs: 60, reportIntervalMs: 10 });
  const [silent, never, live] = [follow(START, 'silent'), follow(START, 'never'), follow(START, 'live')];
  publisher.report('silent', { position: START });
  await waitUntil('disconnected', () => {
    publisher.report('live', { position: START });
    return silent.ended === 'destroy';
  });
  expect([never.ended, live.ended]).toEqual([null, null]);
});

test('a word of the source with its clock goes to all at once, and others only if somebody waits', () => {
  start({ heartbeatIntervalMs: 3_600_000 });
  const sink = follow();
  const clocks = (): bigint[] => sink.ofType(FRAME.position).map((frame) => frame.readBigInt64LE(24));
  publisher.heard(5);
  expect(clocks()).toEqual([0n]);
  publisher.heard(0, 1234n);
  expect(clocks()).toEqual([0n, 1234n]);
  publisher.hasten();
  publisher.heard(2000);
  expect(clocks()).toEqual([0n, 1234n, 0n]);
  // What was known is not forgotten for what is older.
  const ageUs = sink.ofType(FRAME.position).at(-1)!.readBigInt64LE(16);
  expect(ageUs).toBeLessThan(1_000_000n);
});

test('before the source was heard no age is told', () => {
  start();
  expect(follow().ofType(FRAME.position)[0]!.readBigInt64LE(16)).toBe(-1n);
});
