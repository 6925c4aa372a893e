import { once } from 'node:events';
import type { Socket } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import pg from 'pg';
import { LogicalReplicationService, PgoutputPlugin } from 'pg-logical-replication';
import { ProtocolError, RivuletError } from '../errors.ts';
import { formatLsn, type Lsn, parseLsn } from '../lsn.ts';
import { clientConfig, isTooLong, pinSession, postgresError } from './connection.ts';
import { type CopyDataTap, tapCopyData } from './copy-data-tap.ts';
import { POSTGRES_EPOCH_US } from './postgres-epoch.ts';

/**
 * How often the server hears from us, and is asked for its own position when nothing else came: an idle
 * database's position then moves about twice a second. Well inside any sensible wal_sender_timeout (60 s).
 */
export const DEFAULT_STATUS_INTERVAL_MS = 500;

/** The server answers every status within moments; a connection silent for this long is dead. */
export const DEFAULT_SILENCE_LIMIT_MS = 30_000;

/**
 * How transactions come. In blocks: large ones while they are open. Whole: each at its commit; the server keeps a large
 * one on its disk until then. Binary: whole, and with values as the server's types have them in memory, which for some are
 * much shorter than what they print as; no message of the server's can be longer than 1 GB.
 * Versions 3 and 4 of the protocol add prepared transactions and parallel appliers.
 */
export type Delivery = 'blocks' | 'whole' | 'binary';

const DELIVERY: Readonly<Record<Delivery, string>> = {
  blocks: "proto_version '2', streaming 'on'",
  whole: "proto_version '1'",
  binary: "proto_version '1', binary 'true'",
};

/**
 * When a transaction has changed so much, the server sends that ahead in one block, behind which all others wait, some
 * tenths of a second. With its own default of 64 MB it is two seconds. Where less is set, that holds.
 * https://www.postgresql.org/docs/current/runtime-config-resource.html#GUC-LOGICAL-DECODING-WORK-MEM
 */
const BLOCK_KB = 8 * 1024;
const LIMIT_BLOCKS = `select set_config(name, '${BLOCK_KB}kB', false) from pg_settings
  where name = 'logical_decoding_work_mem' and setting::int > ${BLOCK_KB}`;

/**
 * A server that shuts down asks for our position, and again as soon as it has it, until that is its very end;
 * otherwise it asks twice in wal_sender_timeout. After so many of them in a row, and so long, it is let go.
 */
const SHUTDOWN_ASKS = 20;
const ASKS_APART_MS = 500;
const SHUTDOWN_PATIENCE_MS = 2_000;

/** A server that has ended the stream has said why before. */
const LAST_WORD_MS = 500;
const LAST_WORD_POLL_MS = 10;

/** What it says of a type that has no binary form. */
const UNDEFINED_FUNCTION = '42883';

const XLOG_DATA = 0x77; // w
const XLOG_DATA_HEADER_BYTES = 25;
const KEEPALIVE = 0x6b; // k

export interface ReplicationStreamOptions {
  readonly url: string;
  readonly slot: string;
  readonly publication: string;
  /** Where to go on; the server itself never starts before the slot's confirmed position. */
  readonly from: Lsn;
  /**
   * The server has begun to stream, and holds the slot for this connection: nobody can drop it now. Nothing is
   * given to `onMessage` and nothing acknowledged before this resolves; a rejection ends the stream.
   */
  readonly onBegun: (walSender: WalSender) => Promise<void>;
  /** One pgoutput message. False: stop until resume(), then give the same message again. */
  readonly onMessage: (bytes: Buffer, from: number, to: number) => boolean;
  /** The server's position, behind everything that it has sent so far, and its clock, µs since 2000. */
  readonly onKeepalive: (position: Lsn, sentUs: number) => void;
  /** Behind every chunk from the socket. */
  readonly onChunk: () => void;
  /** Up to where everything is durable: what the server may forget. */
  readonly durablePosition: () => Lsn;
  readonly statusIntervalMs?: number;
  readonly silenceLimitMs?: number;
  /** On the stream's own connection, before the stream begins: only there can a temporary slot be made for it. */
  readonly prepare?: (session: pg.ClientBase) => Promise<void>;
  /** Default: whole. Blocks are for OpenTransactions. */
  readonly delivery?: Delivery;
  /** Shows in pg_stat_activity. */
  readonly applicationName?: string;
}

