import { setTimeout as delay } from 'node:timers/promises';
import { type LeftOutValue, locatorColumns, type Relation } from '../change/relation.ts';
import { RivuletError } from '../errors.ts';
import { formatLsn } from '../lsn.ts';
import { describeLeftOutValue } from '../replica/left-out.ts';
import type { TableLayout } from '../replica/table-layout.ts';
import { readMirrorReport } from '../source/catalog.ts';
import { type DifferenceKind, DifferenceSpool } from './difference-spool.ts';
import { FileSide } from './file-side.ts';
import { openPairedSnapshot, type PairedSnapshot } from './paired-snapshot.ts';
import { describeDifference, type PrintedDifference } from './printed-difference.ts';
import { Repairer, type RepairReport } from './repairer.ts';
import { TableComparison } from './table-comparison.ts';

/** Vacuum cannot clean up behind a snapshot while it is held: about as long as a checkpoint interval is no harm. */
export const DEFAULT_SNAPSHOT_LIMIT_MS = 60_000;
/** A replica that is live is there within a second. */
export const DEFAULT_FILE_TIMEOUT_MS = 30_000;
/** A part of a large table: a few seconds' worth. */
export const DEFAULT_PART_ROWS = 1_000_000;
/** Differences that are printed for each table; all are counted. */
export const DEFAULT_SHOWN_DIFFERENCES = 20;

/** Between two looks at tables of which nothing can be said yet. */
const UNSETTLED_PAUSE_MS = 500;

export type TableVerdict =
  | 'equal'
  | 'different'
  /** Equal but for values that no row of SQLite can hold. */
  | 'incomplete'
  /** Published, and not in the file. */
  | 'missing'
  /** In the file, and not published. */
  | 'extra'
  /** The columns are not the same, so rows were not compared. */
  | 'columns differ'
  /** It changed whenever it was looked at, or was dropped meanwhile. */
  | 'not compared';

export interface TableReport {
  /** `schema.name` in Postgres. */
  readonly table: string;
  readonly sqliteName: string | null;
  readonly verdict: TableVerdict;
  /** Rows on both sides at the position; null where they were not read. */
  readonly rows: { readonly postgres: number | null; readonly file: number | null };
  /** Position of the file as of which the table was compared; of the last part of a large one. */
  readonly position: string | null;
  readonly different: number;
  readonly missing: number;
  readonly extra: number;
  /** Values that no row of SQLite can hold, NULL in the file. */
  readonly leftOut: readonly LeftOutValue[];
  /** The first of the rows that are not equal. */
  readonly differences: readonly PrintedDifference[];
  /** What else there is to say, for people. */
  readonly notes: readonly string[];
}

export interface VerifyReport {
  /** Every published table is in the file and equal, and nothing else is in it. */
  readonly equal: boolean;
  /** False: of some tables nothing can be said. */
  readonly complete: boolean;
  readonly file: string;
  readonly epoch: string;
  /** Snapshots that were taken. */
  readonly rounds: number;
  readonly rows: number;
  readonly elapsedMs: number;
  readonly tables: readonly TableReport[];
  /** Tables of the database that are not mirrored, and why: no difference, but not in the file either. */
  readonly notMirrored: readonly { readonly table: string; readonly reason: string }[];
  /**
   * What --repair did, and the tables that it was done to as they were found before; the rest of the report is
   * what is the case now. Null: nothing was to be done.
   */
  readonly repair: (RepairReport & { readonly found: readonly TableReport[] }) | null;
}

export interface VerifyProgress {
  readonly phase: 'snapshot' | 'comparing' | 'mending';
  readonly table: string | null;
  readonly tablesDone: number;
  readonly tablesTotal: number;
  /** Rows that came from Postgres so far. */
  readonly rows: number;
  readonly doneBytes: number;
  readonly totalBytes: number;
  readonly elapsedMs: number;
}

export interface VerifyOptions {
  readonly postgres: string;
  readonly file: string;
  readonly publication: string;
  readonly slot: string;
  /** `a`, `b.c`: these only. */
  readonly tables?: readonly string[] | undefined;
  readonly snapshotLimitMs?: number | undefined;
  /** How long the file may take to get to where Postgres is, for each snapshot. */
  readonly fileTimeoutMs?: number | undefined;
  /** How long a table may be in the middle of a change; default: as long as the file may take. */
  readonly unsettledTimeoutMs?: number;
  readonly partRows?: number;
  readonly shownDifferences?: number;
  readonly onProgress: (progress: VerifyProgress) => void;
  readonly signal: AbortSignal;
}

