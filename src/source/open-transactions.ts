import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { ProtocolError, RivuletError } from '../errors.ts';
import type { TransactionEncoder } from './transaction-encoder.ts';
import { type Description, TransactionSpool } from './transaction-spool.ts';

const BEGIN = 0x42; // B
const COMMIT = 0x43; // C
const RELATION = 0x52; // R
const STREAM_START = 0x53; // S
const STREAM_STOP = 0x45; // E
const STREAM_COMMIT = 0x63; // c
const STREAM_ABORT = 0x41; // A

/** What a commit of a streamed transaction does while its changes go their way. */
export interface ReplayHooks {
  /** The encoder waits for its resolve(). */
  readonly onBlocked: () => Promise<void>;
  /** The encoder has more to take; other work can have its turn. */
  readonly onChunk: () => Promise<void>;
}

/**
 * Stands in front of the encoder where the server streams large transactions before their commit. Their messages go
 * to spools on the disk, whatever their number and size; when one commits, its messages go through the encoder
 * between a Begin and a Commit, as if the server had sent them only now. So the encoder, and all behind it, sees
 * whole transactions in commit order, streamed or not. All others go straight through.
 *
 * Nothing here outlives its connection. The server acknowledges nothing of an open transaction on anybody's behalf:
 * it sends it from its beginning again.
 *
 * The server describes relations to every streamed transaction anew, and again after a rollback to a savepoint; at
 * the commit it takes what it said there for known to all. So at that point the descriptions of the others are given
 * again where they are newer.
 * https://www.postgresql.org/docs/current/protocol-logical-replication.html
 */
export class OpenTransactions implements Disposable {
  readonly #dir: string;
  readonly #encoder: TransactionEncoder;
  readonly #readBytes: number | undefined;
  readonly #spools = new Map<number, TransactionSpool>();
  /** The transaction of the block that is being received. */
  #block: TransactionSpool | null = null;
  #committing: { readonly spool: TransactionSpool; readonly commit: Buffer; isDone: boolean } | null = null;
  /** The newest descriptions that hold for every transaction, by OID. */
  readonly #described = new Map<number, Description>();
  #order = 0;

  /** `dir` is emptied: what a process before has left there is of no use. */
  constructor(options: {
    readonly dir: string;
    readonly encoder: TransactionEncoder;
    /** How much is read at once. */
    readonly readBytes?: number;
  }) {
    this.#dir = options.dir;
    this.#encoder = options.encoder;
    this.#readBytes = options.readBytes;
    rmSync(this.#dir, { recursive: true, force: true });
  }

  /** Between the begin and the end of a streamed block. */
  get isInBlock(): boolean {
    return this.#block !== null;
  }

  get count(): number {
    return this.#spools.size;
  }

  /** Bytes in all spools. */
  get bytes(): number {
    let sum = 0;
    for (const spool of this.#spools.values()) sum += spool.bytes;
    return sum;
  }

  /**
   * Handles one message (`from` is its type byte, before it stand the headers that it came with), whose memory must
   * stay as it is until flush(). False: the encoder is blocked, or a streamed transaction commits and replay() is due;
   * the same message is to be given again afterwards.
   */
  handle(bytes: Buffer, from: number, to: number): boolean {
    const type = bytes[from];
    if (this.#block !== null) {
      this.#inBlock(this.#block, bytes, from, to);
      return true;
    }
    switch (type) {
      case STREAM_START:
        this.#beginBlock(bytes.readUInt32BE(from + 1), bytes[from + 5] === 1);
        return true;
      case STREAM_COMMIT:
        return this.#commit(bytes, from, to);
      case STREAM_ABORT:
        this.#abort(bytes.readUInt32BE(from + 1), bytes.readUInt32BE(from + 5));
        return true;
      case RELATION:
        this.#described.set(bytes.readUInt32BE(from + 1), {
          order: ++this.#order,
          message: Buffer.from(bytes.subarray(from, to)),
        });
        return this.#encoder.handle(bytes, from, to);
      default:
        return this.#encoder.handle(bytes, from, to);
    }
  }

  /** The memory of what handle() was given is used no more. */
  flush(): void {
    try {
      this.#block?.flush();
    } catch (error) {
      throw this.withNeededSpace(error);
    }
  }

