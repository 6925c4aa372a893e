import { TAG } from '../change/frame.ts';
import { keyColumns, type LeftOutValue, locatorColumns, type Relation } from '../change/relation.ts';
import { quoteName } from '../replica/naming.ts';
import type { KeyRange } from '../replica/stored-rows.ts';
import type { TableLayout } from '../replica/table-layout.ts';
import { valueEnd } from '../replica/tuple.ts';
import { resolveRow, type TableChanges } from './change-fold.ts';
import type { DifferenceSpool } from './difference-spool.ts';
import type { FileSide } from './file-side.ts';
import type { PairedSnapshot } from './paired-snapshot.ts';
import type { LeftOutHandler } from './snapshot-reader.ts';
import { differingBuckets, emptySums, RowSorter, type TableSums } from './table-sums.ts';

export interface PartResult {
  /** Rows that Postgres has at the file's position, and that the file has. */
  readonly expectedRows: number;
  readonly actualRows: number;
  /** Values of Postgres that both sides have NULL for, because no row of SQLite can hold them. */
  readonly leftOut: readonly LeftOutValue[];
}

/** One row as it must be and as it is. */
export interface RowCheck {
  readonly key: string;
  readonly expected: Buffer | null;
  readonly expectedCount: number;
  readonly actual: Buffer | null;
  readonly actualCount: number;
}

/**
 * Compares one table, or the rows of a range of keys, at the file's position.
 *
 * Rows that changed between the two snapshots are compared one by one: what they must be is their version in
 * Postgres's snapshot with the changes on top. All others are added up in buckets on both sides. The buckets
 * that differ are read once more, from the same snapshots, and their rows compared.
 */
export class TableComparison {
  readonly #pair: PairedSnapshot;
  readonly #file: FileSide;
  readonly #spool: DifferenceSpool;
  readonly #relation: Relation;
  readonly #layout: TableLayout;
  readonly #key: readonly number[];
  readonly #changes: TableChanges;

  constructor(options: {
    readonly pair: PairedSnapshot;
    readonly file: FileSide;
    readonly spool: DifferenceSpool;
    readonly relation: Relation;
    readonly layout: TableLayout;
  }) {
    this.#pair = options.pair;
    this.#file = options.file;
    this.#spool = options.spool;
    this.#relation = options.relation;
    this.#layout = options.layout;
    this.#key = locatorColumns(options.relation);
    this.#changes = options.pair.changes.of(options.relation.oid)!;
  }

  /**
   * The column by whose ranges both sides can be read in parts, each in the order that its own tree has; null if
   * there is none: a table without a key, or with one whose order is not the same on both sides.
   */
  static rangeColumn(relation: Relation, layout: TableLayout): number | null {
    const [first] = keyColumns(relation);
    if (first === undefined || !layout.keyIsEnforced || relation.columns[first]!.mapping !== 'int')
      return null;
    return locatorColumns(relation).includes(first) ? first : null;
  }

