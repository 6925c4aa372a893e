import type { ReadYourWrites, RequestReads } from '../read-your-writes.ts';
import { type IncomingHeaders, type MiddlewareOptions, TokenHeaders } from './token-headers.ts';

/** What of Fastify is used; no types of it, which users of the library need not have. */
interface FastifyRequestLike {
  readonly method: string;
  readonly url: string;
  readonly protocol: string;
  readonly headers: Readonly<Record<string, string | string[] | undefined>>;
  readonly raw: object;
}
interface FastifyReplyLike {
  header(name: string, value: string): unknown;
  readonly raw: {
    once(event: 'close', listener: () => void): unknown;
    off(event: 'close', listener: () => void): unknown;
  };
}
interface FastifyLike {
  addHook(
    name: 'onRequest',
    hook: (request: FastifyRequestLike, reply: FastifyReplyLike, done: (error?: Error) => void) => void,
  ): unknown;
  addHook(
    name: 'onSend',
    hook: (request: FastifyRequestLike, reply: FastifyReplyLike, payload: unknown) => Promise<unknown>,
  ): unknown;
}

export interface ReadYourWritesPlugin {
  (fastify: object): Promise<void>;
  /** ready(), read() and markWrite() of the request that the calling code works for. */
  readonly reads: ReadYourWrites;
}

/** readYourWrites() as a plugin: `await app.register(readYourWritesFastify({ replica, pool }))`, before the routes. */
export function readYourWritesFastify(options: MiddlewareOptions): ReadYourWritesPlugin {
  const headers = new TokenHeaders(options);
  const { core } = headers;
  const requests = new WeakMap<object, RequestReads>();
  const plugin = async (instance: object): Promise<void> => {
    const fastify = instance as FastifyLike;
    fastify.addHook('onRequest', (message, reply, done) => {
      const gone = new AbortController();
      const incoming = fromFastify(message);
      let request: RequestReads | null;
      try {
        request = headers.begin(incoming, gone.signal);
      } catch (error) {
        done(error as Error);
        return;
      }
      if (request === null) {
        done();
        return;
      }
      const own = request;
      requests.set(message.raw, own);
      if (!headers.waits(incoming)) {
        core.run(own, done);
        return;
      }
      const onClose = (): void => gone.abort();
      reply.raw.once('close', onClose);
      void own
        .ready()
        .then(
          () => () => done(),
          (error: Error) => () => done(error),
        )
        .then((goOn) => {
          reply.raw.off('close', onClose);
          if (!gone.signal.aborted) core.run(own, goOn);
        });
    });
    fastify.addHook('onSend', async (message, reply, payload) => {
      const request = requests.get(message.raw);
      if (request === undefined) return payload;
      const token = await request.outgoing();
      for (const [name, value] of headers.outgoing(fromFastify(message), request, token))
        reply.header(name, value);
      return payload;
    });
  };
  // For all routes, not only those registered inside: what fastify-plugin would do.
  return Object.assign(plugin, { reads: core, [Symbol.for('skip-override')]: true });
}

function fromFastify(message: FastifyRequestLike): IncomingHeaders {
  return {
    method: message.method,
    path: message.url,
    isSecure: message.protocol === 'https',
    header: (name) => {
      const value = message.headers[name];
      return Array.isArray(value) ? value[0] : value;
    },
  };
}
