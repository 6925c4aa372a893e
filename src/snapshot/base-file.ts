import { existsSync, rmSync, statSync } from 'node:fs';
import Database from 'better-sqlite3';
import type { Relation } from '../change/relation.ts';
import type { ChangeLog } from '../changelog/change-log.ts';
import { RivuletError } from '../errors.ts';
import type { Log } from '../log.ts';
import { formatLsn, type Lsn } from '../lsn.ts';
import type { LocalSql } from '../replica/local-sql.ts';
import { readPosition, swapInto } from '../replica/replica-file.ts';
import type { SourceIdentity } from '../source/catalog.ts';
import { BaseWriter } from './base-writer.ts';
import type { SnapshotLease, SnapshotProvider } from './snapshot-provider.ts';

/** A new follower applies at most so much of the log; more, and the base file is brought forward first. */
export const DEFAULT_ADVANCE_BYTES = 64 * 1024 * 1024;

/** How much of the log is read at a time while the base file is brought forward. */
const READ_BYTES = 1024 * 1024;

/**
 * The replicator's own replica, which serves nobody: a file at a known position that new followers start from.
 * It stands still while it is handed out, and in between is brought forward in large steps, which folds most
 * of the work away. The log is never pruned past it.
 */
export class BaseFile implements SnapshotProvider {
  readonly #file: string;
  readonly #log: Log;
  /** False where the file is a live replica's own, in the one-process mode: then it is only built here. */
  readonly #isOurs: boolean;
  readonly #localSql: LocalSql | null;
  /** The live replica that this one is copied from, where nobody builds it. */
  readonly #copyOf: string | null;
  #position: Lsn | null = null;
  #epoch: string | null = null;
  #changeLog: ChangeLog | null = null;
  #leases = 0;
  #advancing: Promise<void> | null = null;

  constructor(options: {
    readonly file: string;
    readonly isOurs: boolean;
    /** For a live replica's file only: what others start from has nobody's local objects. */
    readonly localSql?: LocalSql | undefined;
    readonly copyOf?: string;
    readonly log: Log;
  }) {
    this.#file = options.file;
    this.#isOurs = options.isOurs;
    this.#localSql = options.isOurs ? null : (options.localSql ?? null);
    this.#copyOf = options.copyOf ?? null;
    this.#log = options.log;
  }

  get file(): string {
    return this.#file;
  }

  /** The position of the file if it is kept here; null for a live replica's file. */
  get position(): Lsn | null {
    return this.#isOurs ? this.#position : null;
  }

