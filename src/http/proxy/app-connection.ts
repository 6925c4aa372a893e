import {
  type ClientRequest,
  Agent as HttpAgent,
  request as httpRequest,
  type RequestOptions,
} from 'node:http';
import { Agent as HttpsAgent, request as httpsRequest } from 'node:https';
import { connect } from 'node:net';
import { RivuletError } from '../../errors.ts';

/** The app is on this machine or beside it: an address that does not answer by then is a wrong one. */
const CONNECT_TIMEOUT_MS = 5_000;

/**
 * An unused connection is given up before most servers do so (Node's after 5 s): a request that is sent while the
 * app closes its connection could not be answered, and one that writes must not be sent again.
 */
const IDLE_TIMEOUT_MS = 4_000;

/** Connections kept open for the next requests. */
const MAX_IDLE_CONNECTIONS = 256;

/** Twice Node's default: what an app accepts should not fail here. */
export const MAX_HEADER_BYTES = 32 * 1024;

/** Connections to the app behind the proxy. */
export class AppConnection implements Disposable {
  /** Where the app is, without path. */
  readonly target: URL;
  readonly #agent: HttpAgent;
  readonly #request: typeof httpRequest;

  constructor(target: string) {
    this.target = new URL(target);
    const isTls = this.target.protocol === 'https:';
    this.#request = isTls ? httpsRequest : httpRequest;
    this.#agent = new (isTls ? HttpsAgent : HttpAgent)({
      keepAlive: true,
      scheduling: 'lifo',
      maxFreeSockets: MAX_IDLE_CONNECTIONS,
      timeout: IDLE_TIMEOUT_MS,
    });
  }

  /** Begins a request with exactly these headers. */
  begin(
    method: string,
    path: string,
    headers: readonly string[],
    { isUpgrade }: { readonly isUpgrade: boolean },
  ): ClientRequest {
    const options: RequestOptions = {
      host: this.target.hostname.replace(/^\[|\]$/g, ''),
      port: this.target.port === '' ? (this.target.protocol === 'https:' ? 443 : 80) : this.target.port,
      method,
      path,
      headers,
      agent: this.#agent,
      maxHeaderSize: MAX_HEADER_BYTES,
      setDefaultHeaders: false,
    };
    const outgoing = this.#request(options);
    outgoing.on('socket', (socket) => {
      if (isUpgrade) socket.setTimeout(0);
      if (!socket.connecting) return;
      const timer = setTimeout(
        () => outgoing.destroy(new Error(`no connection within ${CONNECT_TIMEOUT_MS / 1000} s`)),
        CONNECT_TIMEOUT_MS,
      );
      const settle = (): void => clearTimeout(timer);
      socket.once('connect', settle).once('close', settle);
    });
    return outgoing;
  }

  /** Whether anybody listens there; says why not. */
  async probe(timeoutMs: number): Promise<string | null> {
    const { hostname, port, protocol } = this.target;
    return await new Promise((resolve) => {
      const socket = connect({
        host: hostname.replace(/^\[|\]$/g, ''),
        port: port === '' ? (protocol === 'https:' ? 443 : 80) : Number(port),
      });
      const settle = (problem: string | null): void => {
        socket.destroy();
        resolve(problem);
      };
      socket.setTimeout(timeoutMs, () => settle('the app does not answer'));
      socket.once('connect', () => settle(null));
      socket.once('error', () => settle('the app cannot be reached'));
    });
  }

  unreachable(cause: Error): RivuletError {
    const { code } = cause as NodeJS.ErrnoException;
    return new RivuletError(
      'APP_UNREACHABLE',
      `the app behind the proxy did not answer: ${code ?? cause.message}`,
      {
        cause,
        hint: 'is the app running, and is --target its address?',
      },
    );
  }

  [Symbol.dispose](): void {
    this.#agent.destroy();
  }
}
