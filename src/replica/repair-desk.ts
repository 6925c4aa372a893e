import { statSync } from 'node:fs';
import type { Database } from 'better-sqlite3';
import { ProtocolError, RivuletError } from '../errors.ts';
import type { Lsn } from '../lsn.ts';
import {
  OpenRepairRequest,
  REPAIR_FORMAT_VERSION,
  type RepairOutcome,
  type RepairRow,
  repairPath,
} from './repair-file.ts';
import { RowMender } from './row-mender.ts';
import { RowWatch } from './row-watch.ts';
import type { TableLayout } from './table-layout.ts';

/** How often the writer looks whether somebody asks for rows to be mended, besides when it is told: one stat(2). */
export const REPAIR_POLL_MS = 1000;

/** Rows that are mended in one SQLite transaction: the stream waits for so long. */
const ROWS_PER_TRANSACTION = 500;

/** A watch whose asker has gone away ends by itself. */
const WATCH_LIFETIME_MS = 10 * 60_000;

/** What the desk needs of the file and of its one writer. */
export interface MendableFile {
  readonly epoch: string;
  readonly position: Lsn;
  /** Between two transactions: nothing is under way on the connection. */
  readonly isIdle: boolean;
  readonly db: Database;
  readonly layouts: ReadonlyMap<number, TableLayout>;
}

/**
 * Where the writer of a replica file takes requests to mend rows (see repair-file.ts), on its own thread, between
 * the transactions of the stream.
 */
export class RepairDesk {
  readonly #path: string;
  readonly #onLog: (
    level: 'info' | 'warn',
    message: string,
    facts: Readonly<Record<string, unknown>>,
  ) => void;
  /** Inode and time of the request that needs no look any more. */
  #done = '';
  #watch: {
    readonly id: string;
    readonly epoch: string;
    readonly rows: RowWatch;
    readonly endsAtMs: number;
  } | null = null;

  constructor(
    file: string,
    onLog: (level: 'info' | 'warn', message: string, facts: Readonly<Record<string, unknown>>) => void,
  ) {
    this.#path = repairPath(file);
    this.#onLog = onLog;
  }

  /** Another file takes the place of the one that was watched. */
  endWatch(): void {
    this.#watch = null;
  }

  /** Frames that are about to be applied to the file. */
  see(frames: Buffer): void {
    this.#watch?.rows.see(frames);
  }

  /**
   * Does what is asked for, or a part of it. Returns the SQLite names of the tables that were changed; with
   * `again`, there is more to do at once.
   */
  look(file: MendableFile): { readonly tables: readonly string[]; readonly again: boolean } {
    const stamp = stampOf(this.#path);
    if (this.#watch !== null && (stamp === null || performance.now() > this.#watch.endsAtMs))
      this.#watch = null;
    if (stamp === null || stamp === this.#done || !file.isIdle) return NOTHING;
    try {
      using request = new OpenRepairRequest(this.#path);
      const result = request.isAnswered ? NOTHING : this.#answer(request, file);
      if (!result.again) this.#done = stampOf(this.#path) ?? '';
      return result;
    } catch (error) {
      this.#done = stamp;
      this.#onLog('warn', `a request to mend rows cannot be read: ${(error as Error).message}`, {
        file: this.#path,
      });
      return NOTHING;
    }
  }

  #answer(open: OpenRepairRequest, file: MendableFile): ReturnType<RepairDesk['look']> {
    const { request } = open;
    try {
      if (request.version !== REPAIR_FORMAT_VERSION)
        throw new RivuletError('VERSION_MISMATCH', `the process that keeps the file is of another version`);
      if (request.epoch !== file.epoch)
        throw new RivuletError('EPOCH_MISMATCH', 'the file has been made anew meanwhile');
      if (request.kind === 'watch') {
        this.#watch = {
          id: request.watch,
          epoch: file.epoch,
          rows: watchRows(open, file),
          endsAtMs: performance.now() + WATCH_LIFETIME_MS,
        };
        open.answer(file.position);
        return NOTHING;
      }
      const watch = this.#watch;
      if (watch === null || watch.id !== request.watch || watch.epoch !== file.epoch)
        throw new RivuletError('NOT_READY', 'the process that keeps the file has been restarted meanwhile');
      return this.#mend(open, file, watch.rows);
    } catch (error) {
      open.refuse(error instanceof RivuletError ? error : new ProtocolError((error as Error).message));
      return NOTHING;
    }
  }

  #mend(open: OpenRepairRequest, file: MendableFile, watch: RowWatch): ReturnType<RepairDesk['look']> {
    const { db, layouts } = file;
    const rows = open.open(ROWS_PER_TRANSACTION);
    if (rows.length === 0) {
      open.answer(file.position);
      this.#watch = null;
      return NOTHING;
    }
    const outcomes = new Map<number, RepairOutcome>();
    const menders = new Map<number, RowMender>();
    const tables = new Set<string>();
    db.exec('BEGIN IMMEDIATE');
    try {
      for (const row of rows) {
        const isMended = watch.isUntouched(row.oid, row.key) && mendRow(db, layouts, menders, row);
        outcomes.set(row.id, isMended ? 'mended' : 'moved on');
        if (isMended) tables.add(layouts.get(row.oid)!.sqliteName);
      }
      db.exec('COMMIT');
    } catch (error) {
      if (db.inTransaction) db.exec('ROLLBACK');
      throw error;
    }
    open.record(outcomes);
    this.#onLog('warn', 'rows that differed from Postgres were mended', {
      tables: [...tables],
      rows: [...outcomes.values()].filter((outcome) => outcome === 'mended').length,
    });
    return { tables: [...tables], again: true };
  }
}

const NOTHING = { tables: [], again: false } as const;

function watchRows(open: OpenRepairRequest, file: MendableFile): RowWatch {
  const watch = new RowWatch();
  for (const { oid, key } of open.rows()) {
    const layout = file.layouts.get(oid);
    if (layout !== undefined) watch.add(layout, key);
  }
  return watch;
}

function mendRow(
  db: Database,
  layouts: ReadonlyMap<number, TableLayout>,
  menders: Map<number, RowMender>,
  { oid, found, wanted }: RepairRow,
): boolean {
  const layout = layouts.get(oid);
  if (layout === undefined) return false;
  let mender = menders.get(oid);
  if (mender === undefined) {
    mender = new RowMender(db, layout);
    menders.set(oid, mender);
  }
  return mender.mend(found, wanted);
}

function stampOf(path: string): string | null {
  const stat = statSync(path, { throwIfNoEntry: false });
  return stat === undefined ? null : `${stat.ino}:${stat.mtimeMs}:${stat.size}`;
}
