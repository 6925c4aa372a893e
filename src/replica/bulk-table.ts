import type { Database } from 'better-sqlite3';
import { CHANGE } from '../change/frame.ts';
import { quoteName, RESERVED_PREFIX } from './naming.ts';
import type { PageFile } from './page-file.ts';
import { RowRecord } from './row-record.ts';
import { createTableSql, isClustered, rowidColumn, type TableLayout } from './table-layout.ts';
import { type Child, TableTree, writeRoot } from './table-tree.ts';
import { TableWriter } from './table-writer.ts';
import type { TupleSource } from './tuple.ts';

/** All rows without a key come from here: their rowids are counted, so one tree takes them all. */
const ANY_ORIGIN = 0;

/**
 * Fills one new table. For as long as the rows of each origin (a range of the table, read by one COPY) rise by
 * rowid, and those of one do not lie among another's, they become pages of the table's tree; SQLite does not see
 * them before settle(). The first that does not fit, and all behind it, are inserted by SQLite, as are those of
 * tables without rowids.
 */
export class BulkTable {
  readonly layout: TableLayout;
  readonly #db: Database;
  readonly #pages: PageFile;
  readonly #row: RowRecord;
  readonly #writer: TableWriter;
  readonly #countsRowids: boolean;
  readonly #trees = new Map<number, TableTree>();
  #isSettled: boolean;
  #tree: TableTree | null = null;
  #origin = -1;
  #rowid = 0;

  constructor(db: Database, layout: TableLayout, source: TupleSource, pages: PageFile) {
    this.layout = layout;
    this.#db = db;
    this.#pages = pages;
    this.#row = new RowRecord(source, layout);
    this.#writer = new TableWriter(db, layout, source);
    this.#countsRowids = rowidColumn(layout) < 0;
    this.#isSettled = isClustered(layout);
  }

  /** Takes the row whose tuple stands at `tuple`. False: it waits for flush(). */
  insert(tuple: number, origin: number): boolean {
    if (!this.#isSettled) {
      const row = this.#row;
      row.measure(tuple);
      if (this.#countsRowids) {
        this.#rowid++;
        row.rowidHigh = Math.floor(this.#rowid / 0x1_0000_0000);
        row.rowidLow = this.#rowid | 0;
        origin = ANY_ORIGIN;
      }
      if (this.#treeFor(row, origin)?.append(row) === true) return true;
      this.settle();
    }
    this.#writer.change(CHANGE.insert, tuple);
    return false;
  }

  /** Has SQLite insert what waits, in the caller's transaction. */
  flush(): void {
    this.#writer.flush();
  }

  /** Makes one tree of all rows that became pages: from now on SQLite has the table, and inserts what else comes. */
  settle(): void {
    if (this.#isSettled) return;
    this.#isSettled = true;
    if (this.#trees.size === 0) return;
    const { whole, parts, others } = arrange([...this.#trees.values()]);
    this.#trees.clear();
    this.#tree = null;
    const root = this.#rootOf(this.layout.sqliteName);
    if (whole !== null) whole.finishAt(root);
    else if (parts.length > 0)
      writeRoot(
        this.#pages,
        root,
        parts.flatMap((tree): readonly Child[] => tree.finish()),
      );
    this.#pages.flush();
    for (const tree of others) this.#merge(tree);
  }

  /**
   * Null: trees begin to lie among each other, as those of hash partitions do. Merging them takes longer than
   * inserting most of their rows.
   */
  #treeFor(row: RowRecord, origin: number): TableTree | null {
    if (this.#tree !== null && this.#origin === origin) return this.#tree;
    const last = this.#tree;
    const trees = [...this.#trees.values()];
    if (last !== null && trees.some((tree) => tree !== last && tree.overlaps(last))) return null;
    let tree = this.#trees.get(origin);
    if (tree === undefined) {
      if (trees.some((each) => each.spans(row))) return null;
      tree = new TableTree(this.#pages);
      this.#trees.set(origin, tree);
    }
    this.#tree = tree;
    this.#origin = origin;
    return tree;
  }

  /** Rows that lie among those of the table: as a table of their own SQLite reads them, and inserts them. */
  #merge(tree: TableTree): void {
    const name = `${RESERVED_PREFIX}bulk`;
    this.#db.exec(createTableSql(this.layout, name));
    tree.finishAt(this.#rootOf(name));
    this.#pages.flush();
    this.#db.exec(
      `INSERT INTO ${quoteName(this.layout.sqliteName)} SELECT * FROM ${name}; DROP TABLE ${name}`,
    );
  }

  #rootOf(table: string): number {
    return this.#db
      .prepare<[string], number>("SELECT rootpage FROM sqlite_schema WHERE type = 'table' AND name = ?")
      .pluck()
      .get(table)!;
  }
}

/**
 * Trees that can stand under one root, in the order of their rows, or one that is the `whole` table: and others
 * that overlap with those, or are too small to be part of a tree. Large ones are preferred.
 */
function arrange(trees: readonly TableTree[]): {
  readonly whole: TableTree | null;
  readonly parts: readonly TableTree[];
  readonly others: readonly TableTree[];
} {
  const parts: TableTree[] = [];
  const others: TableTree[] = [];
  for (const tree of trees.toSorted((a, b) => b.leafCount - a.leafCount)) {
    const fits = !tree.isOneLeaf && !parts.some((each) => each.overlaps(tree));
    (fits ? parts : others).push(tree);
  }
  parts.sort((a, b) => (a.endsBefore(b) ? -1 : 1));
  if (parts.length > 1) return { whole: null, parts, others };
  const whole = parts[0] ?? others.shift() ?? null;
  return { whole, parts: [], others };
}