/** A table that is still to be compared, or the rest of one. */
interface Task {
  readonly oid: number;
  readonly table: string;
  sqliteName: string | null;
  from: bigint | null;
  /** Since when nothing can be said of it: its definition changes, or it is being read again; null: it can. */
  unsettledSinceMs: number | null;
  expectedRows: number;
  actualRows: number;
  /** By row and column: a row may have been read twice. */
  readonly leftOut: Map<string, LeftOutValue>;
  position: string | null;
}

/**
 * Compares a replica file with Postgres, table by table, each at one exact position, while both go on.
 *
 * In rounds: each takes a pair of snapshots (see openPairedSnapshot) and holds them for as long as the limit
 * allows, and at least for one table or one part of a large one; the next round goes on with the rest. Tables
 * that were changed by DDL between the two snapshots, or while they were read, wait for the next round.
 *
 * Memory: buckets of sums, and the changes between two snapshots. Rows are kept only where buckets differ, in a
 * temporary file.
 */
export class Verifier implements AsyncDisposable {
  readonly #options: VerifyOptions;
  readonly #file: FileSide;
  readonly #spool = new DifferenceSpool();
  readonly #reports = new Map<number, TableReport>();
  readonly #relations = new Map<number, Relation>();
  #tasks: Task[] | null = null;
  readonly #longTables = new Set<number>();
  #notMirrored: VerifyReport['notMirrored'] = [];
  #sizes: ReadonlyMap<number, number> = new Map();
  #rounds = 0;
  #rows = 0;
  /** Rows that came from Postgres, those that were looked at twice included. */
  #read = 0;
  #doneBytes = 0;
  #taskBytes = 0;
  #epoch = '';
  readonly #startedAtMs = performance.now();

  constructor(options: VerifyOptions) {
    this.#options = options;
    this.#file = new FileSide(options.file, options.signal);
  }

