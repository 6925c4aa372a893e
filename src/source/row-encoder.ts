import { TAG } from '../change/frame.ts';
import type { FrameWriter } from '../change/frame-writer.ts';
import type { Column, LeftOutValue, Relation } from '../change/relation.ts';
import { type ValueEncoder, valueEncoder } from '../change/value-mapping.ts';
import { ProtocolError } from '../errors.ts';
import { describeLeftOut, LARGE_VALUE_BYTES, RowBudget } from './row-budget.ts';

const NULL_VALUE = 0x6e; // n
const UNCHANGED = 0x75; // u
const TEXT_VALUE = 0x74; // t

/**
 * Turns the tuples of one relation, as pgoutput sends them, into tuples of the change format.
 * TupleData: https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html
 */
export class RowEncoder {
  readonly relation: Relation;
  readonly #encoders: readonly ValueEncoder[];
  readonly #isIdentity: readonly boolean[];
  readonly #identityCount: number;
  readonly #budget: RowBudget;

  constructor(relation: Relation) {
    this.relation = relation;
    this.#encoders = relation.columns.map((column: Column) => valueEncoder(column.mapping));
    this.#isIdentity = relation.columns.map((column) => column.identity);
    this.#budget = new RowBudget(relation);
    this.#identityCount = relation.columns.filter((column) => column.identity).length;
  }

  /** Encodes a whole tuple that starts (with its number of columns) at `at`; returns where it ends. */
  encodeTuple(bytes: Buffer, at: number, out: FrameWriter): number {
    const encoders = this.#encoders;
    const count = (bytes[at]! << 8) | bytes[at + 1]!;
    at += 2;
    if (count !== encoders.length) throw this.#columnCountError(count);
    out.reserve(2);
    out.bytes[out.at++] = count;
    out.bytes[out.at++] = count >>> 8;
    this.#budget.beginRow();
    for (let index = 0; index < count; index++) {
      const kind = bytes[at++];
      if (kind === TEXT_VALUE) {
        const from = at + 4;
        at = from + ((bytes[at]! << 24) | (bytes[at + 1]! << 16) | (bytes[at + 2]! << 8) | bytes[at + 3]!);
        if (at - from < LARGE_VALUE_BYTES) encoders[index]!(bytes, from, at, out);
        else this.#budget.encode(encoders[index]!, index, bytes, from, at, out);
      } else if (kind === NULL_VALUE) {
        out.writeTag(TAG.null);
      } else if (kind === UNCHANGED) {
        out.writeTag(TAG.unchanged);
      } else {
        throw this.#kindError(kind);
      }
    }
    return at;
  }

  /** Of the tuple that was encoded last. */
  get hasLeftOut(): boolean {
    return this.#budget.leftOut.length > 0;
  }

  /** What the tuple lacks that was encoded last, and starts at `at`. */
  leftOut(bytes: Buffer, at: number): readonly LeftOutValue[] {
    const values: string[] = [];
    at += 2;
    for (let index = 0; index < this.#encoders.length; index++) {
      if (bytes[at++] !== TEXT_VALUE) {
        values.push('');
        continue;
      }
      const length = bytes.readUInt32BE(at);
      at += 4;
      values.push(length < LARGE_VALUE_BYTES ? bytes.utf8Slice(at, at + length) : '…');
      at += length;
    }
    return describeLeftOut(this.relation, this.#budget, (column) => values[column]!);
  }

  /** Encodes the identity columns only, of a tuple that Postgres sent as an old key. */
  encodeKey(bytes: Buffer, at: number, out: FrameWriter): number {
    const encoders = this.#encoders;
    const count = (bytes[at]! << 8) | bytes[at + 1]!;
    at += 2;
    if (count !== encoders.length) throw this.#columnCountError(count);
    out.reserve(2);
    out.bytes[out.at++] = this.#identityCount;
    out.bytes[out.at++] = this.#identityCount >>> 8;
    for (let index = 0; index < count; index++) {
      const kind = bytes[at++];
      if (kind === TEXT_VALUE) {
        const from = at + 4;
        at = from + bytes.readUInt32BE(at);
        if (this.#isIdentity[index]) encoders[index]!(bytes, from, at, out);
      } else if (kind === NULL_VALUE) {
        // A column outside the key is sent as null, which means absent here, not NULL.
        if (this.#isIdentity[index]) out.writeTag(TAG.null);
      } else {
        throw this.#kindError(kind);
      }
    }
    return at;
  }

  /** Whether a tuple of pgoutput lacks out-of-line values that were not touched. */
  lacksValues(bytes: Buffer, at: number): boolean {
    at += 2;
    for (let index = 0; index < this.#encoders.length; index++) {
      const kind = bytes[at++];
      if (kind === UNCHANGED) return true;
      if (kind === TEXT_VALUE) at += 4 + bytes.readUInt32BE(at);
    }
    return false;
  }

  #columnCountError(count: number): ProtocolError {
    const { relation } = this;
    return new ProtocolError(
      `a row of ${relation.schema}.${relation.name} has ${count} columns where ${relation.columns.length} are known`,
    );
  }

  #kindError(kind: number | undefined): ProtocolError {
    const { relation } = this;
    return new ProtocolError(`a value of ${relation.schema}.${relation.name} has the unknown kind ${kind}`);
  }
}
