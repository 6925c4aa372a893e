import { expect, test } from 'vitest';
import { SourceFreshness } from '../../src/replicator/source-freshness.ts';

let nowMs = 0;

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

test('a transaction is as old as the server says; a keepalive among others says no more', () => {
  const source = new SourceFreshness(
    () => 100n,
    () => nowMs,
  );
  source.message(commit(10 * SECOND_US, 13 * SECOND_US), HEADER_BYTES);
  expect(source.take()).toEqual({ agoMs: 3000, clockUs: 0n });
  source.keepalive(13 * SECOND_US + 20_000);
  expect(source.take()).toEqual({ agoMs: 3000, clockUs: 0n });
  expect(source.take()).toBeNull();
});

test('a keepalive behind a pause says that there is no more, and when', () => {
  const source = new SourceFreshness(
    () => 100n,
    () => nowMs,
  );
  source.message(commit(10 * SECOND_US, 10 * SECOND_US + 500), HEADER_BYTES);
  source.keepalive(10 * SECOND_US + 400_000);
  expect(source.take()).toEqual({ agoMs: 0, clockUs: BigInt(Date.UTC(2000, 0, 1, 0, 0, 10, 400)) * 1000n });
});

test('a keepalive while a transaction goes on is none', () => {
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
  source.keepalive(11 * SECOND_US);
  expect(source.take()?.agoMs).toBe(0);
});

test('what had to wait is older by then', () => {
  const source = new SourceFreshness(
    () => 100n,
    () => nowMs,
  );
  source.message(commit(10 * SECOND_US, 11 * SECOND_US), HEADER_BYTES);
  nowMs += 500;
  expect(source.take()?.agoMs).toBe(1500);
});
