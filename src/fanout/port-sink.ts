import type { MessagePort } from 'node:worker_threads';
import { RivuletError } from '../errors.ts';
import type { Log } from '../log.ts';
import type { Lsn } from '../lsn.ts';
import type { FollowerReport } from './follower-registry.ts';
import type { FollowerSink } from './follower-sink.ts';
import type { FollowRequest, Publisher } from './publisher.ts';

/** What a follower in the same process says over its port. */
export type PortRequest =
  | ({ readonly kind: 'follow' } & FollowRequest)
  | { readonly kind: 'consumed'; readonly bytes: number }
  | { readonly kind: 'report'; readonly id: string; readonly report: FollowerReport }
  | { readonly kind: 'hasten' }
  /** Its file cannot go on, for this reason: the replicator has to make a new copy. */
  | { readonly kind: 'start-over'; readonly code: string; readonly message: string }
  | { readonly kind: 'leave' };

/** What it hears. */
export type PortReply =
  | { readonly kind: 'frames'; readonly bytes: Uint8Array<ArrayBuffer> }
  | {
      readonly kind: 'refused';
      readonly code: string;
      readonly message: string;
      readonly hint?: string | undefined;
      readonly position?: Lsn;
    }
  | { readonly kind: 'ended' };

/** Enough that the other thread never idles; the rest waits in the log. */
const CREDIT_BYTES = 4 * 1024 * 1024;

/** The way to a follower on another thread of this process. It says what it has consumed; nothing else drains. */
export class PortSink implements FollowerSink {
  readonly #port: MessagePort;
  #sentBytes = 0;
  #consumedBytes = 0;
  #isFull = false;
  #isEnded = false;
  onDrain: () => void = () => undefined;
  onGone: () => void = () => undefined;

  constructor(port: MessagePort) {
    this.#port = port;
  }

  get bufferedBytes(): number {
    return this.#sentBytes - this.#consumedBytes;
  }

  write(bytes: Buffer): boolean {
    if (this.#isEnded) return true;
    // A view would take all of the memory behind it along; a copy of just these bytes is moved, not copied again.
    const copy = new Uint8Array(bytes);
    this.#sentBytes += copy.length;
    this.#port.postMessage({ kind: 'frames', bytes: copy } satisfies PortReply, [copy.buffer]);
    this.#isFull = this.bufferedBytes >= CREDIT_BYTES;
    return !this.#isFull;
  }

  consumed(bytes: number): void {
    this.#consumedBytes += bytes;
    if (!this.#isFull || this.bufferedBytes > CREDIT_BYTES / 2) return;
    this.#isFull = false;
    this.onDrain();
  }

  end(): void {
    if (this.#isEnded) return;
    this.#isEnded = true;
    this.#port.postMessage({ kind: 'ended' } satisfies PortReply);
  }

  destroy(): void {
    this.end();
  }
}

/** Serves the follower at the other end of `port`, for one stream after another, until the port closes. */
export function servePort(
  port: MessagePort,
  options: {
    readonly publisher: Publisher;
    readonly log: Log;
    readonly hasten: () => void;
    readonly startOver: (code: string, message: string) => void;
  },
): void {
  const { publisher, log } = options;
  let sink: PortSink | null = null;
  const leave = (): void => {
    sink?.onGone();
    sink = null;
  };
  port.on('message', (request: PortRequest) => {
    switch (request.kind) {
      case 'follow': {
        leave();
        const next = new PortSink(port);
        try {
          publisher.follow(request, next);
          sink = next;
        } catch (error) {
          const { code, message, hint } =
            error instanceof RivuletError
              ? error
              : new RivuletError('PROTOCOL', String(error), { cause: error });
          log.debug({ code }, `the follower in this process has to wait: ${message}`);
          port.postMessage({ kind: 'refused', code, message, hint } satisfies PortReply);
        }
        break;
      }
      case 'consumed':
        sink?.consumed(request.bytes);
        break;
      case 'report':
        publisher.report(request.id, request.report);
        break;
      case 'hasten':
        options.hasten();
        break;
      case 'start-over':
        options.startOver(request.code, request.message);
        break;
      case 'leave':
        leave();
        break;
    }
  });
  port.on('close', leave);
}
