import { existsSync, rmSync, statSync } from 'node:fs';
import { resolve } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import Database from 'better-sqlite3';
import { giveBack } from '../change/give-back.ts';
import type { Relation } from '../change/relation.ts';
import type { ChangeLog } from '../changelog/change-log.ts';
import { explainSqliteError } from '../changelog/sqlite-error.ts';
import { RivuletError } from '../errors.ts';
import type { Log } from '../log.ts';
import { formatLsn, type Lsn } from '../lsn.ts';
import type { LocalSql } from '../replica/local-sql.ts';
import { readPosition, swapInto } from '../replica/replica-file.ts';
import type { SourceIdentity } from '../source/catalog.ts';
import { checkBase } from './base-check.ts';
import { BaseWriter } from './base-writer.ts';
import { checksumFile, readChecksum, writeChecksum } from './file-checksum.ts';
import type { SnapshotLease, SnapshotProvider } from './snapshot-provider.ts';

/** A new follower applies at most so much of the log; more, and the base file is brought forward first. */
export const DEFAULT_ADVANCE_BYTES = 64 * 1024 * 1024;

/** Whoever asks for the file while it is checked waits so long, then comes again: large files take their time. */
const MAX_CHECK_WAIT_MS = 2_000;

/** A file that could not be checked, because the disk is full, say, is looked at again after so long. */
export const DEFAULT_RECHECK_PAUSE_MS = 10_000;

/** What SQLite or the system says of the disk, of memory, or of somebody else, is no damage. */
const NO_DAMAGE =
  /^(SQLITE_(BUSY|LOCKED|FULL|IOERR|CANTOPEN|READONLY|NOMEM|PERM|PROTOCOL)|E[A-Z0-9]+$|ERR_WORKER)/;

/** What no file of this history comes past. */
const NO_WAY_ON: ReadonlySet<string> = new Set(['ROW_MISSING', 'UNSUPPORTED_SCHEMA_CHANGE']);

/** How much of the log is read at a time while the base file is brought forward: no more than one part of a transaction. */
const READ_BYTES = 512 * 1024;

/**
 * The replicator's own replica, which serves nobody: a file at a known position that new followers start from.
 * It stands still while it is handed out, and in between is brought forward in large steps, which folds most
 * of the work away. The log is never pruned past it.
 *
 * New replicas are made from its bytes, so it has a checksum of them, brought forward with it. The file is compared
 * with that when the replicator starts, and when somebody who got it found another one, or could not follow from it. A
 * file that is damaged, or that the log does not go with, is not handed out any more, and `onDamaged` has to see to a
 * new one. One that cannot be looked at (the disk is full) is not handed out until it can.
 */
export class BaseFile implements SnapshotProvider {
  readonly #file: string;
  readonly #log: Log;
  /** False where the file is a live replica's own, in the one-process mode: then it is only built here. */
  readonly #isOurs: boolean;
  readonly #localSql: LocalSql | null;
  /** The live replica that this one is copied from, where nobody builds it. */
  readonly #copyOf: string | null;
  readonly #onDamaged: (damage: RivuletError) => void;
  readonly #recheckPauseMs: number;
  #recheckTimer: NodeJS.Timeout | undefined;
  #position: Lsn | null = null;
  #epoch: string | null = null;
  #changeLog: ChangeLog | null = null;
  #leases = 0;
  #advancing: Promise<void> | null = null;
  #checking: Promise<void> | null = null;
  #checksum: string | null = null;
  #isDamaged = false;
  /** That it is not is said once. */
  #isCheckable = true;
  #prepared: BaseWriter | null = null;
  #discarded: Promise<void> | undefined;
  readonly #closing = new AbortController();

