import type { Batch } from '../change/batch.ts';
import { abortFrame, CHANGE, FRAME, PART_HEADER_BYTES, TRANSACTION_HEADER_BYTES } from '../change/frame.ts';
import { FrameWriter } from '../change/frame-writer.ts';
import type { Relation, RowMove, SchemaChange } from '../change/relation.ts';
import type { ReloadBegin } from '../change/snapshot.ts';
import { ProtocolError } from '../errors.ts';
import type { Lsn } from '../lsn.ts';
import type { KeyText } from './key-range.ts';
import { POSTGRES_EPOCH_US } from './postgres-epoch.ts';
import { type RelationMessage, readRelationMessage } from './relation-message.ts';
import { RowEncoder } from './row-encoder.ts';

/** A transaction is handed on in parts of about this size, so that none has to fit into memory. */
export const DEFAULT_PART_BYTES = 512 * 1024;

/** The prefix of the logical messages that the hooks of `rivulet setup` write. */
export const HOOK_PREFIX = 'rivulet';

/** The prefix of those that mark a place for rows that are read again; the content is theirs alone. */
export const WATERMARK_PREFIX = 'rivulet.watermark';

/** The prefix of those that ask for tables to be read again: see rereadRequest(). */
export const REREAD_PREFIX = 'rivulet.reread';

/** Logical messages of any other prefix are somebody else's. */
const MESSAGE_PREFIXES: ReadonlySet<string> = new Set([HOOK_PREFIX, WATERMARK_PREFIX, REREAD_PREFIX]);
const LONGEST_PREFIX = Math.max(...[...MESSAGE_PREFIXES].map((prefix) => prefix.length));

/** Nobody of ours writes longer messages; somebody else's may be longer than a string can be, and count as empty. */
export const LONGEST_MESSAGE_BYTES = 128 * 1024 * 1024;

/**
 * The prefix of a logical message that stands at `at`, if it is one of ours. Those of others may be as long as Postgres lets
 * them be, and so may what they carry.
 */
export function ownPrefix(bytes: Buffer, at: number): string | null {
  const end = bytes.subarray(at, at + LONGEST_PREFIX + 1).indexOf(0);
  if (end < 0) return null;
  const prefix = bytes.latin1Slice(at, at + end);
  return MESSAGE_PREFIXES.has(prefix) ? prefix : null;
}

/** Insert, Update, Delete. */
const ROWS: ReadonlySet<number> = new Set([0x49, 0x55, 0x44]);

/** What the transaction of a watermark carries, beside nothing of its own. */
export interface ReloadStep {
  readonly oid: number;
  /** In the first step of a piece: which moment its rows are of, and whether what came before is void. */
  readonly begin: ReloadBegin | null;
  /** Changes of kind CHANGE.reloadRow, back to back. */
  readonly rows: Buffer;
  readonly rowCount: number;
  /** In the last step of a piece: the key that it goes up to; null: the table is whole. */
  readonly readUpTo?: KeyText | null;
}

/** A schema change, and what it does to rows that Postgres does not send. */
export interface TrackedChange extends SchemaChange {
  readonly moves?: readonly RowMove[];
}

/** What the encoder asks of whoever knows the published schema. */
export interface SchemaSource {
  /** The relation as the stream has it now; `unknown` where it does not fit the message; `ignored` if not mirrored. */
  match(message: RelationMessage): Relation | 'unknown' | 'ignored';
  /**
   * Takes a hook's message at its place in the stream: the change it makes, null if it makes none, `unknown`
   * if the hook itself failed, or was perhaps rolled back, and the catalog has to be asked.
   */
  message(json: string, xid: number): TrackedChange | null | 'unknown';
  /** The transaction with the latest changes is over: the state to keep beside it. */
  commit(): string;
  /** The open transaction's changes are forgotten. */
  rollback(): void;
  /** A table has been read again up to a key, or (null) all of it, in the open transaction. */
  reloaded(oid: number, upTo: KeyText | null): void;
  /** Takes a request to read tables again: the change that this makes, if it makes one. */
  reread(json: string, xid: number): SchemaChange | null;
  /** A row got another key, and not all of its values were sent: the change that this makes, if it makes one. */
  losesValues(oid: number, xid: number): SchemaChange | null;
  /** A row came in binary, which nobody reads: the change that this makes, if it makes one. */
  unread(oid: number, xid: number): SchemaChange | null;
}

