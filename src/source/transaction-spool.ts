import { closeSync, mkdirSync, openSync, rmSync, writeSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { dirname } from 'node:path';
import { isDiskFull, ProtocolError, RivuletError } from '../errors.ts';
import { HOOK_PREFIX, LONGEST_MESSAGE_BYTES, ownPrefix } from './transaction-encoder.ts';

/** Read at once. A message that is larger has a buffer of its own. */
const READ_BYTES = 512 * 1024;

/** A message stands in the file as on the wire: CopyData (type, length), XLogData (type, positions, time), message. */
const COPY_DATA_TYPE_BYTES = 1;
const RECORD_HEADER_BYTES = 5 + 25;

const RELATION = 0x52; // R
const TYPE = 0x59; // Y
const ORIGIN = 0x4f; // O
const MESSAGE = 0x4d; // M

/** A relation as the server described it, and when in the order of all descriptions. */
export interface Description {
  readonly order: number;
  /** A Relation message, as it is outside of streamed blocks. */
  readonly message: Buffer;
}

export interface SpoolReader {
  /** Takes a message, as it is outside of streamed blocks. False: it cannot be taken before onBlocked(). */
  readonly take: (bytes: Buffer, from: number, to: number) => boolean;
  readonly onBlocked: () => Promise<void>;
  /** Behind every chunk of messages. */
  readonly onChunk: () => Promise<void>;
}

/**
 * The messages of one transaction that is still open, in a file of its own; docs/formats.md has the layout. The
 * server sends them in blocks, and names with each the subtransaction that it is of. What a rollback to a savepoint
 * takes back stays in the file, and is passed over when it is read.
 *
 * Logical messages, which is what schema changes come as, all come under the transaction's own name, though. Only a
 * row of the transaction itself behind one shows that it was not made behind a savepoint that can still be rolled
 * back to. Of one without such a row nobody knows what the next rollback does to it: it is read as a doubtful one.
 *
 * https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html
 */
export class TransactionSpool {
  readonly xid: number;
  readonly #file: string;
  readonly #readBytes: number;
  #fd: number | null = null;
  #bytes = 0;
  /** Messages that lie back to back in what the socket gave, and are still to be written. */
  #source: Buffer = NOTHING;
  #from = 0;
  #to = 0;
  readonly #aborted = new Set<number>();
  /** Where hook messages begin behind which the transaction itself has sent no row yet. */
  #latestHooks: number[] = [];
  readonly #doubtful = new Set<number>();
  readonly #described = new Map<number, Description & { readonly xid: number }>();

  constructor(options: { readonly file: string; readonly xid: number; readonly readBytes?: number }) {
    this.xid = options.xid;
    this.#file = options.file;
    this.#readBytes = options.readBytes ?? READ_BYTES;
  }

  /** Size of the file, with what is on its way there. */
  get bytes(): number {
    return this.#bytes + this.#to - this.#from;
  }

  /** The newest descriptions in it that were not rolled back, by OID. */
  get described(): ReadonlyMap<number, Description> {
    return new Map([...this.#described].filter(([, { xid }]) => !this.#aborted.has(xid)));
  }

  /** A block of messages begins. */
  begin(): void {
    this.#attempt(0, () => {
      mkdirSync(dirname(this.#file), { recursive: true });
      this.#fd = openSync(this.#file, 'a');
    });
  }

  /**
   * A message of the block; `from` is its type byte, and its wire headers stand before it. What lies back to back is
   * written at once, from where it lies: the bytes must stay as they are until the next call, flush(), or end().
   * `order` counts descriptions, of whatever transaction.
   */
  append(bytes: Buffer, from: number, to: number, order: number): void {
    const type = bytes[from]!;
    // Types are known from the catalog, and origins do not matter.
    if (type === TYPE || type === ORIGIN) return;
    const xid = readUInt32(bytes, from + 1);
    if (type === MESSAGE) {
      const prefix = ownPrefix(bytes, from + 14);
      if (prefix === null) return;
      if (prefix === HOOK_PREFIX && to - from <= LONGEST_MESSAGE_BYTES) this.#latestHooks.push(this.bytes);
    } else {
      if (this.#latestHooks.length > 0 && xid === this.xid) this.#latestHooks = [];
      if (type === RELATION) this.#describe(xid, order, withoutXid(bytes, from, to));
    }
    const start = from - RECORD_HEADER_BYTES;
    if (bytes !== this.#source || start !== this.#to) {
      this.flush();
      this.#source = bytes;
      this.#from = start;
    }
    this.#to = to;
  }

  /** The block is over. */
  end(): void {
    this.flush();
    this.#close();
  }

  /** A subtransaction was rolled back, and with it what it sent. */
  abort(subxid: number): void {
    this.#aborted.add(subxid);
    for (const at of this.#latestHooks) this.#doubtful.add(at);
  }

  /** Reads what was not rolled back, in order. */
  async read({ take, onBlocked, onChunk }: SpoolReader): Promise<void> {
    if (this.#bytes === 0) return;
    await using file = await open(this.#file);
    let bytes = Buffer.allocUnsafeSlow(this.#readBytes);
    let filled = 0;
    for (let start = 0; start < this.#bytes; ) {
      const { bytesRead } = await file.read(bytes, filled, bytes.length - filled, start + filled);
      if (bytesRead === 0) throw new ProtocolError(`the spooled transaction ${this.xid} is cut short`);
      filled += bytesRead;
      let at = 0;
      let end = recordEnd(bytes, at, filled);
      for (; end <= filled; at = end, end = recordEnd(bytes, at, filled)) {
        const from = at + RECORD_HEADER_BYTES;
        const type = bytes[from]!;
        if (!this.#isAborted(readUInt32(bytes, from + 1))) {
          // The id goes: as it is outside of blocks, the rest stands behind the type.
          bytes[from + 4] = type;
          if (type === MESSAGE && this.#doubtful.has(start + at)) {
            const doubtful = doubtfulMessage(bytes, from + 4, end);
            while (!take(doubtful, 0, doubtful.length)) await onBlocked();
          } else {
            while (!take(bytes, from + 4, end)) await onBlocked();
          }
        }
      }
      if (at > 0) await onChunk();
      start += at;
      // A huge message has a buffer of its own, which it fills.
      const size = Math.max(this.#readBytes, end - at);
      const next = size === bytes.length ? bytes : Buffer.allocUnsafeSlow(size);
      filled = bytes.copy(next, 0, at, filled);
      bytes = next;
    }
  }

  /** May be called at any time, and twice. */
  remove(): void {
    this.#close();
    rmSync(this.#file, { force: true });
  }

  #describe(xid: number, order: number, message: Buffer): void {
    this.#described.set(message.readUInt32BE(1), { xid, order, message });
  }

  #isAborted(xid: number): boolean {
    if (xid === this.xid || this.#aborted.size === 0) return false;
    return this.#aborted.has(xid);
  }

  /** Writes what is still to be written. */
  flush(): void {
    if (this.#source === NOTHING) return;
    const bytes = this.#source;
    const to = this.#to;
    this.#attempt(to - this.#from, () => {
      for (; this.#from < to; ) {
        const written = writeSync(this.#fd!, bytes, this.#from, to - this.#from);
        this.#from += written;
        this.#bytes += written;
      }
    });
    this.#source = NOTHING;
    this.#from = 0;
    this.#to = 0;
  }

  #attempt(bytes: number, step: () => void): void {
    try {
      step();
    } catch (cause) {
      const what = 'keeping the changes of a transaction that is still open failed';
      if (!isDiskFull(cause))
        throw new RivuletError('FILE_UNUSABLE', `${what}: ${(cause as Error).message}`, {
          cause,
          hint: 'check the disk and the permissions of the data directory',
        });
      throw new RivuletError('DISK_FULL', `${what}: no space is left on the device`, {
        cause,
        hint: 'free some space: the work goes on by itself',
        facts: { bytes },
      });
    }
  }

  #close(): void {
    if (this.#fd === null) return;
    const fd = this.#fd;
    this.#fd = null;
    closeSync(fd);
  }
}

/** Where the record that starts at `at` ends; behind `filled` if that cannot be told yet. */
function recordEnd(bytes: Buffer, at: number, filled: number): number {
  if (at + RECORD_HEADER_BYTES > filled) return at + RECORD_HEADER_BYTES;
  return at + COPY_DATA_TYPE_BYTES + readUInt32(bytes, at + COPY_DATA_TYPE_BYTES);
}

/** Buffer's own method checks its arguments, for more than it costs to read. */
function readUInt32(bytes: Buffer, at: number): number {
  return ((bytes[at]! << 24) | (bytes[at + 1]! << 16) | (bytes[at + 2]! << 8) | bytes[at + 3]!) >>> 0;
}

const NOTHING = Buffer.alloc(0);

function withoutXid(bytes: Buffer, from: number, to: number): Buffer {
  return Buffer.concat([bytes.subarray(from, from + 1), bytes.subarray(from + 5, to)]);
}

/** What comes in a doubtful message's place, as it is outside of blocks: it carries that one's text. */
function doubtfulMessage(bytes: Buffer, from: number, to: number): Buffer {
  const contentFrom = bytes.indexOf(0, from + 10) + 1 + 4;
  const content = Buffer.from(JSON.stringify({ doubtful: bytes.utf8Slice(contentFrom, to) }));
  const message = Buffer.concat([bytes.subarray(from, contentFrom), content]);
  message.writeUInt32BE(content.length, contentFrom - from - 4);
  return message;
}