  run(): Promise<VerifyReport> {
    return this.#interruptible(async () => {
      const { signal } = this.#options;
      while (this.#tasks === null || this.#tasks.length > 0) {
        await this.#round();
        if (this.#tasks?.every(({ unsettledSinceMs }) => unsettledSinceMs !== null))
          await delay(UNSETTLED_PAUSE_MS, undefined, { signal });
      }
      return this.#summary(null);
    });
  }

  /** Has the rows that run() found mended, and looks at them again. */
  repair(): Promise<VerifyReport> {
    return this.#interruptible(() => this.#repair());
  }

  /** What fails behind the signal fails for it: connections are cut, threads ended. */
  async #interruptible<Result>(work: () => Promise<Result>): Promise<Result> {
    const { signal } = this.#options;
    try {
      return await work();
    } catch (error) {
      throw signal.aborted ? new RivuletError('CLOSED', 'interrupted') : error;
    }
  }

  async #repair(): Promise<VerifyReport> {
    const different = [...this.#reports].filter(([, { verdict }]) => verdict === 'different');
    const repairer = new Repairer({
      path: this.#options.file,
      file: this.#file,
      spool: this.#spool,
      epoch: this.#epoch,
      isKeyed: (oid) => locatorColumns(this.#relations.get(oid)!).length > 0,
      openPair: () => this.#openPair(),
      onProgress: () => this.#report('mending', null),
      signal: this.#options.signal,
    });
    const repair = await repairer.run(different.map(([oid]) => oid));
    for (const [oid, report] of different) {
      const now = this.#found(oid, report.leftOut);
      const { postgres } = report.rows;
      const file = postgres === null ? null : postgres - now.missing + now.extra;
      this.#reports.set(oid, { ...report, ...now, rows: { postgres, file } });
    }
    return this.#summary({ ...repair, found: different.map(([, report]) => report) });
  }

  #summary(repair: VerifyReport['repair']): VerifyReport {
    const tables = [...this.#reports.values()].sort((a, b) => (a.table < b.table ? -1 : 1));
    return {
      equal: tables.every(({ verdict }) => verdict === 'equal'),
      complete: tables.every(({ verdict }) => verdict !== 'not compared'),
      file: this.#options.file,
      epoch: this.#epoch,
      rounds: this.#rounds,
      rows: this.#rows,
      elapsedMs: Math.round(performance.now() - this.#startedAtMs),
      tables,
      notMirrored: this.#notMirrored,
      repair,
    };
  }

  /** Both sides as of one position, for another look at some rows. */
  #openPair(): Promise<PairedSnapshot> {
    const { postgres, publication, slot, fileTimeoutMs = DEFAULT_FILE_TIMEOUT_MS, signal } = this.#options;
    this.#rounds++;
    this.#report('snapshot', null);
    return openPairedSnapshot({
      url: postgres,
      publication,
      slot,
      file: this.#file,
      timeoutMs: fileTimeoutMs,
      signal,
      onRow: (bytes) => {
        this.#read++;
        this.#taskBytes += bytes;
      },
      longTables: this.#longTables,
      onWaiting: () => this.#report('snapshot', null),
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#file[Symbol.asyncDispose]();
    this.#spool[Symbol.dispose]();
  }

  async #round(): Promise<void> {
    await using pair = await this.#openPair();
    const { snapshotLimitMs = DEFAULT_SNAPSHOT_LIMIT_MS } = this.#options;
    const deadlineMs = performance.now() + snapshotLimitMs;
    this.#epoch = pair.epoch;
    this.#tasks ??= await this.#begin(pair);
    for (const task of [...this.#tasks]) {
      const isDone = await this.#compareTask(pair, task, deadlineMs);
      if (isDone) this.#tasks = this.#tasks.filter((each) => each !== task);
      else if (this.#isGivenUp(task)) this.#giveUp(task);
      if (performance.now() >= deadlineMs) return;
    }
  }

  async #begin(pair: PairedSnapshot): Promise<Task[]> {
    const oids = new Map<number, string>();
    for (const { relation } of pair.layouts.values()) oids.set(relation.oid, tableName(relation));
    for (const relation of pair.relations.values()) oids.set(relation.oid, tableName(relation));
    const wanted = this.#options.tables;
    const chosen = [...oids].filter(
      ([, name]) => wanted === undefined || wanted.some((each) => isNamed(name, each)),
    );
    const unknown = (wanted ?? []).filter((each) => ![...oids.values()].some((name) => isNamed(name, each)));
    if (unknown.length > 0) {
      throw new RivuletError('CONFIG', `neither published nor in the file: ${unknown.join(', ')}`, {
        hint: '--tables takes names as a,b.c; without a schema, public is meant',
      });
    }
    const { notMirrored } = await readMirrorReport(pair.postgres.control, this.#options.publication);
    this.#notMirrored = wanted === undefined ? notMirrored : [];
    this.#sizes = await pair.postgres.sizes(chosen.flatMap(([oid]) => pair.relations.get(oid) ?? []));
    // Small ones first: what can be said is soon said, and a large one has the rest of the time.
    return chosen
      .map(([oid, table]) => ({
        oid,
        table,
        sqliteName: pair.layouts.get(oid)?.sqliteName ?? null,
        from: null,
        unsettledSinceMs: null,
        expectedRows: 0,
        actualRows: 0,
        leftOut: new Map(),
        position: null,
      }))
      .sort((a, b) => (this.#sizes.get(a.oid) ?? 0) - (this.#sizes.get(b.oid) ?? 0));
  }

  /** True: there is nothing more to do about it. */
  async #compareTask(pair: PairedSnapshot, task: Task, deadlineMs: number): Promise<boolean> {
    task.unsettledSinceMs ??= performance.now();
    if (pair.unsettled.has(task.oid)) return false;
    const relation = pair.relations.get(task.oid);
    const layout = pair.layouts.get(task.oid);
    task.position = formatLsn(pair.position);
    task.sqliteName = layout?.sqliteName ?? task.sqliteName;
    const problem = compareDefinitions(relation, layout);
    if (relation === undefined || layout === undefined || problem !== null) {
      if (problem !== null) this.#conclude(task, problem.verdict, problem.notes);
      return true;
    }
    this.#relations.set(task.oid, relation);
    const [file, spool] = [this.#file, this.#spool];
    const comparison = new TableComparison({ pair, file, spool, relation, layout });
    const column = TableComparison.rangeColumn(relation, layout);
    do {
      const { from } = task;
      const to = column === null ? null : await this.#partEnd(task, layout.columnNames[column]!);
      const range = from === null && to === null ? null : { from, to };
      this.#taskBytes = 0;
      const ticker = setInterval(() => this.#report('comparing', task), 100);
      const result = await comparison.compare(range).finally(() => clearInterval(ticker));
      if (result === null) return false;
      task.unsettledSinceMs = null;
      task.expectedRows += result.expectedRows;
      task.actualRows += result.actualRows;
      for (const value of result.leftOut) task.leftOut.set(JSON.stringify([value.row, value.column]), value);
      this.#rows += result.expectedRows;
      this.#doneBytes += this.#taskBytes;
      this.#report('comparing', task);
      if (to === null) {
        this.#conclude(task, null, []);
        return true;
      }
      task.from = to;
    } while (performance.now() < deadlineMs);
    return false;
  }

  #partEnd(task: Task, column: string): Promise<bigint | null> {
    const { partRows = DEFAULT_PART_ROWS } = this.#options;
    return this.#file.boundary({ oid: task.oid, column, from: task.from, rows: partRows });
  }

  #isGivenUp({ unsettledSinceMs }: Task): boolean {
    const { fileTimeoutMs = DEFAULT_FILE_TIMEOUT_MS, unsettledTimeoutMs = fileTimeoutMs } = this.#options;
    return unsettledSinceMs !== null && performance.now() - unsettledSinceMs >= unsettledTimeoutMs;
  }

  #giveUp(task: Task): void {
    this.#tasks = this.#tasks!.filter((each) => each !== task);
    this.#conclude(task, 'not compared', [
      'its definition changed whenever it was looked at, or it is being read again after such a change: try later, or with a longer --timeout',
    ]);
  }

  #conclude(task: Task, verdict: TableVerdict | null, notes: readonly string[]): void {
    const wereRead = verdict === null;
    const leftOut = [...task.leftOut.values()];
    const found = this.#found(task.oid, leftOut);
    this.#reports.set(task.oid, {
      table: task.table,
      sqliteName: task.sqliteName,
      ...found,
      verdict: verdict ?? found.verdict,
      rows: {
        postgres: wereRead ? task.expectedRows : null,
        file: wereRead ? task.actualRows : null,
      },
      position: task.position,
      leftOut,
      notes: [...notes, ...leftOut.slice(0, this.#shown).map(describeLeftOutValue)],
    });
  }

  /** What the spool has of a table now. */
  #found(
    oid: number,
    leftOut: readonly LeftOutValue[],
  ): Pick<TableReport, 'verdict' | 'differences' | DifferenceKind> {
    const counts = this.#spool.counts(oid);
    const relation = this.#relations.get(oid);
    const otherwise = leftOut.length === 0 ? 'equal' : 'incomplete';
    return {
      ...counts,
      verdict: counts.different + counts.missing + counts.extra === 0 ? otherwise : 'different',
      differences:
        relation === undefined
          ? []
          : this.#spool.list(oid, this.#shown).map((each) => describeDifference(relation, each)),
    };
  }

  get #shown(): number {
    return this.#options.shownDifferences ?? DEFAULT_SHOWN_DIFFERENCES;
  }

  #report(phase: VerifyProgress['phase'], task: Task | null): void {
    const tasks = this.#tasks;
    const totalBytes = [...this.#sizes.values()].reduce((sum, size) => sum + size, 0);
    this.#options.onProgress({
      phase,
      table: task?.table ?? null,
      tablesDone: this.#reports.size,
      tablesTotal: this.#reports.size + (tasks?.length ?? 0),
      rows: this.#read,
      doneBytes: Math.min(totalBytes, this.#doneBytes + this.#taskBytes),
      totalBytes,
      elapsedMs: performance.now() - this.#startedAtMs,
    });
  }
}

