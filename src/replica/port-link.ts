import type { MessagePort } from 'node:worker_threads';
import { FRAME } from '../change/frame.ts';
import { ERROR_TABLE, type ErrorCode, ProtocolError, RivuletError } from '../errors.ts';
import type { PortReply, PortRequest } from '../fanout/port-sink.ts';
import type {
  FollowerLink,
  FollowerReport,
  FollowRequest,
  LinkStream,
  StreamHandlers,
} from './follower-link.ts';

/** Follows a replicator in this process, over a port (see servePort). */
export class PortLink implements FollowerLink {
  readonly #port: MessagePort;
  #onReply: ((reply: PortReply) => void) | null = null;
  #onClose: (() => void) | null = null;

  constructor(port: MessagePort) {
    this.#port = port;
    port.on('message', (reply: PortReply) => this.#onReply?.(reply));
    port.on('close', () => this.#onClose?.());
  }

  open(request: FollowRequest, handlers: StreamHandlers, signal: AbortSignal): Promise<LinkStream> {
    return new Promise((resolve, reject) => {
      let isOpen = false;
      const leave = (): void => {
        this.#onReply = null;
        this.#onClose = null;
        signal.removeEventListener('abort', onAbort);
        this.#say({ kind: 'leave' });
      };
      const fail = (error: Error): void => {
        leave();
        if (isOpen) handlers.onEnd(error);
        else reject(error);
      };
      const onAbort = (): void => fail(new RivuletError('CLOSED', 'the replica was closed'));
      signal.addEventListener('abort', onAbort, { once: true });
      this.#onClose = () =>
        fail(new RivuletError('REPLICATOR_UNREACHABLE', 'the replicator in this process has ended'));
      this.#onReply = (reply) => {
        if (reply.kind === 'refused') {
          const code = Object.hasOwn(ERROR_TABLE, reply.code) ? (reply.code as ErrorCode) : 'PROTOCOL';
          fail(new RivuletError(code, reply.message, reply.hint === undefined ? {} : { hint: reply.hint }));
        } else if (reply.kind === 'ended') {
          // Before the stream has begun this is the end of the one before it.
          if (isOpen) fail(new ProtocolError('the stream ended'));
        } else {
          const bytes = Buffer.from(reply.bytes.buffer, reply.bytes.byteOffset, reply.bytes.byteLength);
          if (!isOpen) {
            // Every stream begins with a message of its own that holds hello; anything before is of an older one.
            if (bytes[4] !== FRAME.hello) return;
            isOpen = true;
            resolve({ consumed: (count) => this.#say({ kind: 'consumed', bytes: count }), close: leave });
            // What waits for the promise must have its stream before the first bytes come.
            queueMicrotask(() => handlers.onBytes(bytes));
            return;
          }
          handlers.onBytes(bytes);
        }
      };
      this.#say({ kind: 'follow', ...request, digests: false });
      if (signal.aborted) onAbort();
    });
  }

  async report(id: string, { name, position, lagMs }: FollowerReport): Promise<null> {
    this.#say({ kind: 'report', id, report: { name, position, lagMs } });
    return null;
  }

  async digest(): Promise<void> {
    // There is no other replica to compare with; none is announced over a port.
  }

  async hasten(): Promise<void> {
    this.#say({ kind: 'hasten' });
  }

  /** The file is of no use any more: the replicator has to make another. */
  async startOver({ code, message }: RivuletError): Promise<void> {
    this.#say({ kind: 'start-over', code, message });
  }

  close(): void {
    this.#port.close();
  }

  #say(request: PortRequest): void {
    this.#port.postMessage(request);
  }
}