  constructor(options: {
    readonly file: string;
    readonly isOurs: boolean;
    /** For a live replica's file only: what others start from has nobody's local objects. */
    readonly localSql?: LocalSql | undefined;
    readonly copyOf?: string;
    readonly log: Log;
    readonly onDamaged: (damage: RivuletError) => void;
    readonly recheckPauseMs?: number;
  }) {
    this.#onDamaged = options.onDamaged;
    this.#recheckPauseMs = options.recheckPauseMs ?? DEFAULT_RECHECK_PAUSE_MS;
    this.#file = resolve(options.file);
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

  /** Whether a whole file of this epoch is in place. Throws where that cannot be told: the disk is full, say. */
  matches(epoch: string): boolean {
    if (this.#epoch !== epoch) this.#read();
    return this.#epoch === epoch;
  }

  /** The log that the file is brought forward from. A file that an earlier process left is looked at first. */
  attach(changeLog: ChangeLog): void {
    this.#changeLog = changeLog;
    this.recheck();
  }

  /** Compares the file with what was written, in the background. */
  recheck(): void {
    clearTimeout(this.#recheckTimer);
    this.#recheckTimer = undefined;
    if (!this.#isOurs || this.#epoch === null || this.#isDamaged) return;
    this.#checking ??= this.#check().finally(() => {
      this.#checking = null;
    });
  }

  /** Starts the thread for build() ahead: it waits for that, for discardBuild() or for close(). */
  prepareBuild(): void {
    this.#prepared ??= new BaseWriter();
  }

  /** Begins a new file beside the present one; install() puts it in place. */
  build(options: {
    readonly relations: readonly Relation[];
    readonly epoch: string;
    readonly identity: SourceIdentity;
    /** Whether the server sees to it that text is UTF-8. */
    readonly isUtf8: boolean;
  }): BaseWriter {
    removeDatabase(this.#building);
    const writer = this.#prepared ?? new BaseWriter();
    this.#prepared = null;
    return writer.begin({
      kind: 'build',
      file: this.#building,
      relations: options.relations,
      epoch: options.epoch,
      systemIdentifier: options.identity.systemIdentifier,
      databaseName: options.identity.database,
      isUtf8: options.isUtf8,
      localSql: this.#localSql,
      checksumFor: this.#isOurs ? this.#file : null,
    });
  }

  /** A file that is not going to be whole makes room, and be it for another try. */
  discardBuild(): void {
    if (this.#prepared !== null) {
      const before = this.#discarded;
      this.#discarded = this.#prepared[Symbol.asyncDispose]().then(() => before);
    }
    this.#prepared = null;
    removeDatabase(this.#building);
  }

  install(epoch: string): void {
    // Nobody else has our own file open; a live replica's stays for its readers beside the new one.
    if (this.#isOurs) removeDatabase(this.#file);
    swapInto(this.#file, this.#building, epoch);
    this.#isDamaged = false;
    this.#read();
  }

  /** Puts a whole file that was made elsewhere in place of the present one. */
  adopt(file: string, { epoch, checksum }: { readonly epoch: string; readonly checksum: string }): void {
    removeDatabase(this.#file);
    writeChecksum(this.#file, checksum);
    swapInto(this.#file, file, epoch);
    this.#isDamaged = false;
    this.#read();
  }

  /** The history that the file belongs to is over. A live replica's file stays for its readers. */
  async invalidate(): Promise<void> {
    this.#changeLog = null;
    await this.#advancing?.catch(() => undefined);
    await this.#checking;
    clearTimeout(this.#recheckTimer);
    this.#recheckTimer = undefined;
    this.#epoch = null;
    this.#position = null;
    this.#isDamaged = false;
    if (!this.#isOurs) return;
    removeDatabase(this.#file);
    rmSync(checksumFile(this.#file), { force: true });
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
      await this.#checked();
      // With other downloads under way the file stays as it is: the log reaches back to it.
      if (this.#leases === 1 && this.#bytesBehind() > (fresh ? 0 : DEFAULT_ADVANCE_BYTES / 4))
        await this.#advance();
      await this.#advancing;
      const [path, epoch, position, checksum] = [this.#file, this.#epoch, this.#position, this.#checksum];
      if (epoch === null || position === null || checksum === null || this.#isDamaged || !this.#isOurs) {
        throw new RivuletError('NOT_READY', 'there is no snapshot yet', {
          hint:
            epoch === null
              ? 'the initial copy is still under way'
              : 'whether the base file is whole is not known: the log says why',
        });
      }
      return { path, epoch, position, checksum, release };
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
    this.#closing.abort();
    clearTimeout(this.#recheckTimer);
    this.#changeLog = null;
    await this.#prepared?.[Symbol.asyncDispose]();
    await this.#discarded;
    await this.#advancing?.catch(() => undefined);
    await this.#checking;
  }

  /** Resolves when nothing is being checked; throws NOT_READY if that takes long. */
  async #checked(): Promise<void> {
    const checking = this.#checking;
    if (checking === null) return;
    await Promise.race([checking, delay(MAX_CHECK_WAIT_MS, undefined, { ref: false })]);
    if (this.#checking === checking)
      throw new RivuletError('NOT_READY', 'the base file is being checked', {
        hint: 'come again in a moment',
      });
  }

  async #check(): Promise<void> {
    await this.#advancing?.catch(() => undefined);
    const epoch = this.#epoch;
    try {
      const { checksum, damage } = await checkBase(this.#file, this.#closing.signal);
      this.#isCheckable = true;
      if (damage !== null) this.#damaged(damage, epoch);
      else if (this.#epoch === epoch) {
        // It may have come further than was heard of.
        if (this.#checksum === null) this.#read();
        this.#checksum = checksum;
      }
    } catch (error) {
      if (this.#closing.signal.aborted || this.#epoch !== epoch) return;
      // It is not known to be whole, so nobody gets it; nor to be damaged, so nothing is thrown away.
      this.#checksum = null;
      this.#log[this.#isCheckable ? 'warn' : 'debug'](
        { err: error, file: this.#file, retryInMs: this.#recheckPauseMs },
        'the base file cannot be checked now: new replicas have to wait for it',
      );
      this.#isCheckable = false;
      this.#recheckTimer = setTimeout(() => this.recheck(), this.#recheckPauseMs);
      this.#recheckTimer.unref();
    }
  }

  #damaged(what: string, epoch: string | null): void {
    if (this.#epoch !== epoch || this.#isDamaged) return;
    this.#isDamaged = true;
    this.#onDamaged(
      new RivuletError('SNAPSHOT_CORRUPT', `the base file ${this.#file} is damaged: ${what}`, {
        hint: 'a new copy is made by itself; check the disk, and that no other program writes to the file',
        facts: { file: this.#file },
      }),
    );
  }

  async #copyIfMissing(): Promise<void> {
    const epoch = this.#changeLog?.epoch;
    if (this.#copyOf === null || epoch === undefined || this.matches(epoch)) return;
    const live = existsSync(this.#copyOf) ? readEpoch(this.#copyOf) : null;
    if (live !== epoch) return;
    this.#log.info({ from: this.#copyOf, file: this.#file }, 'copying the replica for snapshots of it');
    removeDatabase(this.#building);
    await using writer = new BaseWriter().begin({
      kind: 'copy',
      from: this.#copyOf,
      file: this.#building,
      checksumFor: this.#file,
    });
    await writer.finish();
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
    this.#advancing ??= this.#advanceToHead()
      .catch((error: unknown) => {
        // How far it came, and whether it is whole, only the file itself can tell now.
        this.#checksum = null;
        throw error;
      })
      .finally(() => {
        this.#advancing = null;
        if (this.#checksum === null && this.#recheckTimer === undefined) this.recheck();
      });
    return this.#advancing;
  }

  async #advanceToHead(): Promise<void> {
    await this.#checking;
    const changeLog = this.#changeLog;
    const [epoch, checksum] = [this.#epoch, this.#checksum];
    if (changeLog === null || this.#position === null || checksum === null || this.#isDamaged) return;
    const cursor = changeLog.openCursor(this.#position);
    await using writer = new BaseWriter().begin({ kind: 'advance', file: this.#file, checksum });
    try {
      for (
        let frames = cursor.next(READ_BYTES);
        frames !== null && this.#changeLog === changeLog;
        frames = cursor.next(READ_BYTES)
      ) {
        const written = writer.write(frames);
        giveBack(frames);
        await written;
        // Reading the log is synchronous; the stream must not wait for all of it.
        await new Promise((resolve) => setImmediate(resolve));
      }
      const finished = await writer.finish();
      this.#position = finished.position;
      this.#checksum = finished.checksum;
    } catch (error) {
      if (isDamage(error)) this.#damaged(`it cannot be brought forward: ${error.message}`, epoch);
      throw error;
    }
  }

  #read(): void {
    this.#checksum = null;
    try {
      const db = existsSync(this.#file) ? new Database(this.#file, { readonly: true }) : null;
      try {
        const { epoch, applied } = db === null ? { epoch: null, applied: null } : readPosition(db);
        const checksum = db === null ? null : readChecksum(this.#file);
        this.#epoch = epoch;
        this.#position = applied;
        this.#checksum = checksum;
      } finally {
        db?.close();
      }
    } catch (error) {
      if (NO_DAMAGE.test(String((error as { code?: unknown }).code)))
        throw explainSqliteError(error, `reading the base file ${this.#file}`);
      this.#epoch = null;
      this.#position = null;
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

/** The file is not what was written, or the log does not go with it: who starts from it never comes further. */
function isDamage(error: unknown): error is RivuletError {
  if (!(error instanceof RivuletError)) return false;
  if (error.code === 'SNAPSHOT_CORRUPT') return !NO_DAMAGE.test(String(error.facts.sqlite ?? ''));
  return NO_WAY_ON.has(error.code);
}

function removeDatabase(file: string): void {
  for (const suffix of ['-wal', '-shm', '-journal', '']) rmSync(`${file}${suffix}`, { force: true });
}