/** The server's end of the connection, as it says itself. */
export interface WalSender {
  readonly pid: number;
  readonly systemIdentifier: string;
  readonly timeline: number;
  /** Where its WAL ended when the stream was asked for. */
  readonly walEnd: Lsn;
}

/**
 * One connection's worth of logical replication. pg-logical-replication opens the session and writes the
 * standby status messages; the bytes of the stream go from the socket to `onMessage` without passing it.
 *
 * Three of the client's habits are turned off or allowed for here: it acknowledges on its own whatever it has
 * received (so its timer and its automatic acknowledgement are off), it adds one to every position (which
 * could skip a transaction that begins exactly there, so we give it one less), and it quotes no names.
 */
export class ReplicationStream {
  readonly #options: ReplicationStreamOptions;
  readonly #service: LogicalReplicationService;
  #tap: CopyDataTap | null = null;
  #isOpen = false;
  /** Between a message that was not taken and resume(): the server has no chance to be heard. */
  #isHeld = false;
  #lastHeardMs = 0;
  #lastDataMs = Number.NEGATIVE_INFINITY;
  #asks = 0;
  #asksSinceMs = 0;
  #askedAtMs = Number.NEGATIVE_INFINITY;
  #failure: unknown = null;
  #stopped = false;
  /** Nothing that comes counts any more. */
  #isOver = false;

  constructor(options: ReplicationStreamOptions) {
    this.#options = options;
    this.#service = new LogicalReplicationService(
      { ...clientConfig(options.url), application_name: options.applicationName ?? 'rivulet replicator' },
      { acknowledge: { auto: false, timeoutSeconds: 0 } },
    );
    hearEarlyErrors(this.#service, () => this.#throwIfStopped());
  }

