import { RivuletError } from '../../errors.ts';
import type { ReadYourWrites, RequestReads } from '../read-your-writes.ts';
import { type IncomingHeaders, type MiddlewareOptions, TokenHeaders } from './token-headers.ts';

/** What of Hono's context is used; no types of it, which users of the library need not have. */
interface HonoContextLike {
  readonly req: { readonly raw: Request };
  header(name: string, value: string, options?: { append?: boolean }): void;
}

export interface HonoMiddleware {
  (context: HonoContextLike, next: () => Promise<void>): Promise<void>;
  /** ready(), read() and markWrite() of the request that the calling code works for. */
  readonly reads: ReadYourWrites;
}

/** readYourWrites() for Hono: `app.use(readYourWritesHono({ replica, pool }))`. */
export function readYourWritesHono(options: MiddlewareOptions): HonoMiddleware {
  const headers = new TokenHeaders(options);
  const middleware = async (context: HonoContextLike, next: () => Promise<void>): Promise<void> => {
    const incoming = fromFetch(context.req.raw);
    const request = headers.begin(incoming, context.req.raw.signal);
    if (request === null) return next();
    await goOn(headers, incoming, request, next);
    for (const [name, value] of headers.outgoing(incoming, request, await request.outgoing()))
      context.header(name, value, { append: name === 'set-cookie' });
  };
  return Object.assign(middleware, { reads: headers.core });
}

/**
 * readYourWrites() around a handler of web standard requests, such as Next's route handlers:
 *
 *   export const GET = reads.handler(async (request) => Response.json(…));
 */
export function readYourWritesFetch(options: MiddlewareOptions): {
  readonly reads: ReadYourWrites;
  handler<Rest extends unknown[]>(
    handle: (request: Request, ...rest: Rest) => Response | Promise<Response>,
  ): (request: Request, ...rest: Rest) => Promise<Response>;
} {
  const headers = new TokenHeaders(options);
  return {
    reads: headers.core,
    handler:
      (handle) =>
      async (message, ...rest) => {
        const incoming = fromFetch(message);
        try {
          const request = headers.begin(incoming, message.signal);
          if (request === null) return await handle(message, ...rest);
          const response = await goOn(headers, incoming, request, async () => handle(message, ...rest));
          // Headers of a response that was fetched, or redirects, cannot be changed.
          const answer = new Response(response.body, response);
          for (const [name, value] of headers.outgoing(incoming, request, await request.outgoing()))
            answer.headers.append(name, value);
          return answer;
        } catch (error) {
          if (!(error instanceof RivuletError)) throw error;
          const { code, message: says, hint, statusCode } = error;
          return Response.json({ code, message: says, hint }, { status: statusCode });
        }
      },
  };
}

async function goOn<T>(
  headers: TokenHeaders,
  incoming: IncomingHeaders,
  request: RequestReads,
  work: () => Promise<T>,
): Promise<T> {
  if (headers.waits(incoming)) await request.ready();
  return headers.core.run(request, work);
}

function fromFetch(message: Request): IncomingHeaders {
  const { pathname, search, protocol } = new URL(message.url);
  return {
    method: message.method,
    path: pathname + search,
    isSecure: protocol === 'https:',
    header: (name) => message.headers.get(name) ?? undefined,
  };
}
