import { createServer, type RequestListener, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Express } from 'express';
import { ConfigError, RivuletError } from '../errors.ts';
import { isLoopback } from './loopback.ts';

export interface ListenAddress {
  readonly host: string;
  readonly port: number;
}

export interface HttpServer extends AsyncDisposable {
  /** With the port that the system chose, where 0 was asked for. */
  readonly address: ListenAddress;
  readonly url: string;
  /** Ends open connections at once, endless streams included. May be called twice. */
  close(): Promise<void>;
}

/**
 * An address that is taken before there is anything to serve: one that somebody else has shows before anything is made
 * anywhere. Until listen() is given it, every request is answered with 503.
 */
export class BoundAddress implements HttpServer, ListenAddress {
  readonly host: string;
  /** The one that the system chose, where 0 was asked for. */
  readonly port: number;
  readonly #server: Server;
  #serve: RequestListener = ({ url }, response) => answerStarting(url, response);
  #closing: Promise<void> | null = null;

  /** Refuses an address where whoever reaches the port could read the whole database without a token. */
  static async bind(address: ListenAddress, token: string | undefined): Promise<BoundAddress> {
    const { host, port } = address;
    if (token === undefined && !isLoopback(host)) {
      throw new ConfigError(`${host}:${port} can be reached from other machines, and there is no token`, {
        hint: 'set a token, or listen on 127.0.0.1',
      });
    }
    const server = createServer({ noDelay: true, keepAlive: true });
    await new Promise<void>((resolve, reject) => {
      server.once('error', (cause: NodeJS.ErrnoException) => reject(explainListenError(cause, address)));
      server.listen(port, host, resolve);
    });
    return new BoundAddress(server, host);
  }

  private constructor(server: Server, host: string) {
    this.#server = server;
    this.host = host;
    this.port = (server.address() as AddressInfo).port;
    server.on('request', (request, response) => this.#serve(request, response));
  }

  get address(): ListenAddress {
    return { host: this.host, port: this.port };
  }

  get url(): string {
    return `http://${this.host.includes(':') ? `[${this.host}]` : this.host}:${this.port}`;
  }

  /** From now on requests go there. */
  serve(app: RequestListener): void {
    this.#serve = app;
  }

  close(): Promise<void> {
    this.#closing ??= new Promise((resolve) => {
      this.#server.close(() => resolve());
      this.#server.closeAllConnections();
    });
    return this.#closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

/** In the form that health and errors have later on. */
function answerStarting(url: string | undefined, response: ServerResponse): void {
  const message = 'the process is still starting';
  const body =
    url?.split('?')[0] === '/healthz'
      ? { healthy: false, state: 'starting', reasons: [message] }
      : { code: 'NOT_READY', message, hint: 'GET /healthz says when it has started' };
  response.writeHead(503, { 'content-type': 'application/json; charset=utf-8' });
  response.end(JSON.stringify(body));
}

/** Listens (see BoundAddress); an address that is bound already serves from here on. */
export async function listen(
  app: Express,
  address: ListenAddress,
  token: string | undefined,
): Promise<HttpServer> {
  const bound = address instanceof BoundAddress ? address : await BoundAddress.bind(address, token);
  bound.serve(app);
  return bound;
}

export function explainListenError(
  cause: NodeJS.ErrnoException,
  { host, port }: ListenAddress,
): RivuletError {
  const where = `${host}:${port}`;
  switch (cause.code) {
    case 'EADDRINUSE':
      return new RivuletError('LISTEN', `another process already listens on ${where}`, {
        cause,
        hint: 'stop it, or give another --listen address',
      });
    case 'EACCES':
      return new RivuletError('LISTEN', `listening on ${where} is not allowed`, {
        cause,
        hint: 'ports below 1024 need a privilege: take a higher one',
      });
    case 'EADDRNOTAVAIL':
    case 'ENOTFOUND':
    case 'EAI_AGAIN':
      return new RivuletError('LISTEN', `this machine has no address ${host}`, {
        cause,
        hint: 'give an address of this machine, or 0.0.0.0 for all',
      });
    default:
      return new RivuletError('LISTEN', `listening on ${where} failed: ${cause.message}`, { cause });
  }
}
