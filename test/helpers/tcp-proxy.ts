import { once } from 'node:events';
import { connect, createServer, type Server, type Socket } from 'node:net';

export type Direction = 'to server' | 'to client';

/** One connection through the proxy. */
export interface ProxiedConnection {
  /** In the order in which they were opened, from 1. */
  readonly number: number;
  /** Bytes passed on so far. */
  readonly bytes: Readonly<Record<Direction, number>>;
  /** Reads no more in this direction until resume(): for both ends the other one has gone quiet. */
  stall(direction: Direction): void;
  resume(direction: Direction): void;
  /** Ends it with a reset, on both sides. */
  cut(): void;
}

export interface TcpProxyOptions {
  readonly host?: string;
  readonly port: number;
  /** Everything goes through here; what it gives back is passed on. A promise holds up this direction until it resolves. */
  readonly onChunk?: (
    chunk: Buffer,
    direction: Direction,
    connection: ProxiedConnection,
  ) => Buffer | Promise<Buffer>;
}

/** A TCP proxy on a port of its own that can stall, cut and count. */
export class TcpProxy implements AsyncDisposable {
  readonly #options: TcpProxyOptions;
  readonly #server: Server;
  readonly #open = new Map<ProxiedConnection, readonly Socket[]>();
  #opened = 0;
  #isRefusing = false;

  private constructor(options: TcpProxyOptions) {
    this.#options = options;
    this.#server = createServer((client) => this.#accept(client));
  }

  static async start(options: TcpProxyOptions): Promise<TcpProxy> {
    const proxy = new TcpProxy(options);
    proxy.#server.listen(0, '127.0.0.1');
    await once(proxy.#server, 'listening');
    return proxy;
  }

  get port(): number {
    return (this.#server.address() as { port: number }).port;
  }

  /** `url`, by way of the proxy. */
  through(url: string): string {
    const proxied = new URL(url);
    proxied.hostname = '127.0.0.1';
    proxied.port = String(this.port);
    return proxied.href.replace(/\/$/, '');
  }

  /** Connections opened since the beginning. */
  get opened(): number {
    return this.#opened;
  }

  get connections(): readonly ProxiedConnection[] {
    return [...this.#open.keys()];
  }

  /** Cuts every connection that is open. */
  cutAll(): void {
    for (const connection of this.#open.keys()) connection.cut();
  }

  /** Cuts new connections at once, or stops doing so. */
  refuse(isRefusing: boolean): void {
    this.#isRefusing = isRefusing;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.cutAll();
    this.#server.close();
    await once(this.#server, 'close');
  }

  #accept(client: Socket): void {
    client.on('error', () => undefined);
    if (this.#isRefusing) {
      client.resetAndDestroy();
      return;
    }
    const { host = '127.0.0.1', port, onChunk = (chunk: Buffer) => chunk } = this.#options;
    const server = connect({ host, port, noDelay: true });
    client.setNoDelay(true);
    const sources = { 'to server': client, 'to client': server } as const;
    const bytes = { 'to server': 0, 'to client': 0 };
    const cut = (): void => {
      for (const socket of [client, server]) {
        // A reset in the middle of an orderly end leaves a handle that Node never closes: it spins at its exit.
        if (socket.writableEnded) socket.destroy();
        else if (!socket.destroyed) socket.resetAndDestroy();
      }
      this.#open.delete(connection);
    };
    const connection: ProxiedConnection = {
      number: ++this.#opened,
      bytes,
      stall: (direction) => sources[direction].pause(),
      resume: (direction) => sources[direction].resume(),
      cut,
    };
    this.#open.set(connection, [client, server]);
    const pass = (direction: Direction, from: Socket, to: Socket): void => {
      const write = (chunk: Buffer): void => {
        bytes[direction] += chunk.length;
        if (chunk.length === 0 || to.destroyed || to.write(chunk)) return;
        from.pause();
        to.once('drain', () => from.resume());
      };
      from.on('data', (chunk) => {
        const passed = onChunk(chunk, direction, connection);
        if (Buffer.isBuffer(passed)) {
          write(passed);
          return;
        }
        from.pause();
        void passed.then((held) => {
          from.resume();
          write(held);
        });
      });
      from.on('end', () => to.end());
      from.on('error', cut);
      from.on('close', () => {
        if (client.destroyed && server.destroyed) this.#open.delete(connection);
      });
    };
    pass('to server', client, server);
    pass('to client', server, client);
  }
}