  /** Streams until `signal` aborts (resolves) or the connection breaks or a handler throws (rejects). */
  async run(signal: AbortSignal): Promise<void> {
    const { options, service } = { options: this.#options, service: this.#service };
    const { statusIntervalMs = DEFAULT_STATUS_INTERVAL_MS, silenceLimitMs = DEFAULT_SILENCE_LIMIT_MS } =
      options;
    // Errors reach us through the promise of subscribe(); without a listener the emitter would throw them.
    service.on('error', (error: Error) => this.#fail(error));
    const abort = (): void => {
      this.#stopped = true;
      void this.#end();
    };
    signal.addEventListener('abort', abort, { once: true });
    const timer = setInterval(() => {
      if (this.#tap !== null && !this.#isHeld && performance.now() - this.#lastHeardMs > silenceLimitMs) {
        this.#fail(
          new RivuletError('POSTGRES_UNREACHABLE', `the server has been silent for ${silenceLimitMs} ms`),
        );
      }
      // Where the server is, its data say, too.
      this.sendStatus(performance.now() - this.#lastDataMs > statusIntervalMs / 2);
    }, statusIntervalMs);
    try {
      if (signal.aborted) return;
      this.#lastHeardMs = performance.now();
      const plugin = new TappedPgoutput(options, (client, walSender) => {
        this.#throwIfStopped();
        this.#lastHeardMs = performance.now();
        this.#tap = tapCopyData(
          client,
          (bytes, from, to) => this.#isOver || (this.#isOpen && this.#copyData(bytes, from, to)),
          () => {
            if (this.#isOpen) options.onChunk();
          },
          (error) => this.#fail(error),
        );
        service.once('start', () => {
          plugin.begun();
          void this.#begin(walSender);
        });
      });
      await service.subscribe(plugin, options.slot, formatLsn(options.from));
      if (!this.#stopped && this.#failure === null) {
        throw new RivuletError('POSTGRES_UNREACHABLE', 'the server ended the replication stream');
      }
    } catch (error) {
      if (!this.#stopped) throw this.#failure ?? this.#streamError(error);
    } finally {
      clearInterval(timer);
      signal.removeEventListener('abort', abort);
      await this.#end();
    }
    if (this.#failure !== null && !this.#stopped) throw this.#failure;
  }

  /** Tells the server what is durable; with `ask`, it answers at once with its own position. */
  sendStatus(ask: boolean): void {
    if (!this.#isOpen) return;
    const stream = internalsOf(this.#service)._connection?.stream;
    if (stream?.writable) stream.write(standbyStatus(this.#options.durablePosition(), ask));
  }

  /** Reads no more until resume(): what the server sends meanwhile waits in the socket. Not while a message is held. */
  pause(): void {
    this.#isHeld = true;
    this.#tap?.pause();
  }

  resume(): void {
    this.#isHeld = false;
    this.#lastHeardMs = performance.now();
    this.#tap?.resume();
  }

  async #begin(walSender: WalSender): Promise<void> {
    try {
      await this.#options.onBegun(walSender);
    } catch (error) {
      if (error instanceof RivuletError && error.code === 'POSTGRES_UNREACHABLE') await this.#lastWord();
      this.#fail(error);
    }
    if (this.#failure !== null || this.#stopped) return;
    this.#isOpen = true;
    this.resume();
  }

  /** Where the server has ended the stream already, what it says of it waits in the socket: that is the reason then. */
  async #lastWord(): Promise<void> {
    this.#isOver = true;
    this.#tap?.resume();
    for (const untilMs = performance.now() + LAST_WORD_MS; performance.now() < untilMs; ) {
      if (this.#failure !== null || this.#stopped) return;
      await delay(LAST_WORD_POLL_MS);
    }
  }

  #copyData(bytes: Buffer, from: number, to: number): boolean {
    this.#lastHeardMs = performance.now();
    const type = bytes[from];
    if (type === XLOG_DATA) {
      this.#lastDataMs = this.#lastHeardMs;
      this.#isHeld = !this.#options.onMessage(bytes, from + XLOG_DATA_HEADER_BYTES, to);
      return !this.#isHeld;
    }
    if (type !== KEEPALIVE)
      throw new ProtocolError(`the replication stream has a message of the unknown type ${type}`);
    this.#options.onKeepalive(bytes.readBigUInt64BE(from + 1), Number(bytes.readBigInt64BE(from + 9)));
    if (bytes[from + 17] === 1) {
      this.sendStatus(false);
      this.#wasAsked();
    }
    return true;
  }

  /** Whoever shuts a server down must not wait for a disk or a store of ours: the slot keeps what we have not got. */
  #wasAsked(): void {
    const nowMs = performance.now();
    if (nowMs - this.#askedAtMs > ASKS_APART_MS) {
      this.#asks = 0;
      this.#asksSinceMs = nowMs;
    }
    this.#askedAtMs = nowMs;
    this.#asks++;
    if (this.#asks >= SHUTDOWN_ASKS && nowMs - this.#asksSinceMs >= SHUTDOWN_PATIENCE_MS)
      this.#fail(new RivuletError('POSTGRES_UNREACHABLE', 'the server is shutting down'));
  }

  /** Stopped while there was no connection yet that could be broken. */
  #throwIfStopped(): void {
    if (this.#stopped || this.#failure !== null) throw new RivuletError('CLOSED', 'the stream was stopped');
  }

  #fail(error: unknown): void {
    if (this.#failure !== null || this.#stopped) return;
    this.#failure = this.#streamError(error);
    void this.#end();
  }

  #streamError(error: unknown): RivuletError {
    const { code } = error as { code?: unknown };
    const hasNoBinary = this.#options.delivery === 'binary' && code === UNDEFINED_FUNCTION;
    if (!isTooLong(error) && !hasNoBinary) return postgresError(error, 'streaming from the replication slot');
    return new RivuletError(
      'CHANGE_TOO_LONG',
      `a change is longer than the server can send: ${(error as Error).message}`,
      {
        hint: 'a publication that lists the columns of its tables can leave out the long one',
        cause: error,
      },
    );
  }

  async #end(): Promise<void> {
    // The client's own stop() waits for the server's goodbye, which a dead server never says.
    const connection = internalsOf(this.#service)._connection;
    if (connection !== null) {
      const { stream } = connection;
      const closed = stream.closed ? null : once(stream, 'close');
      stream.destroy();
      await closed;
    }
    await this.#service.stop().catch(() => undefined);
  }
}

/**
 * "Standby status update" in a CopyData message: the same position as written, flushed and applied. The client's own
 * adds one to the position that it is given: what begins right there, the next commit, would be taken for known.
 * https://www.postgresql.org/docs/current/protocol-replication.html
 */
function standbyStatus(durable: Lsn, ask: boolean): Buffer {
  const message = Buffer.allocUnsafe(39);
  message[0] = 0x64;
  message.writeUInt32BE(message.length - 1, 1);
  message[5] = 0x72;
  message.writeBigUInt64BE(durable, 6);
  message.writeBigUInt64BE(durable, 14);
  message.writeBigUInt64BE(durable, 22);
  message.writeBigInt64BE(BigInt(Date.now()) * 1000n - POSTGRES_EPOCH_US, 30);
  message[38] = ask ? 1 : 0;
  return message;
}

/** What of the package's own is needed beyond its interface. */
interface ServiceInternals {
  _client: pg.Client | null;
  _connection: { readonly stream: Socket } | null;
  client(): Promise<[pg.Client, unknown]>;
}

function internalsOf(service: LogicalReplicationService): ServiceInternals {
  return service as unknown as ServiceInternals;
}

/**
 * The package listens for errors once it is connected. A backend that is terminated at that moment says so in the
 * same packet as its welcome: nobody listened yet, and the process ended.
 */
function hearEarlyErrors(service: LogicalReplicationService, throwIfStopped: () => void): void {
  const internals = internalsOf(service);
  internals.client = async () => {
    await service.stop();
    throwIfStopped();
    const client = new pg.Client({ ...service.clientConfig, replication: 'database' } as pg.ClientConfig);
    client.on('error', (error) => service.emit('error', error));
    const { connection } = client as unknown as { connection: { readonly stream: Socket } };
    // Known before it is connected: a connection that is on its way must be breakable, too.
    internals._client = client;
    internals._connection = connection;
    await client.connect();
    return [client, connection];
  };
}

/** What pgoutput, and whatever stands in for it, says to a version or an option that it does not have. */
function isRefusedProtocol(error: unknown): boolean {
  const { code, message } = error as { code?: unknown; message?: unknown };
  return code === '0A000' || /unrecognized pgoutput option/.test(String(message));
}

/** Starts pgoutput on a client whose CopyData goes elsewhere. */
class TappedPgoutput extends PgoutputPlugin {
  readonly #options: ReplicationStreamOptions;
  readonly #attach: (client: pg.Client, walSender: WalSender) => void;
  #hasBegun = false;

  constructor(options: ReplicationStreamOptions, attach: (client: pg.Client, walSender: WalSender) => void) {
    super({ protoVersion: 1, publicationNames: [options.publication], messages: true });
    this.#options = options;
    this.#attach = attach;
  }

  /** The server sends: an error from now on is none of how it was asked. */
  begun(): void {
    this.#hasBegun = true;
  }

  override parse(): never {
    throw new ProtocolError('a replication message reached the client although it was tapped');
  }

  /** As the client would, but with session settings pinned and names quoted, which it does not do. */
  override async start(client: pg.Client, slot: string, from: string): Promise<unknown> {
    await pinSession(client);
    await this.#options.prepare?.(client);
    const { rows: self } = await client.query('select pg_backend_pid() as pid');
    const { rows: system } = await client.query('IDENTIFY_SYSTEM');
    this.#attach(client, {
      pid: self[0].pid,
      systemIdentifier: system[0].systemid,
      timeline: Number(system[0].timeline),
      walEnd: parseLsn(system[0].xlogpos),
    });
    const publication = this.#options.publication.replaceAll('"', '""').replaceAll("'", "''");
    const start = (delivery: Delivery): Promise<unknown> =>
      client.query(
        `START_REPLICATION SLOT "${slot}" LOGICAL ${from} (${DELIVERY[delivery]}, publication_names '"${publication}"', messages 'true')`,
      );
    const { delivery = 'whole' } = this.#options;
    if (delivery !== 'blocks') return start(delivery);
    await client.query(LIMIT_BLOCKS);
    try {
      return await start('blocks');
    } catch (error) {
      if (this.#hasBegun || !isRefusedProtocol(error)) throw error;
      await client.query('reset logical_decoding_work_mem');
      return start('whole');
    }
  }
}
