import {
  abortFrame,
  CHANGE,
  CHANGE_HEADER_BYTES,
  FRAME,
  PART_HEADER_BYTES,
  TAG,
  TRANSACTION_HEADER_BYTES,
} from '../../src/change/frame.ts';
import { FrameWriter } from '../../src/change/frame-writer.ts';
import type {
  Column,
  IndexDefinition,
  LeftOutValue,
  Relation,
  SchemaChange,
  ValueMapping,
} from '../../src/change/relation.ts';
import type { Snapshot } from '../../src/change/snapshot.ts';
import type { Lsn } from '../../src/lsn.ts';

/** An out-of-line value that Postgres did not send. */
export const UNCHANGED: unique symbol = Symbol('unchanged');

/** bigint and number become integers; a fraction, -0 and what `real` wraps become a double. */
export type TestValue = null | number | bigint | string | Uint8Array | Real | typeof UNCHANGED;

export interface Real {
  readonly real: number;
}

/** A double, also where it is a whole number. */
export function real(value: number): Real {
  return { real: value };
}

export type TestRow = readonly TestValue[];

export type TestChange =
  | { readonly insert: number; readonly row: TestRow }
  | { readonly update: number; readonly row: TestRow; readonly key?: TestRow; readonly old?: TestRow }
  | { readonly delete: number; readonly key?: TestRow; readonly old?: TestRow }
  | { readonly truncate: number }
  | { readonly leftOut: number; readonly value: LeftOutValue }
  | { readonly schema: SchemaChange }
  | { readonly reloadBegin: number; readonly snapshot: Snapshot; readonly isFirst?: boolean }
  | { readonly reloadRow: number; readonly row: TestRow }
  | { readonly reloadEnd: number };

export interface TestTransaction {
  readonly endLsn: Lsn;
  readonly changes: readonly TestChange[];
  readonly xid?: number;
  readonly commitTimeUs?: bigint;
  /** Parts of this transaction came before. */
  readonly hasParts?: boolean;
}

export const COMMIT_TIME_US = 1_795_230_000_123_456n;

export function transactionFrame(transaction: TestTransaction): Buffer {
  const { endLsn, changes, xid = 700, commitTimeUs = COMMIT_TIME_US, hasParts = false } = transaction;
  const body = encodeChanges(changes);
  const header = Buffer.alloc(TRANSACTION_HEADER_BYTES);
  header.writeUInt32LE(header.length + body.length, 0);
  header[4] = FRAME.transaction;
  header.writeBigUInt64LE(endLsn - 8n, 8);
  header.writeBigUInt64LE(endLsn, 16);
  header.writeBigInt64LE(commitTimeUs, 24);
  header.writeUInt32LE(xid, 32);
  header.writeUInt32LE(changes.length, 36);
  header[40] = hasParts ? 1 : 0;
  return Buffer.concat([header, body]);
}

export function partFrame(changes: readonly TestChange[], xid = 700): Buffer {
  const body = encodeChanges(changes);
  const header = abortFrame(xid);
  header[4] = FRAME.part;
  header.writeUInt32LE(PART_HEADER_BYTES + body.length, 0);
  header.writeUInt32LE(changes.length, 12);
  return Buffer.concat([header, body]);
}

export function encodeChanges(changes: readonly TestChange[]): Buffer {
  return Buffer.concat(changes.map(encodeChange));
}

export function encodeChange(change: TestChange): Buffer {
  if ('insert' in change) return withHeader(CHANGE.insert, change.insert, encodeTuple(change.row));
  if ('truncate' in change) return withHeader(CHANGE.truncate, change.truncate, Buffer.alloc(0));
  if ('leftOut' in change)
    return withHeader(CHANGE.leftOut, change.leftOut, Buffer.from(JSON.stringify(change.value)));
  if ('schema' in change) return withHeader(CHANGE.schema, 0, Buffer.from(JSON.stringify(change.schema)));
  if ('reloadBegin' in change) {
    const { reloadBegin, snapshot, isFirst = true } = change;
    return withHeader(CHANGE.reloadBegin, reloadBegin, Buffer.from(JSON.stringify({ snapshot, isFirst })));
  }
  if ('reloadRow' in change) return withHeader(CHANGE.reloadRow, change.reloadRow, encodeTuple(change.row));
  if ('reloadEnd' in change) return withHeader(CHANGE.reloadEnd, change.reloadEnd, Buffer.alloc(0));
  if ('delete' in change) {
    if (change.key !== undefined) return withHeader(CHANGE.deleteKey, change.delete, encodeTuple(change.key));
    return withHeader(CHANGE.deleteFull, change.delete, encodeTuple(change.old!));
  }
  const row = encodeTuple(change.row);
  if (change.key !== undefined) {
    return withHeader(CHANGE.updateKey, change.update, Buffer.concat([encodeTuple(change.key), row]));
  }
  if (change.old !== undefined) {
    return withHeader(CHANGE.updateFull, change.update, Buffer.concat([encodeTuple(change.old), row]));
  }
  return withHeader(CHANGE.update, change.update, row);
}

