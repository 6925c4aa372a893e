import { randomUUID } from 'node:crypto';
import { realpathSync, renameSync, rmSync } from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';
import Database from 'better-sqlite3';
import { RivuletError } from '../errors.ts';
import { formatLsn, type Lsn, parseLsn } from '../lsn.ts';

/**
 * A replica file has one writer, so whoever wants rows of it mended asks that one, with a file beside it: a
 * small SQLite database that is put in place whole, and in which the answer is written. docs/formats.md shows it.
 *
 * First a watch is asked for: from the answer's position on, the writer notes which of these rows change. Then
 * both sides are read again, and mending is asked for: a row that did not change since the watch began is
 * what was read, whatever it has meanwhile come to look like.
 */
export const REPAIR_FORMAT_VERSION = 1;

/** One row to be watched (`found` and `wanted` are null), or to be mended. Tuples of the change format. */
export interface RepairRow {
  readonly oid: number;
  /** Its key's values; of a table without a key, nothing: rows of such a table commute. */
  readonly key: Buffer | null;
  /** The row as it is in the file; null: it is not there. */
  readonly found: Buffer | null;
  /** The row as it must be; null: it must not be there. */
  readonly wanted: Buffer | null;
}

export type RepairOutcome =
  | 'mended'
  /** The row was changed by the stream since it was looked at, or is not any more what was found. */
  | 'moved on';

export interface RepairRequest {
  readonly kind: 'watch' | 'mend';
  readonly epoch: string;
  /** Names the watch that this request begins, or relies on. */
  readonly watch: string;
}

export interface RepairAnswer {
  /** Watch: rows that change behind this are noted. Mend: where the file was when the last row was mended. */
  readonly position: Lsn;
  readonly mended: number;
  readonly movedOn: number;
}

const SCHEMA = `
  CREATE TABLE request (version INTEGER NOT NULL, id TEXT NOT NULL, kind TEXT NOT NULL, epoch TEXT NOT NULL, watch TEXT NOT NULL);
  CREATE TABLE row (id INTEGER PRIMARY KEY, relation_oid INTEGER NOT NULL, key BLOB, found BLOB, wanted BLOB, outcome TEXT);
  CREATE TABLE answer (position TEXT, code TEXT, message TEXT);
`;
const BUSY_TIMEOUT_MS = 2000;

/** Beside the path that the replica was given, whatever that leads to: as its lock. */
export function repairPath(file: string): string {
  return join(realpathSync(dirname(resolve(file))), `${basename(file)}-repair`);
}

/** Puts a request in place of any before it. Returns its id, by which the answer is known to be to it. */
export function writeRepairRequest(file: string, request: RepairRequest, rows: Iterable<RepairRow>): string {
  const path = repairPath(file);
  const aside = `${path}.${process.pid}`;
  const id = randomUUID();
  rmSync(aside, { force: true });
  const db = new Database(aside);
  try {
    db.pragma('synchronous = OFF');
    db.exec(SCHEMA);
    db.exec('BEGIN');
    db.prepare('INSERT INTO request VALUES (?, ?, ?, ?, ?)').run(
      BigInt(REPAIR_FORMAT_VERSION),
      id,
      request.kind,
      request.epoch,
      request.watch,
    );
    const insert = db.prepare('INSERT INTO row (relation_oid, key, found, wanted) VALUES (?, ?, ?, ?)');
    for (const { oid, key, found, wanted } of rows) insert.run(oid, key, found, wanted);
    db.exec('COMMIT');
  } finally {
    db.close();
  }
  renameSync(aside, path);
  return id;
}

/** The answer to a request; null while there is none. Throws what the writer refused it with. */
export function readRepairAnswer(file: string, id: string): RepairAnswer | null {
  const db = new Database(repairPath(file), {
    readonly: true,
    fileMustExist: true,
    timeout: BUSY_TIMEOUT_MS,
  });
  try {
    if (db.prepare<[], string>('SELECT id FROM request').pluck().get() !== id) {
      throw new RivuletError('FILE_LOCKED', `another verify mends ${file} at the same time`, {
        hint: 'run one at a time',
      });
    }
    const answer = db
      .prepare<[], { position: string | null; message: string | null }>(
        'SELECT position, message FROM answer',
      )
      .get();
    if (answer === undefined) return null;
    if (answer.position === null)
      throw new RivuletError('NOT_READY', `the rows were not mended: ${answer.message}`, {
        hint: 'run verify again',
      });
    const outcomes = new Map(
      db
        .prepare<[], { outcome: RepairOutcome; count: number }>(
          'SELECT outcome, count(*) AS count FROM row WHERE outcome IS NOT NULL GROUP BY outcome',
        )
        .all()
        .map(({ outcome, count }) => [outcome, count]),
    );
    return {
      position: parseLsn(answer.position),
      mended: outcomes.get('mended') ?? 0,
      movedOn: outcomes.get('moved on') ?? 0,
    };
  } finally {
    db.close();
  }
}

export function removeRepairRequest(file: string): void {
  for (const suffix of ['', '-journal']) rmSync(`${repairPath(file)}${suffix}`, { force: true });
}

/** A request as the file's writer has it open. */
export class OpenRepairRequest implements Disposable {
  readonly #db: Database.Database;
  readonly request: RepairRequest & { readonly version: number };

  constructor(path: string) {
    this.#db = new Database(path, { fileMustExist: true, timeout: BUSY_TIMEOUT_MS });
    try {
      this.#db.pragma('synchronous = OFF');
      this.request = this.#db
        .prepare<[], RepairRequest & { version: number }>('SELECT version, kind, epoch, watch FROM request')
        .get()!;
    } catch (error) {
      this.#db.close();
      throw error;
    }
  }

  get isAnswered(): boolean {
    return this.#db.prepare('SELECT 1 FROM answer').get() !== undefined;
  }

  rows(): IterableIterator<RepairRow & { readonly id: number }> {
    return this.#db
      .prepare<[], RepairRow & { id: number }>('SELECT id, relation_oid AS oid, key, found, wanted FROM row')
      .iterate();
  }

  /** The next rows without an outcome. */
  open(limit: number): readonly (RepairRow & { readonly id: number })[] {
    return this.#db
      .prepare<[number], RepairRow & { id: number }>(
        'SELECT id, relation_oid AS oid, key, found, wanted FROM row WHERE outcome IS NULL ORDER BY id LIMIT ?',
      )
      .all(limit);
  }

  record(outcomes: ReadonlyMap<number, RepairOutcome>): void {
    const update = this.#db.prepare('UPDATE row SET outcome = ? WHERE id = ?');
    this.#db.transaction(() => {
      for (const [id, outcome] of outcomes) update.run(outcome, id);
    })();
  }

  answer(position: Lsn): void {
    this.#db.prepare('INSERT INTO answer (position) VALUES (?)').run(formatLsn(position));
  }

  refuse(error: RivuletError): void {
    this.#db.prepare('INSERT INTO answer (code, message) VALUES (?, ?)').run(error.code, error.message);
  }

  [Symbol.dispose](): void {
    this.#db.close();
  }
}
