import { TAG } from '../change/frame.ts';
import type { FrameWriter } from '../change/frame-writer.ts';
import type { LeftOutValue, Relation } from '../change/relation.ts';
import type { ValueEncoder } from '../change/value-mapping.ts';

/**
 * What a row may take: better-sqlite3 lets no row and no BLOB be longer than V8's longest string, 2^29 - 24 bytes, and
 * a row also has to fit into one BLOB of the log, with what stands around it.
 */
export const MAX_ROW_BYTES = 500 * 1024 * 1024;

/** Smaller values are not counted: all 1,600 columns of such take a few MB, for which there is room. */
export const LARGE_VALUE_BYTES = 4096;

/** A large value in the change format begins with its tag and its length. */
export const VALUE_HEADER_BYTES = 5;

/** Of a value that is left out the place of its column, and how long it is as text. */
export interface CutValue {
  readonly column: number;
  readonly bytes: number;
}

/** What a row of the relation may take, bytes: an update under full identity carries two. */
export function rowLimit({ replicaIdentity }: Relation, maxBytes: number = MAX_ROW_BYTES): number {
  return replicaIdentity === 'full' ? maxBytes / 2 : maxBytes;
}

/**
 * Leaves out, as NULL, the values of a row that would make it longer than a file can hold. What is left out depends
 * on the row alone, so an old row under full identity is the one that the file has.
 */
export class RowBudget {
  readonly #limit: number;
  #left = 0;
  /** Of the row that was begun last: the place of the column, and the bytes that Postgres sent. */
  readonly leftOut: CutValue[] = [];

  constructor(relation: Relation, maxBytes: number = MAX_ROW_BYTES) {
    this.#limit = rowLimit(relation, maxBytes);
  }

  beginRow(): void {
    this.#left = this.#limit;
    if (this.leftOut.length > 0) this.leftOut.length = 0;
  }

  encode(
    encoder: ValueEncoder,
    column: number,
    source: Buffer,
    from: number,
    to: number,
    out: FrameWriter,
  ): void {
    const start = out.pendingBytes;
    // No mapping makes less than half of it: that is what hex becomes.
    if (
      to - from > 2 * this.#left + 2 ||
      !hasEncoded(encoder, source, from, to, out) ||
      out.pendingBytes - start > this.#left
    ) {
      out.truncate(start);
      out.writeTag(TAG.null);
      this.leftOut.push({ column, bytes: to - from });
    } else {
      this.#left -= out.pendingBytes - start;
    }
  }
}

/** False for an array that is longer than V8's longest string, as Postgres prints it or as JSON. */
function hasEncoded(
  encoder: ValueEncoder,
  source: Buffer,
  from: number,
  to: number,
  out: FrameWriter,
): boolean {
  try {
    encoder(source, from, to, out);
    return true;
  } catch (error) {
    if (error instanceof RangeError || (error as { code?: string }).code === 'ERR_STRING_TOO_LONG')
      return false;
    throw error;
  }
}

/** The values that the last row lacks, as the file names them. `keyText` gives a column's value as Postgres prints it. */
export function describeLeftOut(
  relation: Relation,
  budget: RowBudget,
  keyText: (column: number) => string,
): readonly LeftOutValue[] {
  const key = relation.columns.flatMap(({ name, keyOrdinal }, column) =>
    keyOrdinal === null ? [] : [`${name} = ${keyText(column)}`],
  );
  return budget.leftOut.map(({ column, bytes }) => ({
    row: key.length === 0 ? 'a row without a key' : key.join(', '),
    column: relation.columns[column]!.name,
    bytes,
  }));
}