/**
 * Turns pgoutput's messages into transaction frames, byte to byte: no object is made per message or row.
 *
 * Transactions arrive whole and in commit order: what is streamed before its commit waits in front of this (see
 * OpenTransactions). A batch ends behind a COMMIT, or, for a transaction larger than `partBytes`, inside it, as a
 * part frame. Nothing of a transaction that changed nothing is kept, but its end LSN moves the position.
 *
 * Rows that are read beside the stream take their place in it inside transactions of their own: whoever reads
 * them writes a watermark, a logical message, and is asked for the rows when it comes by. So they have a position
 * like everything else, and one that is lost with its connection is simply not asked for again.
 *
 * Of rows in binary (`isBinary`) only their table counts: it is read again. So comes a transaction with a change that would
 * be longer than the server can send as text.
 */
export class TransactionEncoder {
  readonly #schema: SchemaSource;
  readonly #atWatermark: (id: string) => ReloadStep | null;
  readonly #partBytes: number;
  readonly #isBinary: boolean;
  readonly #out = new FrameWriter();
  /** By relation OID; null for relations that are published but not mirrored. */
  readonly #rows = new Map<number, RowEncoder | null>();
  readonly #batches: Batch[] = [];
  #lastRow: RowEncoder | null = null;
  #lastOid = -1;

  /** Distance of the open transaction's frame from the writer's start, or -1 between transactions. */
  #open = -1;
  #hasParts = false;
  #xid = 0;
  #changes = 0;
  #closes = 0;
  #transactions = 0;
  /** Whether the open transaction changes the schema, and the state behind the last finished one that did. */
  #changesSchema = false;
  #state: string | undefined;
  #lastCommitTimeUs = 0n;
  #position: Lsn;
  #blockedBy: RelationMessage | 'failed hook' | null = null;
  #isHookResolved = false;
  #hasNews = false;

  constructor(options: {
    readonly schema: SchemaSource;
    readonly position: Lsn;
    /** Gives what belongs at a watermark; null: nobody waits for it any more. */
    readonly atWatermark: (id: string) => ReloadStep | null;
    readonly partBytes?: number;
    readonly isBinary?: boolean;
  }) {
    this.#schema = options.schema;
    this.#atWatermark = options.atWatermark;
    this.#position = options.position;
    this.#partBytes = options.partBytes ?? DEFAULT_PART_BYTES;
    this.#isBinary = options.isBinary ?? false;
  }

  /** End LSN of the last transaction that was received whole. */
  get position(): Lsn {
    return this.#position;
  }

  get isInTransaction(): boolean {
    return this.#open >= 0;
  }

  /** What the schema source could not answer from what it has; handle() waits for resolve(). */
  get blockedBy(): RelationMessage | 'failed hook' | null {
    return this.#blockedBy;
  }

  get transactions(): number {
    return this.#transactions;
  }

  get lastCommitTimeUs(): bigint {
    return this.#lastCommitTimeUs;
  }

  /** Bytes that wait for takeBatches(). */
  get pendingBytes(): number {
    return this.#out.pendingBytes;
  }

