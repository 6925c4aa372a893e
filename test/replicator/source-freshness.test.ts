import { expect, test } from 'vitest';
import { SourceFreshness } from '../../src/replicator/source-freshness.ts';

const SECOND_US = 1_000_000;
const HEADER_BYTES = 25;
const COMMIT_BYTES = 26;

/** A Commit message as the walsender sends it, µs since 2000. */
function commit(committedUs: number, sentUs: number): Buffer {
  const bytes = Buffer.alloc(HEADER_BYTES + COMMIT_BYTES);
  bytes.writeBigInt64BE(BigInt(sentUs), HEADER_BYTES - 8);
  bytes[HEADER_BYTES] = 0x43;
  bytes.writeBigInt64BE(BigInt(committedUs), HEADER_BYTES + 18);
  return bytes;
}

/** Any other message. */
function data(sentUs: number): Buffer {
  const bytes = Buffer.alloc(HEADER_BYTES + 1);
  bytes.writeBigInt64BE(BigInt(sentUs), HEADER_BYTES - 8);
  bytes[HEADER_BYTES] = 0x49;
  return bytes;
}

/** Our clock shows something else than the server's; a message takes 1 ms. */
const AHEAD_MS = 777_000;
let nowMs = 0;

function arrives(sentUs: number, afterMs = 1): void {
  nowMs = sentUs / 1000 + AHEAD_MS + afterMs;
}

function sourceAt(position: () => bigint = () => 100n): SourceFreshness {
  const source = new SourceFreshness(position, () => nowMs);
  // A message that came without delay tells the distance of the clocks.
  arrives(SECOND_US);
  source.message(commit(SECOND_US, SECOND_US), HEADER_BYTES);
  source.take();
  return source;
}

test('a transaction is as old as the server says; a keepalive among others says no more', () => {
  const source = sourceAt();
  arrives(13 * SECOND_US);
  source.message(commit(10 * SECOND_US, 13 * SECOND_US), HEADER_BYTES);
  expect(source.take()).toEqual({ agoMs: 3000, clockUs: 0n });
  arrives(13 * SECOND_US + 20_000);
  source.keepalive(13 * SECOND_US + 20_000);
  expect(source.take()).toEqual({ agoMs: 3020, clockUs: 0n });
  expect(source.take()).toBeNull();
});

test('a backlog is told by how old it was when it was sent, not by how long that took to come', () => {
  const source = sourceAt();
  expect(source.sentAgeMs).toBe(0);
  arrives(13 * SECOND_US);
  source.message(commit(10 * SECOND_US, 13 * SECOND_US), HEADER_BYTES);
  source.message(data(13 * SECOND_US + 50_000), HEADER_BYTES);
  expect(source.sentAgeMs).toBe(3050);
  arrives(20 * SECOND_US, 5000);
  source.message(commit(20 * SECOND_US - 1000, 20 * SECOND_US), HEADER_BYTES);
  expect(source.sentAgeMs).toBe(1);
  source.keepalive(25 * SECOND_US);
  expect(source.sentAgeMs).toBe(0);
});

test('a keepalive behind a pause says that there is no more, and when', () => {
  const source = sourceAt();
  arrives(10 * SECOND_US);
  source.message(commit(10 * SECOND_US, 10 * SECOND_US), HEADER_BYTES);
  arrives(10 * SECOND_US + 400_000);
  source.keepalive(10 * SECOND_US + 400_000);
  expect(source.take()).toEqual({ agoMs: 0, clockUs: BigInt(Date.UTC(2000, 0, 1, 0, 0, 10, 400)) * 1000n });
});

test('so does one of many that somebody asks for', () => {
  const source = sourceAt();
  arrives(10 * SECOND_US);
  source.message(commit(10 * SECOND_US, 10 * SECOND_US), HEADER_BYTES);
  for (let us = 10 * SECOND_US; us <= 10 * SECOND_US + 150_000; us += 5_000) {
    arrives(us);
    source.keepalive(us);
  }
  expect(source.take()?.agoMs).toBe(0);
});

test('what lay in a socket, or waited for the end of a transaction, is older by that', () => {
  const source = sourceAt();
  arrives(10 * SECOND_US, 2001);
  source.message(commit(10 * SECOND_US - 500_000, 10 * SECOND_US), HEADER_BYTES);
  nowMs += 300;
  expect(source.take()?.agoMs).toBe(2800);
});

test('a keepalive while the first transaction goes on is none', () => {
  const source = new SourceFreshness(
    () => 100n,
    () => nowMs,
  );
  source.message(data(10 * SECOND_US), HEADER_BYTES);
  source.keepalive(10 * SECOND_US + 10);
  expect(source.take()).toBeNull();
});

test('nothing is current before the server has come to where its WAL ended at first', () => {
  let position = 100n;
  const source = new SourceFreshness(
    () => position,
    () => nowMs,
  );
  source.begun(500n);
  source.keepalive(10 * SECOND_US);
  expect(source.take()).toBeNull();
  position = 500n;
  arrives(11 * SECOND_US);
  source.keepalive(11 * SECOND_US);
  expect(source.take()?.agoMs).toBeLessThan(1);
});

test('a clock of the server that was set back makes nothing older, or newer, than it is', () => {
  const source = sourceAt();
  const hourMs = 3_600_000;
  // Our own clock goes on: what it shows is an hour more than before when the server's shows the same again.
  const later = (sentUs: number, afterMs = 1): void => {
    arrives(sentUs, afterMs + hourMs);
  };
  arrives(4000 * SECOND_US);
  source.message(commit(4000 * SECOND_US, 4000 * SECOND_US), HEADER_BYTES);
  later(401 * SECOND_US);
  source.message(commit(401 * SECOND_US, 401 * SECOND_US), HEADER_BYTES);
  expect(source.take()).toEqual({ agoMs: 0, clockUs: 0n });
  later(420 * SECOND_US);
  source.message(commit(410 * SECOND_US, 420 * SECOND_US), HEADER_BYTES);
  expect(source.take()).toEqual({ agoMs: 10_000, clockUs: 0n });
  expect(source.sentAgeMs).toBe(10_000);
  later(430 * SECOND_US);
  source.keepalive(430 * SECOND_US);
  expect(source.take()).toMatchObject({ agoMs: 0 });
});
