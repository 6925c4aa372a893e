import type { Direction, ProxiedConnection } from './tcp-proxy.ts';

const COPY_DATA = 0x64; // d
const XLOG_DATA = 0x77; // w
const STANDBY_STATUS = 0x72; // r
const COMMIT = 0x43; // C
const BEGIN = 0x42; // B
const COPY_HEADER_BYTES = 5;
const XLOG_DATA_HEADER_BYTES = 25;

export interface SeenCommit {
  /** Where its record starts, and where it ends. */
  readonly commitLsn: bigint;
  readonly endLsn: bigint;
}

/**
 * Looks into replication connections that go through a TcpProxy (`onChunk`). Once armed it lets one more commit
 * through to the client, and nothing behind it on that connection.
 */
export class ReplicationTap {
  readonly #buffers = new Map<ProxiedConnection, Record<Direction, Buffer>>();
  readonly #begun = new Set<ProxiedConnection>();
  #isArmed = false;
  #held: { readonly connection: ProxiedConnection; readonly commit: SeenCommit } | null = null;
  /** Commit LSN (start) of every transaction that began to come since arm(), on other connections. */
  #begins: bigint[] = [];
  #flushed = 0n;

  /** The commit behind which everything is held back. */
  get held(): SeenCommit | null {
    return this.#held?.commit ?? null;
  }

  /** Start of the first commit that came on a connection behind the one that is held. */
  get firstBegin(): bigint | null {
    return this.#begins[0] ?? null;
  }

  /** Highest position that a client has told the server to be durable. */
  get flushed(): bigint {
    return this.#flushed;
  }

  arm(): void {
    this.#held = null;
    this.#begins = [];
    this.#isArmed = true;
  }

  /** Cuts the connection that is held. */
  cut(): void {
    this.#held?.connection.cut();
  }

  readonly onChunk = (chunk: Buffer, direction: Direction, connection: ProxiedConnection): Buffer => {
    let buffers = this.#buffers.get(connection);
    if (buffers === undefined) {
      buffers = { 'to server': Buffer.alloc(0), 'to client': Buffer.alloc(0) };
      this.#buffers.set(connection, buffers);
    }
    const bytes = Buffer.concat([buffers[direction], chunk]);
    let at = 0;
    let passed = 0;
    for (;;) {
      // A client's first message has no type.
      const isStartup = direction === 'to server' && !this.#begun.has(connection);
      const typeBytes = isStartup ? 0 : 1;
      if (at + typeBytes + 4 > bytes.length) break;
      const end = at + typeBytes + bytes.readUInt32BE(at + typeBytes);
      if (end > bytes.length) break;
      if (isStartup) this.#begun.add(connection);
      else this.#look(bytes.subarray(at, end), direction, connection);
      // The held commit itself goes through.
      if (
        direction === 'to server' ||
        this.#held?.connection !== connection ||
        this.#held.commit === this.#justSeen
      )
        passed = end;
      this.#justSeen = null;
      at = end;
    }
    buffers[direction] = bytes.subarray(at);
    return bytes.subarray(0, passed);
  };

  #justSeen: SeenCommit | null = null;

  #look(message: Buffer, direction: Direction, connection: ProxiedConnection): void {
    if (message[0] !== COPY_DATA) return;
    const kind = message[COPY_HEADER_BYTES];
    if (direction === 'to server') {
      if (kind !== STANDBY_STATUS) return;
      const flushed = message.readBigUInt64BE(COPY_HEADER_BYTES + 9);
      if (flushed > this.#flushed) this.#flushed = flushed;
      return;
    }
    if (kind !== XLOG_DATA || this.#held?.connection === connection) return;
    const body = COPY_HEADER_BYTES + XLOG_DATA_HEADER_BYTES;
    if (message[body] === BEGIN && this.#held !== null) this.#begins.push(message.readBigUInt64BE(body + 1));
    if (message[body] === COMMIT && this.#isArmed) {
      this.#isArmed = false;
      this.#justSeen = {
        commitLsn: message.readBigUInt64BE(body + 2),
        endLsn: message.readBigUInt64BE(body + 10),
      };
      this.#held = { connection, commit: this.#justSeen };
    }
  }
}
