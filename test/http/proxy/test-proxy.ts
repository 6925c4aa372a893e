import { once } from 'node:events';
import {
  createServer,
  type IncomingHttpHeaders,
  type IncomingMessage,
  type RequestListener,
  type RequestOptions,
  request,
  type Server,
} from 'node:http';
import { type AddressInfo, connect, type Socket } from 'node:net';
import { FileReplica, type PositionFile } from '../../../src/http/proxy/file-replica.ts';
import { type ProxyOptions, RivuletProxy } from '../../../src/http/proxy/rivulet-proxy.ts';
import { TokenTransport } from '../../../src/http/proxy/token-transport.ts';
import { silentLog } from '../../../src/log.ts';
import type { Lsn } from '../../../src/lsn.ts';
import { PositionWaiters, type WaitOptions, type WaitTarget } from '../../../src/replica/position-waiters.ts';
import type { Position } from '../../../src/token.ts';

/** An HTTP server of the test's own: the app behind the proxy. */
export class TestApp implements AsyncDisposable {
  readonly server: Server;
  /** Connections opened since the beginning. */
  connections = 0;

  private constructor(handler: RequestListener) {
    this.server = createServer(handler);
    this.server.on('connection', () => this.connections++);
  }

  static async start(handler: RequestListener = (_, response) => response.end('ok')): Promise<TestApp> {
    const app = new TestApp(handler);
    app.server.listen(0, '127.0.0.1');
    await once(app.server, 'listening');
    return app;
  }

  get url(): string {
    return `http://127.0.0.1:${(this.server.address() as AddressInfo).port}`;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.server.listening) return;
    this.server.close();
    this.server.closeAllConnections();
    await once(this.server, 'close');
  }
}

/** A replica's file that is where the test says. */
export class FakeFile implements PositionFile {
  #current: Position = { epoch: 'e1', lsn: 0x1000n };
  readonly #waiters = new PositionWaiters({ current: () => this.#current });

  current(): Position {
    return this.#current;
  }

  move(epoch: string, lsn: Lsn): void {
    this.#current = { epoch, lsn };
    this.#waiters.entered();
  }

  waitFor(target: WaitTarget, options?: WaitOptions): Promise<void> {
    return this.#waiters.waitFor(target, options);
  }

  close(): void {}
}

export async function startProxy(
  options: Partial<ProxyOptions> & { readonly target: string },
): Promise<RivuletProxy & AsyncDisposable> {
  return await RivuletProxy.start({
    listen: { host: '127.0.0.1', port: 0 },
    replica: new FileReplica(new FakeFile()),
    source: null,
    tokens: new TokenTransport(),
    log: silentLog(),
    ...options,
  });
}

export interface Answer {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  readonly body: string;
  readonly response: IncomingMessage;
}

/** One request on a connection of its own, unless an agent is given. */
export function send(
  url: string,
  options: RequestOptions & { readonly body?: string | Buffer } = {},
): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const { body, ...rest } = options;
    const outgoing = request(url, { agent: false, ...rest }, (response) => {
      let text = '';
      response.setEncoding('utf8').on('data', (chunk: string) => {
        text += chunk;
      });
      response.on('error', reject);
      response.on('end', () =>
        resolve({ status: response.statusCode!, headers: response.headers, body: text, response }),
      );
    });
    outgoing.on('error', reject);
    outgoing.end(body);
  });
}

/** A bare connection, with what has come over it so far. */
export class RawConnection implements Disposable {
  readonly socket: Socket;
  received = '';
  isEnded = false;

  constructor(url: string) {
    const { hostname, port } = new URL(url);
    this.socket = connect(Number(port), hostname);
    this.socket.setEncoding('latin1').on('data', (text: unknown) => {
      this.received += String(text);
    });
    this.socket.on('error', () => undefined);
    this.socket.on('close', () => {
      this.isEnded = true;
    });
  }

  [Symbol.dispose](): void {
    this.socket.destroy();
  }
}