  /**
   * Handles one message (`from` is its type byte). False: a relation must be resolved first, and the same
   * message is to be given again afterwards.
   */
  handle(bytes: Buffer, from: number, to: number): boolean {
    // A huge row fills a frame, and a BLOB of the log, alone.
    if (to - from >= this.#partBytes) {
      if (this.#open >= 0 && this.#changes > 0) this.#cutPart();
      else this.#cutTransactions();
    }
    if (this.#isBinary && ROWS.has(bytes[from]!)) {
      this.#unread(bytes, from);
      return true;
    }
    switch (bytes[from]) {
      case 0x49: // I
        this.#insert(bytes, from);
        break;
      case 0x55: // U
        this.#update(bytes, from);
        break;
      case 0x44: // D
        this.#delete(bytes, from);
        break;
      case 0x42: // B
        this.#begin(bytes, from);
        break;
      case 0x43: // C
        this.#commit(bytes, from);
        break;
      case 0x52: // R
        return this.#relation(bytes, from);
      case 0x54: // T
        this.#truncate(bytes, from);
        break;
      case 0x4d: // M
        return this.#message(bytes, from);
      case 0x59: // Y: types are known from the catalog
      case 0x4f: // O: changes of every origin are mirrored
        break;
      default:
        throw new ProtocolError(
          `pgoutput sent a message of the unknown type ${bytes[from]} (${to - from} bytes)`,
        );
    }
    return true;
  }

  /** Whether hooks have told of schema changes since this was asked last. */
  takeNews(): boolean {
    const hasNews = this.#hasNews;
    this.#hasNews = false;
    return hasNews;
  }

  /** The transaction that is being received. */
  get xid(): number {
    return this.#xid;
  }

  /** What handle() waited for: the change goes into the open transaction, in front of the rows that need it. */
  resolve(change: SchemaChange | null): void {
    this.#isHookResolved = this.#blockedBy === 'failed hook';
    this.#blockedBy = null;
    if (change !== null) this.#writeSchemaChange(change);
  }

  /** Everything finished so far, in order. The buffers are the caller's for good. */
  takeBatches(): readonly Batch[] {
    this.#cutTransactions();
    return this.#batches.splice(0);
  }

  /** The connection broke: whatever is open is forgotten; Postgres will send that transaction again. */
  abandon(): readonly Batch[] {
    this.#lastOid = -1;
    this.#rows.clear();
    this.#blockedBy = null;
    this.#isHookResolved = false;
    if (this.#changesSchema) this.#schema.rollback();
    this.#changesSchema = false;
    if (this.#open >= 0) {
      this.#out.truncate(this.#open);
      this.#open = -1;
      this.#cutTransactions();
      if (this.#hasParts) {
        this.#batches.push({
          bytes: abortFrame(this.#xid),
          endLsn: this.#position,
          closes: 0,
          opensParts: false,
        });
      }
    }
    return this.takeBatches();
  }

  #begin(bytes: Buffer, from: number): void {
    if (this.#open >= 0) throw new ProtocolError('a transaction begins inside another one');
    this.#xid = bytes.readUInt32BE(from + 17);
    this.#open = this.#out.pendingBytes;
    this.#out.reserve(TRANSACTION_HEADER_BYTES);
    this.#out.at += TRANSACTION_HEADER_BYTES;
    this.#changes = 0;
    this.#hasParts = false;
  }

  #commit(bytes: Buffer, from: number): void {
    if (this.#open < 0) throw new ProtocolError('a transaction ends that did not begin');
    const out = this.#out;
    this.#position = bytes.readBigUInt64BE(from + 10);
    if (this.#changes === 0 && !this.#hasParts) {
      out.truncate(this.#open);
    } else {
      const at = out.start + this.#open;
      out.setUInt32(at, out.at - at);
      out.setUInt32(at + 4, FRAME.transaction);
      out.bytes.writeBigUInt64LE(bytes.readBigUInt64BE(from + 2), at + 8);
      out.bytes.writeBigUInt64LE(this.#position, at + 16);
      this.#lastCommitTimeUs = bytes.readBigInt64BE(from + 18) + POSTGRES_EPOCH_US;
      out.bytes.writeBigInt64LE(this.#lastCommitTimeUs, at + 24);
      out.setUInt32(at + 32, this.#xid);
      out.setUInt32(at + 36, this.#changes);
      out.setUInt32(at + 40, this.#hasParts ? 1 : 0);
      out.setUInt32(at + 44, 0);
      this.#closes++;
      this.#transactions++;
    }
    this.#open = -1;
    if (this.#changesSchema) this.#state = this.#schema.commit();
    this.#changesSchema = false;
  }

  /** Cuts the finished transactions off as one batch. */
  #cutTransactions(): void {
    if (this.#closes === 0) return;
    const length = this.#open >= 0 ? this.#open : this.#out.pendingBytes;
    this.#batches.push({
      bytes: this.#out.take(length),
      endLsn: this.#position,
      closes: this.#closes,
      opensParts: false,
      ...(this.#state === undefined ? {} : { sourceState: this.#state }),
    });
    if (this.#open >= 0) this.#open = 0;
    this.#closes = 0;
    this.#state = undefined;
  }

  /** Called behind every change: a transaction that grows large is handed on before it ends. */
  #changed(): void {
    this.#changes++;
    if (this.#out.pendingBytes - this.#open >= this.#partBytes) this.#cutPart();
  }

  /** Hands on what the open transaction has so far as a part. */
  #cutPart(): void {
    this.#cutTransactions();
    const out = this.#out;
    // The room of the transaction's header takes the part's, which is shorter, at its end.
    out.take(TRANSACTION_HEADER_BYTES - PART_HEADER_BYTES);
    const at = out.start;
    out.setUInt32(at, out.at - at);
    out.setUInt32(at + 4, FRAME.part);
    out.setUInt32(at + 8, this.#xid);
    out.setUInt32(at + 12, this.#changes);
    const bytes = out.take(out.pendingBytes);
    this.#batches.push({ bytes, endLsn: this.#position, closes: 0, opensParts: true });
    this.#hasParts = true;
    this.#open = 0;
    out.reserve(TRANSACTION_HEADER_BYTES);
    out.at += TRANSACTION_HEADER_BYTES;
    this.#changes = 0;
  }

  #row(oid: number): RowEncoder | null {
    if (oid === this.#lastOid) return this.#lastRow;
    const row = this.#rows.get(oid);
    if (row === undefined)
      throw new ProtocolError(`a row of the relation ${oid} came before its description`);
    this.#lastOid = oid;
    this.#lastRow = row;
    return row;
  }

  #unread(bytes: Buffer, from: number): void {
    const oid = bytes.readUInt32BE(from + 1);
    if (this.#row(oid) === null) return;
    const change = this.#schema.unread(oid, this.#xid);
    if (change !== null) this.#writeSchemaChange(change);
  }

  #insert(bytes: Buffer, from: number): void {
    const oid = bytes.readUInt32BE(from + 1);
    const row = this.#row(oid);
    if (row === null) return;
    const body = this.#out.beginChange(CHANGE.insert, oid);
    row.encodeTuple(bytes, from + 6, this.#out);
    this.#out.endChange(body);
    this.#writeLeftOut(row, bytes, from + 6);
    this.#changed();
  }

  /** What the new row that starts at `at`, and was encoded last, lacks. */
  #writeLeftOut(row: RowEncoder, bytes: Buffer, at: number): void {
    if (!row.hasLeftOut) return;
    for (const value of row.leftOut(bytes, at)) {
      this.#out.writeJsonChange(CHANGE.leftOut, row.relation.oid, value);
      this.#changes++;
    }
  }

  #update(bytes: Buffer, from: number): void {
    const oid = bytes.readUInt32BE(from + 1);
    const row = this.#row(oid);
    if (row === null) return;
    const out = this.#out;
    const kind = bytes[from + 5];
    let body: number;
    let at = from + 5;
    if (kind === 0x4e) {
      body = out.beginChange(CHANGE.update, oid);
      row.encodeTuple(bytes, from + 6, out);
    } else {
      const isKey = kind === 0x4b;
      body = out.beginChange(isKey ? CHANGE.updateKey : CHANGE.updateFull, oid);
      at = isKey ? row.encodeKey(bytes, from + 6, out) : row.encodeTuple(bytes, from + 6, out);
      row.encodeTuple(bytes, at + 1, out);
      if (isKey && row.lacksValues(bytes, at + 1)) {
        out.endChange(body);
        this.#writeLeftOut(row, bytes, at + 1);
        this.#changed();
        const change = this.#schema.losesValues(oid, this.#xid);
        if (change !== null) this.#writeSchemaChange(change);
        return;
      }
    }
    out.endChange(body);
    this.#writeLeftOut(row, bytes, at + 1);
    this.#changed();
  }

  #delete(bytes: Buffer, from: number): void {
    const oid = bytes.readUInt32BE(from + 1);
    const row = this.#row(oid);
    if (row === null) return;
    const isKey = bytes[from + 5] === 0x4b;
    const body = this.#out.beginChange(isKey ? CHANGE.deleteKey : CHANGE.deleteFull, oid);
    if (isKey) row.encodeKey(bytes, from + 6, this.#out);
    else row.encodeTuple(bytes, from + 6, this.#out);
    this.#out.endChange(body);
    this.#changed();
  }

  #truncate(bytes: Buffer, from: number): void {
    const count = bytes.readUInt32BE(from + 1);
    for (let index = 0; index < count; index++) {
      const oid = bytes.readUInt32BE(from + 6 + index * 4);
      if (this.#row(oid) === null) continue;
      this.#out.endChange(this.#out.beginChange(CHANGE.truncate, oid));
      this.#changed();
    }
  }

  #relation(bytes: Buffer, from: number): boolean {
    const message = readRelationMessage(bytes, from + 1);
    const relation = this.#schema.match(message);
    if (relation === 'unknown') {
      this.#blockedBy = message;
      return false;
    }
    this.#rows.set(message.oid, relation === 'ignored' ? null : new RowEncoder(relation));
    this.#lastOid = -1;
    return true;
  }

  #message(bytes: Buffer, from: number): boolean {
    const isTransactional = (bytes[from + 1]! & 1) === 1;
    if (!isTransactional) return true;
    const prefix = ownPrefix(bytes, from + 10);
    if (prefix === null) return true;
    const prefixEnd = from + 10 + prefix.length;
    const length = bytes.readUInt32BE(prefixEnd + 1);
    const text = length > LONGEST_MESSAGE_BYTES ? '' : bytes.utf8Slice(prefixEnd + 5, prefixEnd + 5 + length);
    if (prefix === WATERMARK_PREFIX) {
      const step = this.#atWatermark(text);
      if (step !== null) this.#writeReloadStep(step);
      return true;
    }
    if (prefix === REREAD_PREFIX) {
      const reloading = this.#schema.reread(text, this.#xid);
      if (reloading !== null) this.#writeSchemaChange(reloading);
      return true;
    }
    this.#hasNews = true;
    if (this.#isHookResolved) {
      this.#isHookResolved = false;
      return true;
    }
    const change = this.#schema.message(text, this.#xid);
    if (change === 'unknown') {
      this.#blockedBy = 'failed hook';
      return false;
    }
    if (change !== null) this.#writeSchemaChange(change);
    return true;
  }

  #writeReloadStep({ oid, begin, rows, rowCount, readUpTo }: ReloadStep): void {
    const out = this.#out;
    if (begin !== null) this.#writeJson(CHANGE.reloadBegin, oid, begin);
    out.reserve(rows.length);
    out.writeRaw(rows, 0, rows.length);
    this.#changes += rowCount;
    if (readUpTo === undefined) return;
    if (readUpTo === null) {
      out.endChange(out.beginChange(CHANGE.reloadEnd, oid));
      this.#changes++;
    }
    this.#schema.reloaded(oid, readUpTo);
    this.#changesSchema = true;
  }

  #writeSchemaChange({ moves = [], ...change }: TrackedChange): void {
    this.#changesSchema = true;
    // The catalog may be ahead of the stream, which goes on with rows of what is gone there.
    for (const oid of change.dropped) if (this.#rows.has(oid)) this.#rows.set(oid, null);
    this.#lastOid = -1;
    const isFromDropped = ({ from }: RowMove): boolean => change.dropped.includes(from);
    for (const move of moves) if (isFromDropped(move)) this.#writeJson(CHANGE.move, move.from, move);
    this.#writeJson(CHANGE.schema, 0, change);
    for (const move of moves) if (!isFromDropped(move)) this.#writeJson(CHANGE.move, move.from, move);
  }

  #writeJson(kind: number, oid: number, content: object): void {
    const json = Buffer.from(JSON.stringify(content));
    const body = this.#out.beginChange(kind, oid);
    this.#out.reserve(json.length);
    this.#out.at += json.copy(this.#out.bytes, this.#out.at);
    this.#out.endChange(body);
    this.#changed();
  }
}
