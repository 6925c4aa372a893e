import { createServer } from 'node:http';
import { type AddressInfo, isIP } from 'node:net';
import type { Express } from 'express';
import { ConfigError, RivuletError } from '../errors.ts';

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

export function isLoopback(host: string): boolean {
  if (host === 'localhost' || host === '::1') return true;
  return isIP(host) === 4 && host.startsWith('127.');
}

/** Listens, unless whoever reaches the port could then read the whole database without a token. */
export async function listen(
  app: Express,
  address: ListenAddress,
  token: string | undefined,
): Promise<HttpServer> {
  const { host, port } = address;
  if (token === undefined && !isLoopback(host)) {
    throw new ConfigError(`${host}:${port} can be reached from other machines, and there is no token`, {
      hint: 'set a token, or listen on 127.0.0.1',
    });
  }
  const server = createServer({ noDelay: true, keepAlive: true }, app);
  await new Promise<void>((resolve, reject) => {
    server.once('error', (cause: NodeJS.ErrnoException) => reject(explainListenError(cause, address)));
    server.listen(port, host, resolve);
  });
  const bound: ListenAddress = { host, port: (server.address() as AddressInfo).port };
  let closing: Promise<void> | null = null;
  const close = (): Promise<void> => {
    closing ??= new Promise((resolve) => {
      server.close(() => resolve());
      server.closeAllConnections();
    });
    return closing;
  };
  return {
    address: bound,
    url: `http://${host.includes(':') ? `[${host}]` : host}:${bound.port}`,
    close,
    [Symbol.asyncDispose]: close,
  };
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