  status(): { readonly position: string | null; readonly bytes: number | null } {
    return {
      position: this.#position === null ? null : formatLsn(this.#position),
      bytes: existsSync(this.#file) ? statSync(this.#file).size : null,
    };
  }

  /** Whether a whole file of this epoch is in place. */
  matches(epoch: string): boolean {
    if (this.#epoch !== epoch) this.#read();
    return this.#epoch === epoch;
  }

  /** The log that the file is brought forward from. */
  attach(changeLog: ChangeLog): void {
    this.#changeLog = changeLog;
  }

  /** Begins a new file beside the present one; install() puts it in place. */
  build(options: {
    readonly relations: readonly Relation[];
    readonly epoch: string;
    readonly identity: SourceIdentity;
  }): BaseWriter {
    removeDatabase(this.#building);
    return new BaseWriter({
      kind: 'build',
      file: this.#building,
      relations: options.relations,
      epoch: options.epoch,
      systemIdentifier: options.identity.systemIdentifier,
      databaseName: options.identity.database,
      localSql: this.#localSql,
    });
  }

  /** A file that is not going to be whole makes room, and be it for another try. */
  discardBuild(): void {
    removeDatabase(this.#building);
  }

  install(epoch: string): void {
    // Nobody else has our own file open; a live replica's stays for its readers beside the new one.
    if (this.#isOurs) removeDatabase(this.#file);
    swapInto(this.#file, this.#building, epoch);
    this.#read();
  }

  /** The history that the file belongs to is over. A live replica's file stays for its readers. */
  async invalidate(): Promise<void> {
    this.#changeLog = null;
    await this.#advancing?.catch(() => undefined);
    this.#epoch = null;
    this.#position = null;
    if (this.#isOurs) removeDatabase(this.#file);
  }

  async acquire({ fresh = false } = {}): Promise<SnapshotLease> {
    this.#leases++;
    let isHeld = true;
    const release = (): void => {
      if (isHeld) this.#leases--;
      isHeld = false;
    };
    try {
      await this.#copyIfMissing();
      // With other downloads under way the file stays as it is: the log reaches back to it.
      if (this.#leases === 1 && this.#bytesBehind() > (fresh ? 0 : DEFAULT_ADVANCE_BYTES / 4))
        await this.#advance();
      await this.#advancing;
      if (this.#epoch === null || this.#position === null || !this.#isOurs) {
        throw new RivuletError('NOT_READY', 'there is no snapshot yet', {
          hint: 'the initial copy is still under way',
        });
      }
      return { path: this.#file, epoch: this.#epoch, position: this.#position, release };
    } catch (error) {
      release();
      throw error;
    }
  }

  /** Brings the file forward if the log since it has grown long and nobody is reading it. */
  advanceIfDue(): void {
    if (this.#leases > 0 || this.#bytesBehind() < DEFAULT_ADVANCE_BYTES) return;
    this.#advance().catch((error: unknown) => {
      this.#log.error({ err: error, file: this.#file }, 'the base file could not be brought forward');
    });
  }

  async close(): Promise<void> {
    this.#changeLog = null;
    await this.#advancing?.catch(() => undefined);
  }

  async #copyIfMissing(): Promise<void> {
    const epoch = this.#changeLog?.epoch;
    if (this.#copyOf === null || epoch === undefined || this.matches(epoch)) return;
    const live = existsSync(this.#copyOf) ? readEpoch(this.#copyOf) : null;
    if (live !== epoch) return;
    this.#log.info({ from: this.#copyOf, file: this.#file }, 'copying the replica for snapshots of it');
    removeDatabase(this.#building);
    await using writer = new BaseWriter({ kind: 'copy', from: this.#copyOf, file: this.#building });
    await writer.finish(0n, 0n);
    this.install(epoch);
  }

  get #building(): string {
    return `${this.#file}.building`;
  }

  #bytesBehind(): number {
    const log = this.#changeLog;
    return log === null || this.#position === null || !this.#isOurs ? 0 : log.bytesAfter(this.#position);
  }

  #advance(): Promise<void> {
    this.#advancing ??= this.#advanceToHead().finally(() => {
      this.#advancing = null;
    });
    return this.#advancing;
  }

  async #advanceToHead(): Promise<void> {
    const changeLog = this.#changeLog;
    if (changeLog === null || this.#position === null) return;
    const cursor = changeLog.openCursor(this.#position);
    await using writer = new BaseWriter({ kind: 'advance', file: this.#file });
    for (
      let frames = cursor.next(READ_BYTES);
      frames !== null && this.#changeLog === changeLog;
      frames = cursor.next(READ_BYTES)
    ) {
      await writer.write(frames);
      // Reading the log is synchronous; the stream must not wait for all of it.
      await new Promise((resolve) => setImmediate(resolve));
    }
    this.#position = await writer.finish(0n, 0n);
  }

  #read(): void {
    this.#epoch = null;
    this.#position = null;
    if (!existsSync(this.#file)) return;
    try {
      const db = new Database(this.#file, { readonly: true });
      try {
        const { epoch, applied } = readPosition(db);
        this.#epoch = epoch;
        this.#position = applied;
      } finally {
        db.close();
      }
    } catch (error) {
      this.#log.warn({ err: error, file: this.#file }, 'the base file cannot be read: a new copy is needed');
    }
  }
}

function readEpoch(file: string): string {
  const db = new Database(file, { readonly: true });
  try {
    return readPosition(db).epoch;
  } finally {
    db.close();
  }
}

function removeDatabase(file: string): void {
  for (const suffix of ['-wal', '-shm', '-journal', '']) rmSync(`${file}${suffix}`, { force: true });
}
