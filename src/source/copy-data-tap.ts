import type pg from 'pg';
import { giveBack } from '../change/give-back.ts';
import { clientStream } from './connection.ts';

/** Type byte and length of a message of the frontend/backend protocol. */
const MESSAGE_HEADER_BYTES = 5;
const COPY_DATA = 0x64;

/**
 * Takes one CopyData payload, whose memory is good until the next `onChunk` has returned. False: stop here; the same
 * payload comes again after resume().
 */
export type CopyDataHandler = (bytes: Buffer, from: number, to: number) => boolean;

export interface CopyDataTap {
  /** No more bytes are read from the server until resume(). */
  pause(): void;
  /** Goes on with what was held back, then with the socket. */
  resume(): void;
}

/**
 * Takes CopyData messages from a pg client's socket before pg makes an object of each, and leaves every other
 * message to pg: authentication, errors and the end of the COPY stay its business. `onChunk` is called once
 * behind every chunk of the socket that brought CopyData; then the chunk's memory is given back.
 *
 * Reaches into pg for its connection's `stream`, and the `data` listener on it.
 * https://www.postgresql.org/docs/current/protocol-message-formats.html
 */
export function tapCopyData(
  client: pg.Client,
  handler: CopyDataHandler,
  onChunk: () => void,
  onError: (error: unknown) => void,
): CopyDataTap {
  const stream = clientStream(client);
  const original = stream.listeners('data') as ((chunk: Buffer) => void)[];
  stream.removeAllListeners('data');

  let pending: Buffer[] = [];
  let pendingBytes = 0;
  let neededBytes = MESSAGE_HEADER_BYTES;
  let isPaused = false;
  let isBroken = false;
  /** pg was given a part of what is being consumed, and may keep it. */
  let isLent = false;

  function keep(chunk: Buffer, needed: number): void {
    pending = chunk.length > 0 ? [chunk] : [];
    pendingBytes = chunk.length;
    neededBytes = needed;
  }

  /** What is left of a chunk: a copy, unless that is all of it. */
  function keepRest(chunk: Buffer, at: number, needed: number): void {
    keep(at === 0 ? chunk : Buffer.from(chunk.subarray(at)), needed);
  }

  /** Everything that is kept, in one piece. */
  function join(newest?: Buffer): Buffer {
    const joined = Buffer.concat(pending, pendingBytes);
    for (const part of pending) if (part.buffer !== newest?.buffer) giveBack(part);
    pending = [];
    return joined;
  }

  /** It was consumed, but for what is kept of it. */
  function release(chunk: Buffer): void {
    if (!isLent && pending.every((part) => part.buffer !== chunk.buffer)) giveBack(chunk);
    isLent = false;
  }

  function consume(chunk: Buffer): void {
    let at = 0;
    let sawCopyData = false;
    while (chunk.length - at >= MESSAGE_HEADER_BYTES) {
      const length = chunk.readUInt32BE(at + 1) + 1;
      const end = at + length;
      if (end > chunk.length) {
        keepRest(chunk, at, length);
        if (sawCopyData) onChunk();
        return;
      }
      if (chunk[at] === COPY_DATA) {
        sawCopyData = true;
        if (!handler(chunk, at + MESSAGE_HEADER_BYTES, end)) {
          keep(isLent ? Buffer.from(chunk.subarray(at)) : chunk.subarray(at), 0);
          pause();
          onChunk();
          return;
        }
      } else {
        isLent = true;
        const message = chunk.subarray(at, end);
        for (const listener of original) listener(message);
      }
      at = end;
    }
    keepRest(chunk, at, MESSAGE_HEADER_BYTES);
    if (sawCopyData) onChunk();
  }

  function onData(chunk: Buffer): void {
    // A failure is final: whatever follows must be neither handled nor acknowledged.
    if (isBroken) return;
    try {
      let rest = chunk;
      // Of a message in two chunks only these bytes are joined: all others are taken where they are.
      while (!isPaused && pendingBytes > 0 && rest.length > 0) {
        const taken = rest.subarray(0, neededBytes - pendingBytes);
        rest = rest.subarray(taken.length);
        pending.push(taken);
        pendingBytes += taken.length;
        if (pendingBytes < neededBytes) continue;
        const joined = join(chunk);
        consume(joined);
        release(joined);
      }
      if (rest.length > 0 && isPaused) {
        pending.push(rest);
        pendingBytes += rest.length;
      } else if (rest.length > 0) {
        consume(rest);
      }
      release(chunk);
    } catch (error) {
      isBroken = true;
      stream.pause();
      onError(error);
    }
  }

  function pause(): void {
    isPaused = true;
    stream.pause();
  }

  function resume(): void {
    if (!isPaused || isBroken) return;
    isPaused = false;
    if (pendingBytes > 0) {
      const held = join();
      keep(Buffer.alloc(0), MESSAGE_HEADER_BYTES);
      onData(held);
    }
    if (!isPaused) stream.resume();
  }

  stream.on('data', onData);
  return { pause, resume };
}
