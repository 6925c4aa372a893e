import { existsSync } from 'node:fs';
import { join } from 'node:path';
import type pg from 'pg';
import { type ChangeLog, isRelayed } from '../changelog/change-log.ts';
import {
  DEFAULT_RETENTION_BYTES,
  DEFAULT_RETENTION_MS,
  HOUSEKEEPING_INTERVAL_MS,
} from '../changelog/retention.ts';
import { openChangeLog, removeChangeLog } from '../changelog/sqlite-change-log.ts';
import { RivuletError } from '../errors.ts';
import type { Publisher } from '../fanout/publisher.ts';
import type { Log } from '../log.ts';
import type { Lsn } from '../lsn.ts';
import type { LocalSql } from '../replica/local-sql.ts';
import { BaseFile } from '../snapshot/base-file.ts';
import type { SourceIdentity } from '../source/catalog.ts';
import { SchemaTracker } from '../source/schema-tracker.ts';
import { readSlot } from '../source/slot.ts';
import { Archiver, type StoreOptions } from './archiver.ts';
import { claimSlot } from './slot-claim.ts';

export interface HistoryOptions {
  readonly dataDir: string;
  /** Where the initial copy goes. */
  readonly buildInto: string;
  /** False: that is a live replica's own file, and new replicas get a copy of it. */
  readonly isBaseOurs: boolean;
  readonly localSql: LocalSql | undefined;
  readonly publication: string;
  readonly slot: string;
  readonly store: StoreOptions | undefined;
  readonly retention: { readonly maxAgeMs?: number; readonly maxBytes?: number } | undefined;
  readonly publisher: Publisher;
  /** Whether the server has the schema hooks. */
  readonly isAnnounced: () => boolean;
  /** See readMessageKey(). */
  readonly messageKey: () => string;
  readonly log: Log;
  /** The file that new replicas start from is of no use: another history has to begin. */
  readonly onDamaged: (damage: RivuletError) => void;
}

/**
 * What a replicator's data directory has of the present epoch: the log, the schema at its end, the file that new
 * replicas start from, the way to the object store. One at a time; while there is none, a copy is to be made.
 *
 * On a crash at any moment the next open() finds either a whole copy with its log, or nothing.
 */
export class History implements AsyncDisposable {
  readonly base: BaseFile;
  readonly archiver: Archiver | null;
  /** What snapshots for the object store are taken of: the base file, or a copy where that is a live replica. */
  readonly #archivedBase: BaseFile;
  readonly #options: HistoryOptions;
  #changeLog: ChangeLog | null = null;
  #schema: SchemaTracker | null = null;
  /** It was tried to go on from the object store: what is missing now was given up on purpose. */
  #mayNotResume = false;
  #housekeeping: NodeJS.Timeout | undefined;

  constructor(options: HistoryOptions) {
    const { dataDir, buildInto, isBaseOurs, localSql, store, publisher, log, onDamaged } = options;
    this.#options = options;
    this.base = new BaseFile({ file: buildInto, isOurs: isBaseOurs, localSql, log, onDamaged });
    this.#archivedBase =
      isBaseOurs || store === undefined
        ? this.base
        : new BaseFile({
            file: join(dataDir, 'base.db'),
            isOurs: true,
            copyOf: buildInto,
            log,
            onDamaged: (damage) => void this.#copyAgain(damage),
          });
    this.archiver =
      store === undefined
        ? null
        : new Archiver({
            ...store,
            snapshots: this.#archivedBase,
            heardAgoMs: () => publisher.heardAgoMs ?? performance.now(),
            log,
          });
  }

  /** Null: there is no history to go on with. */
  get changeLog(): ChangeLog | null {
    return this.#changeLog;
  }

  get schema(): SchemaTracker | null {
    return this.#schema;
  }