/** What is wrong with a table as a whole; null: its rows can be compared. */
function compareDefinitions(
  relation: Relation | undefined,
  layout: TableLayout | undefined,
): { readonly verdict: TableVerdict; readonly notes: readonly string[] } | null {
  if (relation === undefined) {
    return layout === undefined
      ? { verdict: 'not compared', notes: ['it was dropped meanwhile'] }
      : { verdict: 'extra', notes: ['it is in the file, but not published'] };
  }
  if (layout === undefined) return { verdict: 'missing', notes: ['it is published, but not in the file'] };
  const notes: string[] = [];
  const stored = new Map(layout.relation.columns.map((column) => [column.attnum, column]));
  for (const column of relation.columns) {
    const there = stored.get(column.attnum);
    stored.delete(column.attnum);
    if (there === undefined) notes.push(`the file lacks the column ${column.name}`);
    else if (there.name !== column.name)
      notes.push(`the column ${column.name} is called ${there.name} in the file`);
    else if (there.typeName !== column.typeName)
      notes.push(
        `the column ${column.name} is ${column.typeName} in Postgres, ${there.typeName} in the file`,
      );
    else if (
      JSON.stringify([there.mapping, there.keyOrdinal]) !==
      JSON.stringify([column.mapping, column.keyOrdinal])
    )
      notes.push(`the column ${column.name} has another place in the key, or another mapping, in the file`);
  }
  for (const column of stored.values())
    notes.push(`the file has a column ${column.name} that is not published`);
  if (tableName(relation) !== tableName(layout.relation))
    notes.push(`it is called ${tableName(layout.relation)} in the file`);
  return notes.length === 0 ? null : { verdict: 'columns differ', notes };
}

export function tableName(relation: Pick<Relation, 'schema' | 'name'>): string {
  return `${relation.schema}.${relation.name}`;
}

/** `a` means public.a. */
function isNamed(table: string, wanted: string): boolean {
  return table === wanted || table === `public.${wanted}`;
}
