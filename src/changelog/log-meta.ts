import type Database from 'better-sqlite3';
import { RivuletError } from '../errors.ts';
import type { Lsn } from '../lsn.ts';
import type { SourceFacts } from './change-log.ts';

/** Format of the log's tables; the frames inside have a version of their own (see change/frame.ts). */
export const LOG_FORMAT_VERSION = 1;

const KEYS = {
  formatVersion: 'format_version',
  epoch: 'epoch',
  source: 'source',
  sourceState: 'source_state',
  startPosition: 'start_position',
  advancedTo: 'advanced_to',
  oldestSeq: 'oldest_seq',
  oldestPosition: 'oldest_position',
  oldestOffset: 'oldest_offset',
} as const;

/** The log's one-row facts, read once, written through. */
export class LogMeta {
  readonly epoch: string;
  readonly source: SourceFacts;
  readonly startPosition: Lsn;
  sourceState: string;
  #advancedTo: Lsn;
  #oldestSeq: number;
  #oldestPosition: Lsn;
  #oldestOffset: number;
  readonly #db: Database.Database;
  readonly #update: Database.Statement<[string | bigint | number, string]>;

  static create(
    db: Database.Database,
    facts: {
      readonly epoch: string;
      readonly source: SourceFacts;
      readonly sourceState: string;
      readonly startPosition: Lsn;
    },
  ): void {
    const insert = db.prepare('INSERT INTO meta (key, value) VALUES (?, ?)');
    insert.run(KEYS.formatVersion, BigInt(LOG_FORMAT_VERSION));
    insert.run(KEYS.epoch, facts.epoch);
    const { systemIdentifier, timeline, database, slot, publication } = facts.source;
    insert.run(KEYS.source, JSON.stringify({ systemIdentifier, timeline, database, slot, publication }));
    insert.run(KEYS.sourceState, facts.sourceState);
    insert.run(KEYS.startPosition, facts.startPosition);
    insert.run(KEYS.advancedTo, facts.startPosition);
    insert.run(KEYS.oldestSeq, 1n);
    insert.run(KEYS.oldestPosition, facts.startPosition);
    insert.run(KEYS.oldestOffset, 0n);
  }

  constructor(db: Database.Database, file: string) {
    this.#db = db;
    const rows = db
      .prepare<[], { key: string; value: unknown }>('SELECT key, value FROM meta')
      .safeIntegers()
      .all();
    const values = new Map(rows.map(({ key, value }) => [key, value]));
    const version = values.get(KEYS.formatVersion);
    if (version !== BigInt(LOG_FORMAT_VERSION)) {
      throw new RivuletError(
        'VERSION_MISMATCH',
        `the change log ${file} has format ${String(version)}, this program knows ${LOG_FORMAT_VERSION}`,
        {
          hint: 'use the version of rivulet that made it, or start with an empty --data directory',
        },
      );
    }
    const text = (key: string): string => check(values.get(key), 'string', key, file) as string;
    const integer = (key: string): bigint => check(values.get(key), 'bigint', key, file) as bigint;
    this.epoch = text(KEYS.epoch);
    this.source = JSON.parse(text(KEYS.source)) as SourceFacts;
    this.sourceState = text(KEYS.sourceState);
    this.startPosition = integer(KEYS.startPosition);
    this.#advancedTo = integer(KEYS.advancedTo);
    this.#oldestSeq = Number(integer(KEYS.oldestSeq));
    this.#oldestPosition = integer(KEYS.oldestPosition);
    this.#oldestOffset = Number(integer(KEYS.oldestOffset));
    this.#update = db.prepare('UPDATE meta SET value = ? WHERE key = ?');
  }

  /** Where the last `advance` moved the position to; batches after it may have moved it further. */
  get advancedTo(): Lsn {
    return this.#advancedTo;
  }

  get oldestSeq(): number {
    return this.#oldestSeq;
  }

  get oldestPosition(): Lsn {
    return this.#oldestPosition;
  }

  get oldestOffset(): number {
    return this.#oldestOffset;
  }

  advance(position: Lsn): void {
    this.#update.run(position, KEYS.advancedTo);
    this.#advancedTo = position;
  }

  /** Part of the caller's SQLite transaction; the caller sets `sourceState` once that has committed. */
  writeSourceState(state: string): void {
    this.#update.run(state, KEYS.sourceState);
  }

  prunedTo(oldestSeq: number, oldestPosition: Lsn, oldestOffset: number): void {
    this.#db.transaction(() => {
      this.#update.run(BigInt(oldestSeq), KEYS.oldestSeq);
      this.#update.run(oldestPosition, KEYS.oldestPosition);
      this.#update.run(BigInt(oldestOffset), KEYS.oldestOffset);
    })();
    this.#oldestSeq = oldestSeq;
    this.#oldestPosition = oldestPosition;
    this.#oldestOffset = oldestOffset;
  }
}

function check(value: unknown, type: 'string' | 'bigint', key: string, file: string): unknown {
  if (typeof value === type) return value;
  throw new RivuletError('FILE_UNUSABLE', `the change log ${file} has no usable ${key}`);
}
