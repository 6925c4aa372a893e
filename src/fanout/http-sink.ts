import type { ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import type { FollowerSink } from './follower-sink.ts';

/**
 * The body of a response that never ends. The header goes out with the first bytes, so that a follower that
 * is refused can still be answered otherwise. What follows goes to the socket as it is: the response's own way of
 * writing takes as long as all the rest of a small write.
 */
export class HttpSink implements FollowerSink {
  readonly #response: ServerResponse;
  #socket: Socket | null = null;
  onDrain: () => void = () => undefined;
  onGone: () => void = () => undefined;

  constructor(response: ServerResponse) {
    this.#response = response;
    response.on('close', () => this.onGone());
    response.on('error', () => this.onGone());
  }

  get bufferedBytes(): number {
    return this.#socket?.writableLength ?? 0;
  }

  write(bytes: Buffer): boolean {
    const response = this.#response;
    if (response.destroyed || response.writableEnded) return true;
    this.#socket ??= this.#begin();
    return this.#socket?.write(bytes) ?? true;
  }

  end(): void {
    this.#response.end();
  }

  destroy(): void {
    this.#response.destroy();
  }

  #begin(): Socket | null {
    const response = this.#response;
    const { socket } = response;
    if (socket === null) return null;
    // Small frames must not wait for each other's acknowledgement.
    socket.setNoDelay(true);
    response.statusCode = 200;
    response.setHeader('content-type', 'application/octet-stream');
    response.setHeader('cache-control', 'no-store');
    // Proxies that gather a response before they pass it on would be as good as a broken line.
    response.setHeader('x-accel-buffering', 'no');
    // Without chunk headers around it, the same buffer goes to the socket as it is; the connection's end ends it.
    response.removeHeader('transfer-encoding');
    response.flushHeaders();
    socket.on('drain', () => this.onDrain());
    return socket;
  }
}