  /** Null: the table changed meanwhile, and nothing was found out. */
  async compare(range: { from: bigint | null; to: bigint | null } | null): Promise<PartResult | null> {
    const touched = [...this.#changes.rows.keys()].filter((key) => range === null || this.#isIn(key, range));
    const apart = this.#apart(touched);
    const part = { oid: this.#relation.oid, key: this.#key, range: this.#keyRange(range), apart: [...apart] };
    const condition = this.#condition(range);
    const before = this.#spool.last;
    let result: PartResult | null = null;
    const leftOut: LeftOutValue[] = [];
    const readBoth = async (): Promise<void> => {
      const [expected, actual] = await Promise.all([
        this.#sumPostgres(apart, condition, (value) => leftOut.push(value)),
        this.#file.sum(part),
      ]);
      this.#spool.begin(this.#relation.oid, this.#key);
      const changedRows = this.#compareApart(touched, expected, actual);
      if (changedRows === null) {
        this.#spool.forget(before);
        return;
      }
      const buckets = differingBuckets(expected, actual);
      if (buckets !== null) await this.#compareBuckets(buckets, apart, condition, part);
      this.#spool.finish();
      result = {
        expectedRows: expected.rows - sumCounts(expected) + changedRows,
        actualRows: actual.rows,
        leftOut: [...leftOut, ...this.#changes.leftOut],
      };
    };
    const isSame = this.#changes.isTruncated
      ? await readBoth().then(() => true)
      : await this.#pair.postgres.withTable(this.#relation, readBoth);
    if (isSame) return result;
    this.#spool.forget(before);
    return null;
  }

  /** Looks at some rows only, by their keys (whole rows where there is none). Null: the table changed meanwhile. */
  async check(keys: readonly string[]): Promise<readonly RowCheck[] | null> {
    const apart = this.#apart(keys);
    const part = { oid: this.#relation.oid, key: this.#key, range: null, apart: [...apart] };
    let checks: RowCheck[] | null = [];
    const readBoth = async (): Promise<void> => {
      const [before, actual] = await Promise.all([this.#sumPostgres(apart, undefined), this.#file.sum(part)]);
      for (const key of keys) {
        const expected = this.#expected(key, before);
        if (expected === 'unknown') {
          checks = null;
          return;
        }
        const stored = actual.apart.get(key);
        checks!.push({
          key,
          expected: expected.row,
          expectedCount: expected.count,
          actual: stored?.tuple ?? null,
          actualCount: stored?.count ?? 0,
        });
      }
    };
    if (this.#changes.isTruncated) await readBoth();
    else if (!(await this.#pair.postgres.withTable(this.#relation, readBoth))) return null;
    return checks;
  }

  #expected(key: string, before: TableSums): { row: Buffer | null; count: number } | 'unknown' {
    const found = before.apart.get(key);
    if (this.#key.length === 0) {
      const count = (found?.count ?? 0) + (this.#changes.counts.get(key) ?? 0);
      return { row: count === 0 ? null : Buffer.from(key, 'latin1'), count };
    }
    const changed = this.#changes.rows.get(key);
    const row =
      changed === undefined
        ? (found?.tuple ?? null)
        : resolveRow(changed, (each) => before.apart.get(each)?.tuple);
    if (row === 'unknown') return row;
    return { row, count: row === null ? 0 : 1 };
  }

  /** Keys that are looked at one by one, in addition to where unchanged values of theirs come from. */
  #apart(touched: readonly string[]): Set<string> {
    const apart = new Set(touched);
    for (const key of touched) {
      const base = this.#changes.rows.get(key)?.base ?? null;
      if (base !== null) apart.add(base);
    }
    return apart;
  }

  async #sumPostgres(
    apart: ReadonlySet<string>,
    condition: string | undefined,
    onLeftOut?: LeftOutHandler,
  ): Promise<TableSums> {
    const sums = emptySums();
    const sorter = new RowSorter(this.#key, apart);
    if (!this.#changes.isTruncated) {
      await this.#pair.postgres.read(
        { relation: this.#relation, condition },
        (bytes, view, tuple, end) => sorter.add(sums, bytes, view, tuple, end),
        onLeftOut,
      );
    }
    for (const [row, count] of this.#changes.counts) sorter.addTimes(sums, Buffer.from(row, 'latin1'), count);
    return sums;
  }

  /** How many of the touched rows Postgres has; null if one of them cannot be known. */
  #compareApart(touched: readonly string[], before: TableSums, actual: TableSums): number | null {
    let rows = 0;
    for (const text of touched) {
      const expected = resolveRow(this.#changes.rows.get(text)!, (key) => before.apart.get(key)?.tuple);
      if (expected === 'unknown') return null;
      if (expected !== null) rows++;
      this.#compareRow(Buffer.from(text, 'latin1'), expected, actual.apart.get(text)?.tuple ?? null);
    }
    return rows;
  }

  #compareRow(key: Buffer, expected: Buffer | null, actual: Buffer | null): void {
    if (expected === null) {
      if (actual !== null) this.#spool.add('extra', key, null, actual);
    } else if (actual === null) {
      this.#spool.add('missing', key, expected, null);
    } else if (!expected.equals(actual)) {
      this.#spool.add('different', key, expected, actual);
    }
  }

  async #compareBuckets(
    buckets: Uint8Array<ArrayBuffer>,
    apart: ReadonlySet<string>,
    condition: string | undefined,
    part: Parameters<FileSide['pick']>[0],
  ): Promise<void> {
    const sorter = new RowSorter(this.#key, apart);
    const spool = this.#spool;
    if (!this.#changes.isTruncated) {
      await this.#pair.postgres.read({ relation: this.#relation, condition }, (bytes, view, tuple, end) => {
        const bucket = sorter.bucket(bytes, view, tuple, end);
        if (buckets[bucket] === 0 || sorter.isApart(bytes, tuple, end, bucket)) return;
        spool.expect(bytes.subarray(tuple, end));
      });
    }
    for (const [text, count] of this.#changes.counts) {
      const row = Buffer.from(text, 'latin1');
      const view = new DataView(row.buffer, row.byteOffset, row.length);
      if (buckets[sorter.bucket(row, view, 0, row.length)] === 1) spool.expect(row, count);
    }
    await this.#file.pick(part, buckets, (tuple) => spool.see(tuple));
  }

  #condition(range: { from: bigint | null; to: bigint | null } | null): string | undefined {
    const column = this.#rangeName((index) => this.#relation.columns[index]!.name);
    if (range === null || column === null) return undefined;
    const name = quoteName(column);
    const terms = [
      ...(range.from === null ? [] : [`${name} >= ${range.from}`]),
      ...(range.to === null ? [] : [`${name} < ${range.to}`]),
    ];
    return terms.length === 0 ? undefined : terms.join(' and ');
  }

  #keyRange(range: { from: bigint | null; to: bigint | null } | null): KeyRange | null {
    const column = this.#rangeName((index) => this.#layout.columnNames[index]!);
    return range === null || column === null ? null : { column, ...range };
  }

  #rangeName(name: (column: number) => string): string | null {
    const column = TableComparison.rangeColumn(this.#relation, this.#layout);
    return column === null ? null : name(column);
  }

  /** Whether a key belongs to a range of the table's first key column. */
  #isIn(text: string, { from, to }: { from: bigint | null; to: bigint | null }): boolean {
    const column = TableComparison.rangeColumn(this.#relation, this.#layout);
    if (column === null) return true;
    const bytes = Buffer.from(text, 'latin1');
    let at = 0;
    for (let place = this.#key.indexOf(column); place > 0; place--) at = valueEnd(bytes, at);
    const value = bytes[at] === TAG.int32 ? BigInt(bytes.readInt32LE(at + 1)) : bytes.readBigInt64LE(at + 1);
    return (from === null || value >= from) && (to === null || value < to);
  }
}

function sumCounts(sums: TableSums): number {
  let count = 0;
  for (const row of sums.apart.values()) count += row.count;
  return count;
}