  /** Whether handle() stopped at the commit of a streamed transaction. */
  get isReplayDue(): boolean {
    return this.#committing !== null && !this.#committing.isDone;
  }

  /** Gives the transaction at whose commit handle() stopped to the encoder. */
  async replay({ onBlocked, onChunk }: ReplayHooks): Promise<void> {
    const committing = this.#committing!;
    const { spool, commit } = committing;
    const encoder = this.#encoder;
    const take = (bytes: Buffer, from: number, to: number): boolean => encoder.handle(bytes, from, to);
    const begin = beginMessage(commit, spool.xid);
    take(begin, 0, begin.length);
    await spool.read({ take, onBlocked, onChunk });
    for (const [oid, { order, message }] of spool.described) {
      const latest = this.#described.get(oid);
      if (latest === undefined || latest.order < order) this.#described.set(oid, { order, message });
      else if (!latest.message.equals(message))
        while (!take(latest.message, 0, latest.message.length)) await onBlocked();
    }
    take(commit, 0, commit.length);
    committing.isDone = true;
  }

  /** Forgets what is open. */
  [Symbol.dispose](): void {
    for (const spool of this.#spools.values()) spool.remove();
    this.#spools.clear();
    this.#block = null;
    rmSync(this.#dir, { recursive: true, force: true });
  }

  #beginBlock(xid: number, isFirst: boolean): void {
    let spool = this.#spools.get(xid);
    if (isFirst) {
      spool?.remove();
      spool = new TransactionSpool({
        file: join(this.#dir, `${xid}.spool`),
        xid,
        ...(this.#readBytes === undefined ? {} : { readBytes: this.#readBytes }),
      });
      this.#spools.set(xid, spool);
    }
    if (spool === undefined) throw unknownTransaction(xid);
    try {
      spool.begin();
    } catch (error) {
      throw this.withNeededSpace(error);
    }
    this.#block = spool;
  }

  #inBlock(spool: TransactionSpool, bytes: Buffer, from: number, to: number): void {
    const type = bytes[from];
    try {
      if (type === STREAM_STOP) {
        spool.end();
        this.#block = null;
      } else {
        if (type === RELATION) this.#order++;
        spool.append(bytes, from, to, this.#order);
      }
    } catch (error) {
      throw this.withNeededSpace(error);
    }
  }

  #commit(bytes: Buffer, from: number, to: number): boolean {
    if (this.#committing === null) {
      const xid = bytes.readUInt32BE(from + 1);
      const spool = this.#spools.get(xid);
      if (spool === undefined) throw unknownTransaction(xid);
      // The same as that of any other, but for the id.
      const commit = Buffer.from(bytes.subarray(from + 4, to));
      commit[0] = COMMIT;
      this.#committing = { spool, commit, isDone: false };
      return false;
    }
    const { spool } = this.#committing;
    this.#committing = null;
    this.#spools.delete(spool.xid);
    spool.remove();
    return true;
  }

  /** Of the transaction, or of a subtransaction. */
  #abort(xid: number, subxid: number): void {
    const spool = this.#spools.get(xid);
    if (subxid !== xid) {
      spool?.abort(subxid);
      return;
    }
    this.#spools.delete(xid);
    spool?.remove();
  }

  /**
   * What a full disk says, ours or the log's: all that is held here is thrown away with this and comes again, so there
   * has to be space for all of it. Any other error as it is.
   */
  withNeededSpace(error: unknown): unknown {
    if (!(error instanceof RivuletError) || error.code !== 'DISK_FULL') return error;
    return new RivuletError('DISK_FULL', error.message, {
      ...(error.hint === undefined ? {} : { hint: error.hint }),
      cause: error.cause,
      facts: { bytes: this.bytes + Number(error.facts.bytes ?? 0) },
    });
  }
}

function unknownTransaction(xid: number): ProtocolError {
  return new ProtocolError(`the streamed transaction ${xid} did not begin`);
}

/** LSN of the commit, its time and the transaction's id. */
function beginMessage(commit: Buffer, xid: number): Buffer {
  const begin = Buffer.alloc(21);
  begin[0] = BEGIN;
  commit.copy(begin, 1, 2, 10);
  commit.copy(begin, 9, 18, 26);
  begin.writeUInt32BE(xid, 17);
  return begin;
}
