import { randomBytes } from 'node:crypto';
import { FRAME, TRANSACTION_HEADER_BYTES } from '../change/frame.ts';
import type { Relation, SchemaChange } from '../change/relation.ts';
import { RivuletError } from '../errors.ts';
import type { Lsn } from '../lsn.ts';
import type { TableLayout } from '../replica/table-layout.ts';
import { readUInt32 } from '../replica/tuple.ts';
import { IDENTITIES, readSchemaMessage, schemaChange } from '../source/catalog.ts';
import type { RelationMessage } from '../source/relation-message.ts';
import { ReplicationStream } from '../source/replication-stream.ts';
import { hasColumns } from '../source/schema-tracker.ts';
import { createSlotIn } from '../source/slot.ts';
import { type SchemaSource, TransactionEncoder } from '../source/transaction-encoder.ts';
import { ChangeFold } from './change-fold.ts';
import type { FileSide } from './file-side.ts';
import { SnapshotReader } from './snapshot-reader.ts';

/** What the changes between the two positions may take of memory; with more, both are taken again. */
const MAX_FOLD_BYTES = 48 * 1024 * 1024;
const MAX_ATTEMPTS = 5;
const STATUS_INTERVAL_MS = 20;
/** The slot's creation and the wait for the file come before the server's first word. */
const SILENCE_LIMIT_MS = 30_000;
const BEGIN = 0x42;

export interface PairOptions {
  readonly url: string;
  readonly publication: string;
  /** Name of the replicator's slot; the temporary one is called after it. */
  readonly slot: string;
  readonly file: FileSide;
  /** How long the file may take to get to where Postgres is now. */
  readonly timeoutMs: number;
  readonly onRow: (bytes: number) => void;
  /** Tables (OIDs) with rows that are longer than the server can send: kept from one snapshot to the next. */
  readonly longTables: Set<number>;
  readonly onWaiting: () => void;
  readonly signal: AbortSignal;
}

/** Postgres and the file, both standing still, and what lies between them. */
export interface PairedSnapshot extends AsyncDisposable {
  /** Where the file stands, F. Postgres's snapshot is of an earlier position, P. */
  readonly position: Lsn;
  readonly epoch: string;
  /** The published tables as of P, and those of the file as of F, by OID. */
  readonly relations: ReadonlyMap<number, Relation>;
  readonly layouts: ReadonlyMap<number, TableLayout>;
  /** Postgres's content at P and these changes are its content at F. */
  readonly changes: ChangeFold;
  /** Tables whose definition changed between P and F, or that are being read again: nothing can be said of them. */
  readonly unsettled: ReadonlySet<number>;
  readonly postgres: SnapshotReader;
}

/**
 * Takes both snapshots without anybody waiting for anybody:
 *
 *   Postgres   ──── P ─────────────▶      a temporary slot is made and exports the snapshot of exactly P
 *   the file   ────────── F ───────▶      is read as of the first position behind P that it is found at
 *   the slot        └─ stream ┘           gives every change between P and F; then it is dropped
 *
 * What the slot streams is folded in memory: with a replica that is milliseconds behind it is a few transactions.
 */
export async function openPairedSnapshot(options: PairOptions): Promise<PairedSnapshot> {
  for (let attempt = 1; ; attempt++) {
    const pair = await openOnce(options);
    if (pair !== null) return pair;
    if (attempt >= MAX_ATTEMPTS) {
      throw new RivuletError(
        'WAIT_TIMEOUT',
        `the file moves in steps of more than ${MAX_FOLD_BYTES / 2 ** 20} MB of changes: it is far behind, or transactions are huge`,
        { hint: 'try again once the replica has caught up' },
      );
    }
  }
}

/** Null: too much lies between the two. */
async function openOnce(options: PairOptions): Promise<PairedSnapshot | null> {
  const { url, publication, file, signal } = options;
  const slot = `${options.slot.slice(0, 40)}_verify_${randomBytes(4).toString('hex')}`;
  const postgres = await SnapshotReader.open({
    url,
    publication,
    onRow: options.onRow,
    longTables: options.longTables,
    signal,
  });
  try {
    let found: Between | null = null;
    const done = new AbortController();
    const stream = new ReplicationStream({
      url,
      slot,
      publication,
      applicationName: 'rivulet verify',
      from: 0n,
      prepare: async (session) => {
        const { consistentPoint, snapshot } = await createSlotIn(session, { url, slot, temporary: true });
        await postgres.importSnapshot(snapshot);
        const relations = await postgres.readSchema();
        const messageKey = await postgres.readMessageKey();
        options.onWaiting();
        const { position, epoch, layouts, reloading } = await file.begin(consistentPoint, options.timeoutMs);
        found = new Between({
          reloading,
          relations,
          from: consistentPoint,
          to: position,
          publication,
          messageKey,
          epoch,
          layouts,
        });
      },
      // The slot is this connection's own.
      onBegun: () => Promise.resolve(),
      onMessage: (bytes, from, to) => {
        if (found!.isComplete || found!.handle(bytes, from, to)) done.abort();
        return true;
      },
      onKeepalive: (position) => {
        found!.keepalive = position;
      },
      onChunk: () => {
        if (found!.isComplete || found!.settle()) done.abort();
      },
      durablePosition: () => 0n,
      statusIntervalMs: STATUS_INTERVAL_MS,
      silenceLimitMs: SILENCE_LIMIT_MS,
    });
    await stream.run(AbortSignal.any([signal, done.signal]));
    signal.throwIfAborted();
    const between = found as Between | null;
    if (between === null || between.isTooLarge) {
      await postgres[Symbol.asyncDispose]();
      await file.end();
      return null;
    }
    return {
      position: between.to,
      epoch: between.epoch,
      relations: new Map(between.relations.map((relation) => [relation.oid, relation])),
      layouts: between.layouts,
      changes: between.fold,
      unsettled: between.unsettled,
      postgres,
      [Symbol.asyncDispose]: async () => {
        await postgres[Symbol.asyncDispose]();
        await file.end();
      },
    };
  } catch (error) {
    await postgres[Symbol.asyncDispose]();
    throw explainSlot(error);
  }
}