function withHeader(kind: number, oid: number, body: Buffer): Buffer {
  const header = Buffer.alloc(CHANGE_HEADER_BYTES);
  header[0] = kind;
  header.writeUInt32LE(oid, 1);
  header.writeUInt32LE(body.length, 5);
  return Buffer.concat([header, body]);
}

export function encodeTuple(row: TestRow): Buffer {
  const out = new FrameWriter();
  out.bytes[out.at++] = row.length;
  out.bytes[out.at++] = row.length >>> 8;
  for (const value of row) encodeValue(value, out);
  return Buffer.from(out.take(out.pendingBytes));
}

function encodeValue(value: TestValue, out: FrameWriter): void {
  if (value === null) out.writeTag(TAG.null);
  else if (value === UNCHANGED) out.writeTag(TAG.unchanged);
  else if (typeof value === 'bigint') {
    if (BigInt.asIntN(32, value) === value) out.writeInt32(Number(value));
    else out.writeInt64(value);
  } else if (typeof value === 'number') {
    if (Number.isInteger(value) && !Object.is(value, -0)) out.writeInteger(value);
    else out.writeReal(value);
  } else if (typeof value === 'string') {
    const bytes = Buffer.from(value);
    out.writeText(bytes, 0, bytes.length);
  } else if (value instanceof Uint8Array) {
    out.writeTag(TAG.blob);
    out.writeUInt32(value.length);
    out.reserve(value.length);
    out.bytes.set(value, out.at);
    out.at += value.length;
  } else {
    out.writeReal(value.real);
  }
}

export interface TestColumn {
  readonly name: string;
  readonly mapping?: ValueMapping;
  /** 1-based place in the primary key. */
  readonly key?: number;
  readonly attnum?: number;
  /** Part of the replica identity; by default the key's columns are. */
  readonly identity?: boolean;
}

export interface TestRelation {
  readonly oid: number;
  readonly name: string;
  readonly schema?: string;
  readonly columns: readonly TestColumn[];
  readonly replicaIdentity?: Relation['replicaIdentity'];
  readonly keyIsDeferrable?: boolean;
  readonly indexes?: readonly IndexDefinition[];
}

export function testRelation(relation: TestRelation): Relation {
  return {
    oid: relation.oid,
    schema: relation.schema ?? 'public',
    name: relation.name,
    replicaIdentity: relation.replicaIdentity ?? 'default',
    keyIsDeferrable: relation.keyIsDeferrable ?? false,
    storage: `${relation.oid}:${relation.oid}`,
    indexes: relation.indexes ?? [],
    columns: relation.columns.map((column, index): Column => {
      const mapping = column.mapping ?? 'text';
      return {
        attnum: column.attnum ?? index + 1,
        name: column.name,
        typeName: typeof mapping === 'string' ? mapping : `${mapping.array}[]`,
        typeOid: 25,
        typeModifier: -1,
        mapping,
        notNull: column.key !== undefined,
        keyOrdinal: column.key ?? null,
        identity: column.identity ?? (column.key !== undefined && relation.replicaIdentity !== 'full'),
      };
    }),
  };
}

/** The changes of a part frame. */
export function forEachChange(
  frame: Buffer,
  handler: (change: { readonly kind: number; readonly oid: number; readonly body: Buffer }) => void,
): void {
  for (let at = PART_HEADER_BYTES; at < frame.length; ) {
    const body = at + CHANGE_HEADER_BYTES;
    const end = body + frame.readUInt32LE(at + 5);
    handler({ kind: frame[at]!, oid: frame.readUInt32LE(at + 1), body: frame.subarray(body, end) });
    at = end;
  }
}
