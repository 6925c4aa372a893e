import type { IncomingMessage, ServerResponse } from 'node:http';
import type { ReadYourWrites } from '../read-your-writes.ts';
import { beforeHeaders } from './before-headers.ts';
import { type IncomingHeaders, type MiddlewareOptions, TokenHeaders } from './token-headers.ts';

/** Middleware of Express, Connect, and whatever else takes (request, response, next). */
export interface ReadYourWritesMiddleware {
  (request: IncomingMessage, response: ServerResponse, next: (error?: unknown) => void): void;
  /** ready(), read() and markWrite() of the request that the calling code works for. */
  readonly reads: ReadYourWrites;
}

/**
 * Express middleware: what a request commits, in any code below it, becomes a token in the cookie and header of its
 * answer; a reading request (GET, HEAD) goes on once the file has what its client wrote and has seen.
 *
 * A read that is late: `fail` goes to the app's error handler, `stale` and `postgres` are in the answer's header
 * `rivulet-read` and in `reads.current.readiness`.
 */
export function readYourWrites(options: MiddlewareOptions): ReadYourWritesMiddleware {
  const headers = new TokenHeaders(options);
  const { core } = headers;
  const middleware = (
    message: IncomingMessage,
    response: ServerResponse,
    next: (error?: unknown) => void,
  ): void => {
    const gone = new AbortController();
    const incoming = fromNode(message);
    let request: ReturnType<TokenHeaders['begin']>;
    try {
      request = headers.begin(incoming, gone.signal);
    } catch (error) {
      next(error);
      return;
    }
    if (request === null) {
      next();
      return;
    }
    const own = request;
    beforeHeaders(
      response,
      () => {
        const token = own.outgoingNow();
        return token === undefined ? undefined : headers.outgoing(incoming, own, token);
      },
      async () => headers.outgoing(incoming, own, await own.outgoing()),
    );
    if (!headers.waits(incoming)) {
      core.run(own, next);
      return;
    }
    // A client that has gone waits no longer, and nothing is done for it.
    const onClose = (): void => gone.abort();
    response.once('close', onClose);
    void own
      .ready()
      .then(
        () => () => next(),
        (error: unknown) => () => next(error),
      )
      .then((goOn) => {
        response.off('close', onClose);
        if (!gone.signal.aborted) core.run(own, goOn);
      });
  };
  return Object.assign(middleware, { reads: core });
}

/**
 * The same around a plain `node:http` handler, and Next's API routes. What waiting fails with is answered as JSON.
 *
 *   createServer(withReadYourWrites({ replica, pool }, async (request, response) => { … }))
 */
export function withReadYourWrites<
  Request extends IncomingMessage = IncomingMessage,
  Response extends ServerResponse = ServerResponse,
>(
  options: MiddlewareOptions | ReadYourWritesMiddleware,
  handler: (request: Request, response: Response) => unknown,
): (request: Request, response: Response) => Promise<void> {
  const middleware = typeof options === 'function' ? options : readYourWrites(options);
  return (request, response) =>
    new Promise((resolve, reject) => {
      middleware(request, response, (error) => {
        if (error === undefined) {
          Promise.resolve()
            .then(() => handler(request, response))
            .then(() => resolve(), reject);
          return;
        }
        const { code = 'PROTOCOL', message, hint, statusCode = 500 } = error as Record<string, never>;
        response.writeHead(statusCode, { 'content-type': 'application/json' });
        response.end(JSON.stringify({ code, message, hint }));
        resolve();
      });
    });
}

function fromNode(message: IncomingMessage): IncomingHeaders {
  // Express knows more of proxies in front (`trust proxy`), and cuts the path that it is mounted at from `url`.
  const { secure, originalUrl } = message as { secure?: boolean; originalUrl?: string };
  return {
    method: message.method ?? 'GET',
    path: originalUrl ?? message.url ?? '/',
    isSecure: secure ?? 'encrypted' in message.socket,
    header: (name) => message.headers[name] as string | undefined,
  };
}
