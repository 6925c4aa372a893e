import { Agent, type ClientRequest, request } from 'node:http';
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
  readonly #address: { readonly host: string; readonly port: number };
  readonly #agent: Agent;

  constructor(target: string) {
    this.target = new URL(target);
    const { hostname, port } = this.target;
    this.#address = { host: hostname.replace(/^\[|\]$/g, ''), port: port === '' ? 80 : Number(port) };
    this.#agent = new Agent({
      keepAlive: true,
      scheduling: 'lifo',
      maxFreeSockets: MAX_IDLE_CONNECTIONS,
      timeout: IDLE_TIMEOUT_MS,
    });
  }

  /**
   * Begins a request with exactly these headers; one for an upgrade on a connection of its own, which nobody gets
   * afterwards.
   */
  begin(
    method: string,
    path: string,
    headers: readonly string[],
    { isUpgrade }: { readonly isUpgrade: boolean },
  ): ClientRequest {
    const outgoing = request({
      ...this.#address,
      method,
      path,
      headers,
      agent: isUpgrade ? false : this.#agent,
      maxHeaderSize: MAX_HEADER_BYTES,
      setDefaultHeaders: false,
    });
    outgoing.on('socket', (socket) => {
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
    return await new Promise((resolve) => {
      const socket = connect(this.#address);
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
