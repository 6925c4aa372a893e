import { ReplicationStream } from '../../src/source/replication-stream.ts';
import type { TestPostgres } from '../helpers/postgres.ts';
import { waitUntil } from '../helpers/wait-until.ts';

const INSERT = 0x49; // I
const NAME = 'raw';

/**
 * A slot of its own on one table with an integer key, whose bytes are thrown away: when the server itself sends a row
 * that was inserted, whatever is made of it elsewhere.
 */
export class RawSlot implements AsyncDisposable {
  readonly #stop = new AbortController();
  readonly #arrivedMs = new Map<number, number>();
  #running: Promise<void> = Promise.resolve();

  static async open(postgres: TestPostgres, table: string): Promise<RawSlot> {
    await postgres.sql(`create publication ${NAME} for table ${table}`);
    await postgres.sql(`select pg_create_logical_replication_slot('${NAME}', 'pgoutput')`);
    const slot = new RawSlot();
    let position = 0n;
    let isOpen = false;
    const stream = new ReplicationStream({
      url: postgres.url,
      slot: NAME,
      applicationName: NAME,
      publication: NAME,
      from: 0n,
      onBegun: async () => {
        isOpen = true;
      },
      onMessage: (bytes, from) => {
        if (bytes[from] === INSERT) slot.#arrivedMs.set(insertedKey(bytes, from), performance.now());
        return true;
      },
      onKeepalive: (at) => {
        position = at;
      },
      onChunk: () => undefined,
      durablePosition: () => position,
      // As the replicator asks for it: otherwise the server has a large transaction to send all at once.
      delivery: 'blocks',
    });
    slot.#running = stream.run(slot.#stop.signal);
    slot.#running.catch(() => undefined);
    await waitUntil('the second slot', () => isOpen);
    return slot;
  }

  /** When the row with this key came, by performance.now(); null: not yet. */
  arrivedMs(key: number): number | null {
    return this.#arrivedMs.get(key) ?? null;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    await this.#running;
  }
}

/** Type, OID, 'N', number of columns, 't', length, text. */
function insertedKey(bytes: Buffer, from: number): number {
  const length = bytes.readUInt32BE(from + 9);
  return Number(bytes.latin1Slice(from + 13, from + 13 + length));
}