  /** A whole copy and its log from an earlier run, if they are there and not open yet. */
  async open(): Promise<void> {
    const { dataDir, log } = this.#options;
    // What the disk has after a failed sync only a new open can tell.
    if (this.#changeLog?.isBroken === true) await this.#close();
    if (this.#changeLog !== null || !existsSync(join(dataDir, 'log.db'))) return;
    const changeLog = openChangeLog({ dir: dataDir });
    if (isRelayed(changeLog.source)) {
      await changeLog.close();
      throw new RivuletError('FILE_UNUSABLE', `${dataDir} is the data directory of a relay`, {
        hint: 'name another directory with --data',
      });
    }
    if (!(await this.#hasBaseOf(changeLog))) {
      await changeLog.close();
      log.warn(
        'the log has no whole base file, as after an initial copy that was interrupted: a new copy starts',
      );
      removeChangeLog(dataDir);
      return;
    }
    this.#goOn(changeLog);
  }

  /** What the slot and the object store still have, where the data directory has lost it. */
  async resume(client: pg.Client, identity: SourceIdentity, signal: AbortSignal): Promise<void> {
    const { store, slot, publication, dataDir, buildInto, log } = this.#options;
    if (store === undefined || this.#mayNotResume || this.#archivedBase !== this.base) return;
    const state = await readSlot(client, slot);
    if (state === null || state.walStatus === 'lost' || state.confirmedFlush === null) return;
    try {
      const { resumeFromStore } = await import('./resume.ts');
      const changeLog = await resumeFromStore({
        location: store.location,
        dataDir,
        baseFile: buildInto,
        identity,
        slot,
        publication,
        forgotten: state.confirmedFlush,
        log,
        signal,
      });
      this.#mayNotResume = true;
      if (changeLog !== null && (await this.#hasBaseOf(changeLog))) this.#goOn(changeLog);
    } catch (error) {
      // Postgres keeps what is not in the store for as long as it takes: a new copy would give that up.
      if (store.durability === 'store') throw error;
      log.warn({ err: error }, 'the object store cannot be asked where to go on: a new copy is made');
    }
  }

  /** A new one, whose copy is under way: see startEpoch(). Nobody follows it before the publisher is opened. */
  begin(changeLog: ChangeLog, schema: SchemaTracker): void {
    this.#changeLog = changeLog;
    this.#schema = schema;
    this.base.attach(changeLog);
    this.#archivedBase.attach(changeLog);
    this.#options.publisher.attach(changeLog);
    this.archiver?.attach(changeLog);
  }

  /** Up to where Postgres may forget. */
  durablePosition(): () => Lsn {
    const { archiver } = this;
    const changeLog = this.#changeLog!;
    return archiver === null ? () => changeLog.durablePosition : () => archiver.durablePosition(changeLog);
  }

  /** From now on the log is pruned, and the base file brought forward. */
  startHousekeeping(): void {
    clearInterval(this.#housekeeping);
    this.#housekeeping = setInterval(() => this.#keepHouse(), HOUSEKEEPING_INTERVAL_MS);
    this.#housekeeping.unref();
  }

  /** It cannot go on: a new copy is to be made. */
  async discard(reason: RivuletError): Promise<void> {
    if (this.#changeLog === null) return;
    this.#options.log.error(
      { code: reason.code, epoch: this.#changeLog.epoch },
      `this history cannot go on (${reason.message}): a new copy starts`,
    );
    this.#mayNotResume = true;
    await this.base.invalidate();
    await this.#archivedBase.invalidate();
    await this.#forget();
  }

  /** If the copy did not become whole, the log of it is worth nothing. */
  async forgetUnfinished(): Promise<void> {
    if (this.#changeLog !== null && !this.base.matches(this.#changeLog.epoch)) await this.#forget();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    clearInterval(this.#housekeeping);
    await this.archiver?.[Symbol.asyncDispose]();
    await this.base.close();
    await this.#archivedBase.close();
    await this.#close();
  }

  /** Throws, with the log closed, where that cannot be told now. */
  async #hasBaseOf(changeLog: ChangeLog): Promise<boolean> {
    try {
      return this.base.matches(changeLog.epoch);
    } catch (error) {
      await changeLog.close();
      throw error;
    }
  }

  #goOn(changeLog: ChangeLog): void {
    const { log, dataDir, publication, isAnnounced, messageKey, publisher } = this.#options;
    claimSlot(dataDir, changeLog.source, changeLog.epoch);
    const onProblem = (problem: string): void => log.warn(problem);
    this.begin(
      changeLog,
      SchemaTracker.restore(changeLog.sourceState, { publication, isAnnounced, messageKey, onProblem }),
    );
    publisher.open();
  }

  /** A copy of the live replica's file that is damaged: the next who wants it has it copied again. */
  async #copyAgain(damage: RivuletError): Promise<void> {
    this.#options.log.error({ code: damage.code }, `${damage.message}: it is copied again`);
    await this.#archivedBase.invalidate();
    if (this.#changeLog !== null) this.#archivedBase.attach(this.#changeLog);
  }

  async #forget(): Promise<void> {
    await this.#close();
    removeChangeLog(this.#options.dataDir);
  }

  async #close(): Promise<void> {
    const changeLog = this.#changeLog;
    this.#changeLog = null;
    this.#schema = null;
    this.#options.publisher.detach();
    this.archiver?.detach();
    await changeLog?.close();
  }

  #keepHouse(): void {
    const log = this.#changeLog;
    if (log === null) return;
    const { maxAgeMs = DEFAULT_RETENTION_MS, maxBytes = DEFAULT_RETENTION_BYTES } =
      this.#options.retention ?? {};
    this.#archivedBase.advanceIfDue();
    const keptPositions = [this.#archivedBase.position, this.archiver?.keepFrom(log)].filter(
      (position) => position != null,
    );
    const keepFrom = keptPositions.reduce(
      (oldest, position) => (position < oldest ? position : oldest),
      // The one replica of this process has its own file: nobody starts from an older place.
      keptPositions[0] ?? log.position,
    );
    log.prune({ maxAgeMs, maxBytes, keepFrom }).catch((error: unknown) => {
      this.#options.log.warn({ err: error }, 'the change log could not be shortened: it is tried again');
    });
  }
}
