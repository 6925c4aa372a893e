import type { ClientRequest, IncomingMessage, ServerResponse } from 'node:http';
import { ConfigError, ProtocolError, type RivuletError } from '../../errors.ts';
import type { AppConnection } from './app-connection.ts';
import { hasBody, type RawHeaders, requestHeaders, responseHeaders, trailers } from './headers.ts';

/** What the proxy itself adds to a response, in place of the app's own headers of the same names. */
export interface Addition {
  /** Lower case. */
  readonly replaced: ReadonlySet<string>;
  readonly headers: RawHeaders;
}

export interface ExchangeOptions {
  readonly app: AppConnection;
  /** Added to the request. */
  readonly headers: RawHeaders;
  /**
   * Asked once the app's response has begun; the response goes on when it has answered. Null: nothing to add.
   * Must not reject.
   */
  readonly decorate: ((incoming: IncomingMessage) => Addition | null | Promise<Addition | null>) | null;
  readonly onFailure: (error: RivuletError, response: ServerResponse) => void;
}

/** What may be sent twice when a kept connection turns out to be closed. */
const SAFE_METHODS = new Set(['GET', 'HEAD', 'OPTIONS']);

const NOTHING: Addition = { replaced: new Set(), headers: [] };

/**
 * One request to the app and its response back: nothing is collected, a slow side slows the other one down, what
 * breaks on one side breaks on the other.
 */
export function exchange(request: IncomingMessage, response: ServerResponse, options: ExchangeOptions): void {
  new Exchange(request, response, options).begin(true);
}

class Exchange {
  readonly #request: IncomingMessage;
  readonly #response: ServerResponse;
  readonly #options: ExchangeOptions;
  readonly #hasBody: boolean;
  #outgoing: ClientRequest | null = null;
  #hasResponse = false;

  constructor(request: IncomingMessage, response: ServerResponse, options: ExchangeOptions) {
    this.#request = request;
    this.#response = response;
    this.#options = options;
    this.#hasBody = hasBody(request);
    // The client has gone: the app should know. After a whole exchange this does nothing.
    response.on('close', () => {
      if (!response.writableFinished) this.#outgoing?.destroy();
    });
  }

  begin(mayRetry: boolean): void {
    const { app, headers } = this.#options;
    const request = this.#request;
    if (this.#response.destroyed) return;
    let outgoing: ClientRequest;
    try {
      outgoing = app.begin(
        request.method ?? 'GET',
        pathOf(request),
        requestHeaders(request, { isUpgrade: false, targetHost: app.target.host, more: headers }),
        { isUpgrade: false },
      );
    } catch (cause) {
      this.#options.onFailure(requestRefused(cause), this.#response);
      return;
    }
    this.#outgoing = outgoing;
    outgoing.on('response', (incoming) => this.#respond(incoming));
    // 1xx came with HTTP/1.1.
    if (request.httpVersionMinor > 0) {
      outgoing.on('continue', () => this.#response.writeContinue());
      outgoing.on('information', ({ statusCode, headers: hints }) => {
        if (this.#response.headersSent) return;
        if (statusCode === 102) this.#response.writeProcessing();
        if (statusCode !== 103) return;
        try {
          this.#response.writeEarlyHints(hints as Record<string, string>);
        } catch {
          // Node knows links only, and not every form of them. A hint that is lost costs nothing but time.
        }
      });
    }
    outgoing.on('error', (cause: Error) => {
      if (this.#hasResponse || this.#response.destroyed) return;
      const wasClosed = ['ECONNRESET', 'EPIPE'].includes((cause as NodeJS.ErrnoException).code ?? '');
      if (
        mayRetry &&
        wasClosed &&
        outgoing.reusedSocket &&
        !this.#hasBody &&
        SAFE_METHODS.has(request.method!)
      ) {
        this.begin(false);
        return;
      }
      this.#options.onFailure(app.unreachable(cause), this.#response);
    });
    // Whatever the client still sends has nowhere to go.
    outgoing.on('close', () => {
      if (!request.complete) request.resume();
    });
    if (this.#hasBody) this.#sendBody(outgoing);
    else outgoing.end();
  }

  #sendBody(outgoing: ClientRequest): void {
    const request = this.#request;
    request.pipe(outgoing, { end: false });
    request.on('end', () => {
      if (request.rawTrailers.length > 0) outgoing.addTrailers(trailers(request));
      outgoing.end();
    });
    // With the first bytes of the body in one packet, if they are here; an app may want to answer before they come.
    setImmediate(() => {
      if (!outgoing.destroyed) outgoing.flushHeaders();
    });
  }

  #respond(incoming: IncomingMessage): void {
    this.#hasResponse = true;
    // Broken in the middle: said by 'close', below.
    incoming.on('error', () => undefined);
    incoming.on('close', () => {
      if (!incoming.complete) this.#response.destroy();
    });
    const addition = this.#options.decorate?.(incoming) ?? NOTHING;
    if (!(addition instanceof Promise)) this.#pass(incoming, addition);
    else
      void addition.then(
        (added) => this.#pass(incoming, added ?? NOTHING),
        () => this.#response.destroy(),
      );
  }

  #pass(incoming: IncomingMessage, { replaced, headers }: Addition): void {
    const response = this.#response;
    if (response.destroyed) return;
    const isChunked =
      incoming.headers['transfer-encoding'] !== undefined &&
      this.#request.httpVersionMinor > 0 &&
      this.#request.method !== 'HEAD';
    // A Date that the app did not send is none of ours.
    response.sendDate = false;
    try {
      response.writeHead(
        incoming.statusCode!,
        incoming.statusMessage,
        responseHeaders(incoming, { replaced, more: headers, isChunked }),
      );
    } catch (cause) {
      incoming.destroy();
      this.#options.onFailure(answerRefused(cause), response);
      return;
    }
    let hasBegun = false;
    incoming.on('data', (chunk: Buffer) => {
      hasBegun = true;
      if (!response.write(chunk)) incoming.pause();
    });
    response.on('drain', () => incoming.resume());
    incoming.on('end', () => {
      hasBegun = true;
      if (isChunked && incoming.rawTrailers.length > 0) response.addTrailers(trailers(incoming));
      response.end();
    });
    // An event stream's head may come long before its first event; a short answer goes out in one packet.
    setImmediate(() => {
      if (!hasBegun && !response.destroyed) response.flushHeaders();
    });
  }
}

/** Node's parser takes some characters, and some status codes, that its writer refuses. */
export function requestRefused(cause: unknown): RivuletError {
  return new ConfigError(`the request cannot be passed on: ${(cause as Error).message}`, { cause });
}

/** See requestRefused(). */
export function answerRefused(cause: unknown): RivuletError {
  return new ProtocolError(`the app's answer cannot be passed on: ${(cause as Error).message}`, { cause });
}

/** The path as the client sent it, without the authority of a request in absolute form. */
export function pathOf({ url = '/' }: IncomingMessage): string {
  if (url.startsWith('/') || url === '*') return url;
  const parsed = URL.parse(url);
  return parsed === null ? '/' : `${parsed.pathname}${parsed.search}`;
}