/** The transactions between P and F, as they come from the slot. */
class Between implements SchemaSource {
  readonly unsettled = new Set<number>();
  readonly relations: readonly Relation[];
  readonly layouts: ReadonlyMap<number, TableLayout>;
  readonly epoch: string;
  readonly to: Lsn;
  readonly fold: ChangeFold;
  readonly #byOid: ReadonlyMap<number, Relation>;
  readonly #publication: string;
  readonly #messageKey: string | null;
  readonly #encoder: TransactionEncoder;
  keepalive: Lsn = 0n;
  isComplete = false;
  isTooLarge = false;

  constructor(options: {
    readonly relations: readonly Relation[];
    readonly layouts: ReadonlyMap<number, TableLayout>;
    readonly reloading: readonly number[];
    readonly epoch: string;
    readonly from: Lsn;
    readonly to: Lsn;
    readonly publication: string;
    readonly messageKey: string | null;
  }) {
    this.relations = options.relations;
    this.layouts = options.layouts;
    this.epoch = options.epoch;
    // What the file has of them is older than F.
    for (const oid of options.reloading) this.unsettled.add(oid);
    this.to = options.to;
    this.#publication = options.publication;
    this.#messageKey = options.messageKey;
    this.#byOid = new Map(options.relations.map((relation) => [relation.oid, relation]));
    this.fold = new ChangeFold(options.relations);
    this.#encoder = new TransactionEncoder({
      schema: this,
      // Rows that are read again come to the replicas' tables as others do; here they are of no interest.
      atWatermark: () => null,
      position: options.from,
      partBytes: MAX_FOLD_BYTES,
    });
  }

  /** Takes one message of the stream. True: all is there. */
  handle(bytes: Buffer, from: number, to: number): boolean {
    // A transaction whose commit begins at F or behind it ends behind F: the file does not have it.
    if (bytes[from] === BEGIN && bytes.readBigUInt64BE(from + 1) >= this.to) {
      this.settle();
      this.isComplete = true;
    } else {
      this.#encoder.handle(bytes, from, to);
    }
    return this.isComplete;
  }

  /** Folds what came. True: all is there, or it is too much. */
  settle(): boolean {
    const encoder = this.#encoder;
    for (const { bytes } of encoder.takeBatches()) {
      for (let at = 0; at < bytes.length; at += readUInt32(bytes, at)) {
        if (bytes[at + 4] !== FRAME.transaction) this.isTooLarge = true;
        else if (bytes.readBigUInt64LE(at + 16) <= this.to)
          this.fold.take(bytes, at + TRANSACTION_HEADER_BYTES, at + readUInt32(bytes, at));
      }
    }
    if (this.fold.bytes > MAX_FOLD_BYTES) this.isTooLarge = true;
    const hasPassed = encoder.position >= this.to || (this.keepalive >= this.to && !encoder.isInTransaction);
    this.isComplete ||= this.isTooLarge || hasPassed;
    return this.isComplete;
  }

  match(message: RelationMessage): Relation | 'ignored' {
    const relation = this.#byOid.get(message.oid);
    if (
      relation !== undefined &&
      hasColumns(relation.columns, message) &&
      IDENTITIES[message.identity] === relation.replicaIdentity
    ) {
      return relation;
    }
    this.unsettled.add(message.oid);
    return 'ignored';
  }

  message(json: string): SchemaChange | null {
    const message = readSchemaMessage(json, this.#messageKey);
    if (message.kind === 'failed' || message.kind === 'doubtful' || message.kind === 'foreign') {
      for (const { oid } of this.relations) this.unsettled.add(oid);
    } else if (message.kind === 'rewritten') {
      this.unsettled.add(message.oid);
    } else if (message.publication === this.#publication) {
      const change = schemaChange(this.#byOid, message);
      for (const { oid } of change?.changed ?? []) this.unsettled.add(oid);
      for (const oid of change?.dropped ?? []) this.unsettled.add(oid);
    }
    return null;
  }

  reloaded(): void {}

  reread(): null {
    return null;
  }

  unread(): null {
    return null;
  }

  losesValues(): null {
    return null;
  }

  commit(): string {
    return '';
  }

  rollback(): void {
    // Whatever was seen of a change that did not happen only makes a table wait for the next snapshot.
  }
}

function explainSlot(error: unknown): unknown {
  if (!(error instanceof RivuletError)) return error;
  const { sqlstate } = error.facts;
  if (sqlstate !== '53400' && !(sqlstate === '53300' && /wal_senders|standby/.test(error.message)))
    return error;
  return new RivuletError('SERVER_UNSUITABLE', error.message, {
    cause: error,
    hint: 'verify needs one more replication slot and WAL sender for a moment: raise max_replication_slots and max_wal_senders',
  });
}
