import { randomUUID } from 'node:crypto';
import { EventEmitter } from 'node:events';
import { dirname, join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { MessageChannel, type MessagePort } from 'node:worker_threads';
import type pg from 'pg';
import { asRivuletError, RivuletError } from '../errors.ts';
import { DigestBoard, digestWarnings } from '../fanout/digest-board.ts';
import { servePort } from '../fanout/port-sink.ts';
import { Publisher, type PublisherOptions } from '../fanout/publisher.ts';
import type { Log } from '../log.ts';
import { formatLsn, type Lsn } from '../lsn.ts';
import type { LocalSql } from '../replica/local-sql.ts';
import { type FileLock, lockFile } from '../replica/replica-file.ts';
import { makeDataDirectory } from '../snapshot/data-directory.ts';
import type { SnapshotProvider } from '../snapshot/snapshot-provider.ts';
import type { SnapshotReport } from '../snapshot/snapshot-writer.ts';
import { identify, type SourceIdentity } from '../source/catalog.ts';
import { connect, disconnect } from '../source/connection.ts';
import { enterEpoch, readEpoch } from '../source/current-epoch.ts';
import type { CopyProgress } from '../source/initial-copy.ts';
import { type ListProblem, readListProblems } from '../source/listed-tables.ts';
import { readMessageKey } from '../source/message-key.ts';
import { hasEventTriggers } from '../source/migrate.ts';
import { keepPublishedTables, type MisplacedTable } from '../source/published-tables.ts';
import type { Delivery } from '../source/replication-stream.ts';
import { keepPublishedIdentities, setup } from '../source/setup.ts';
import { dropSlot } from '../source/slot.ts';
import { WalFlusher } from '../source/wal-flusher.ts';
import type { StoreOptions } from './archiver.ts';
import { checkBelongs, checkContinuity, checkSlotIsFree, waitForSlot } from './continuity.ts';
import { CrashGuard } from './crash-guard.ts';
import { untilSpace } from './disk-space.ts';
import { startEpoch } from './epoch.ts';
import { History } from './history.ts';
import { Pipeline } from './pipeline.ts';
import { PoisonGuard } from './poison-guard.ts';
import { PublicationGuard } from './publication-guard.ts';
import { RetryPause } from './retry-pause.ts';
import { claimSlot, hasClaimed } from './slot-claim.ts';
import { SourceMonitor } from './source-monitor.ts';
import { changeLogStatus, type ReplicatorState, type ReplicatorStatus } from './status.ts';

const LOST_HOOKS =
  'the event triggers that tell of schema changes are gone or switched off: changes are noticed late; `rivulet setup` makes them again';

/** What is tried next where a change is longer than the server can send: it may be one that is never committed. */
const SHORTER: Readonly<Partial<Record<Delivery, Delivery>>> = { blocks: 'whole', whole: 'binary' };

/** On a full disk there must be so much space beyond what did not fit before it is tried again. */
const SPACE_MARGIN_BYTES = 1024 * 1024;

export interface ReplicatorOptions {
  readonly postgres: string;
  readonly dataDir: string;
  readonly publication?: string;
  readonly slot?: string;
  /** Tables to publish (`a`, `b.c`) if the publication has to be made; default: all. */
  readonly tables?: readonly string[];
  readonly log: Log;
  readonly retention?: { readonly maxAgeMs?: number; readonly maxBytes?: number };
  /** What followers may leave unread (see PublisherOptions). */
  readonly followers?: Partial<PublisherOptions>;
  /** Drops a slot that another data directory has made. Default: refuse, since its replicator may only be stopped. */
  readonly takeover?: boolean;
  /** Where the initial copy goes: the replica's own file when both live in one process. Default: DIR/base.db. */
  readonly buildInto?: string;
  /** What a replica's own file gets beside the copy, before it is put in place. */
  readonly localSql?: LocalSql | undefined;
  /** How often the replicas are compared with each other by digests; default: only when asked. */
  readonly digestEveryMs?: number;
  /** Object store for snapshots and segments. */
  readonly store?: StoreOptions;
}

interface Events {
  state: [state: ReplicatorState, reasons: readonly string[]];
  copy: [progress: CopyProgress];
  confirmed: [];
  failed: [error: RivuletError];
}

/**
 * The one process that talks replication with Postgres. It makes the initial copy and the change log, follows
 * the stream for as long as it lives, and starts a new epoch by itself when the old one cannot go on (a lost
 * slot, another server, a log that no longer fits): followers then start from the new copy.
 *
 * On a crash at any moment the next start finds either a whole copy with its log, and goes on from the log's
 * position, or an unfinished one, and makes another.
 */
export class Replicator extends EventEmitter<Events> implements AsyncDisposable {
  readonly #options: Required<
    Omit<ReplicatorOptions, 'tables' | 'retention' | 'followers' | 'localSql' | 'digestEveryMs' | 'store'>
  > &
    Pick<ReplicatorOptions, 'tables' | 'retention' | 'digestEveryMs' | 'store'>;
  readonly #lock: FileLock;
  readonly #abort = new AbortController();
  readonly #history: History;
  readonly #monitor: SourceMonitor;
  readonly #flusher: WalFlusher;
  readonly publisher: Publisher;
  readonly digests: DigestBoard;
  /** Resolves once the copy is whole and the stream has begun; rejects if that can never be. */
  readonly ready: Promise<void>;
  readonly #ready = Promise.withResolvers<void>();
  #pipeline: Pipeline | null = null;
  #state: ReplicatorState = 'starting';
  #reasons: readonly string[] = [];
  #copy: CopyProgress | null = null;
  #lastError: string | null = null;
  /** Why the present history is of no use any more, from the moment that this is known until it is given up. */
  #mustStartOver: RivuletError | null = null;
  readonly #publicationGuard: PublicationGuard;
  readonly #crashGuard = new CrashGuard();
  readonly #poisonGuard = new PoisonGuard();
  readonly #retry = new RetryPause();
  #identityProblems: readonly string[] = [];
  #misplaced: readonly MisplacedTable[] = [];
  #listProblems: readonly ListProblem[] = [];
  #delivery: Delivery = 'blocks';
  #hasStreamed = false;
  #isConfirmed = false;
  /** Whether the server has the schema hooks. */
  #isAnnounced = false;
  #lostHooks: string | null = null;
  /** Where the database has none, that of this process: what it wrote before a restart is not believed then. */
  #messageKey: string = randomUUID();
  #running: Promise<void> = Promise.resolve();
  readonly #digestTimer: NodeJS.Timeout | undefined;

  /** Checks the options, takes the data directory, and begins. Rejects on what only a human can mend. */
  static async start(options: ReplicatorOptions): Promise<Replicator> {
    makeDataDirectory(options.dataDir);
    const lock = lockFile(join(options.dataDir, 'replicator'), `the data directory ${options.dataDir}`);
    try {
      return new Replicator(options, lock);
    } catch (error) {
      lock.release();
      throw error;
    }
  }

  private constructor(options: ReplicatorOptions, lock: FileLock) {
    super();
    this.#lock = lock;
    this.#options = {
      publication: 'rivulet',
      slot: 'rivulet',
      buildInto: join(options.dataDir, 'base.db'),
      takeover: false,
      ...options,
    };
    this.publisher = new Publisher({ ...options.followers, log: options.log });
    this.digests = new DigestBoard(this.publisher);
    if (options.digestEveryMs !== undefined)
      this.#digestTimer = setInterval(() => this.#compareReplicas(), options.digestEveryMs).unref();
    const { dataDir, buildInto, publication, slot } = this.#options;
    this.#history = new History({
      dataDir,
      buildInto,
      isBaseOurs: options.buildInto === undefined,
      localSql: options.localSql,
      publication,
      slot,
      store: options.store,
      retention: options.retention,
      publisher: this.publisher,
      isAnnounced: () => this.#isAnnounced,
      messageKey: () => this.#messageKey,
      log: options.log,
      onDamaged: (damage) => this.#startOver(damage),
    });
    this.#monitor = new SourceMonitor({
      url: options.postgres,
      slot: this.#options.slot,
      publication: this.#options.publication,
    });
    this.#publicationGuard = new PublicationGuard(publication, () => this.#setUp());
    this.#flusher = new WalFlusher(this.#options.postgres);
    this.ready = this.#ready.promise;
    this.ready.catch(() => undefined);
    this.#running = this.#run();
  }

  get state(): ReplicatorState {
    return this.#state;
  }

  /** Whether Postgres was asked, and what the data directory holds is of this database (see 'confirmed'). */
  get isConfirmed(): boolean {
    return this.#isConfirmed;
  }

  get position(): Lsn | null {
    return this.#history.changeLog?.position ?? null;
  }

  get epoch(): string | null {
    return this.#history.changeLog?.epoch ?? null;
  }

  /** Snapshots for new followers, from the base file. */
  get snapshots(): SnapshotProvider {
    return this.#history.base;
  }

  /**
   * Somebody waits for a position: the server is asked for its own at once, and to flush what commits without
   * waiting for it left behind.
   */
  hasten(): void {
    const pipeline = this.#pipeline;
    if (pipeline === null) return;
    this.publisher.hasten();
    pipeline.hasten();
    void this.#flusher.flush().then((hasFlushed) => {
      if (hasFlushed) pipeline.hasten();
    });
  }

  /** The way to this replicator for a replica in the same process: its worker thread follows over the port. */
  connectPort(): MessagePort {
    const { port1, port2 } = new MessageChannel();
    servePort(port1, {
      publisher: this.publisher,
      log: this.#options.log,
      hasten: () => this.hasten(),
      startOver: (code, message) => {
        // A mismatch means that the new copy is already under way.
        if (code === 'EPOCH_MISMATCH') return;
        this.#startOver(
          new RivuletError('POSITION_GAP', `the replica in this process cannot go on: ${message}`),
        );
      },
    });
    return port2;
  }

  #startOver(reason: RivuletError): void {
    this.#mustStartOver = reason;
    this.#pipeline?.fail(reason);
  }

  status(): ReplicatorStatus {
    const { changeLog: log, schema, base, archiver } = this.#history;
    const { postgres, slot, notMirrored } = this.#monitor.current;
    return {
      state: this.#state,
      upstream: null,
      reasons: [
        ...this.#reasons,
        ...this.#monitor.warnings,
        ...(this.#lostHooks === null ? [] : [this.#lostHooks]),
        ...this.#identityProblems,
        ...this.#misplaced.map(({ problem }) => problem),
        ...(this.#pipeline?.reloads ?? []).flatMap(({ problem }) => problem ?? []),
        ...this.#listProblems
          .filter(({ oid }) => !schema?.relations.some((relation) => relation.oid === oid))
          .map(({ problem }) => problem),
        ...digestWarnings(this.digests.newest),
        ...(archiver?.reasons ?? []),
      ],
      epoch: log?.epoch ?? null,
      position: log === null ? null : formatLsn(log.position),
      durablePosition: log === null ? null : formatLsn(log.durablePosition),
      copy: this.#state === 'copying' ? this.#copy : null,
      postgres: { ...postgres, connected: this.#state === 'streaming', lastError: this.#lastError },
      slot,
      tables: {
        mirrored: schema?.relations.length ?? 0,
        notMirrored,
        reloading: this.#pipeline?.reloads ?? [],
      },
      openTransactions: this.#pipeline?.openTransactions ?? { count: 0, bytes: 0 },
      log: changeLogStatus(log),
      followers: this.publisher.followers(),
      buffers: this.publisher.buffers,
      digest: this.digests.newest,
      snapshot: base.status(),
      store: archiver?.status() ?? null,
    };
  }

  /** A snapshot for the object store, now. */
  async takeSnapshot(): Promise<SnapshotReport> {
    const { archiver } = this.#history;
    if (archiver !== null) return await archiver.takeSnapshot();
    throw new RivuletError('CONFIG', 'this replicator has no object store', {
      hint: 'start it with --store URL',
    });
  }

  /** Stops streaming, lets go of everything. May be called twice. */
  async close(): Promise<void> {
    if (!this.#abort.signal.aborted) this.#abort.abort();
    clearInterval(this.#digestTimer);
    await this.#running.catch(() => undefined);
    await this.#monitor.close();
    await this.#flusher.close();
    await this.publisher.close();
    await this.#history[Symbol.asyncDispose]();
    this.#lock.release();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #run(): Promise<void> {
    const { signal } = this.#abort;
    while (!signal.aborted) {
      this.#retry.connecting(this.position);
      try {
        await this.#connectAndStream();
      } catch (error) {
        if (signal.aborted) return;
        const failure = asRivuletError(error, 'unexpected');
        this.#lastError = failure.message;
        if (this.#sendsShorter(failure)) continue;
        // What a human must mend ends a replicator that has not begun to work; one that serves followers goes on
        // trying, unless its directory is not this database's at all. What breaks a copy that is under way (a
        // connection, a full disk) only makes it start again.
        const isHopeless = this.#history.changeLog === null || failure.code === 'FILE_UNUSABLE';
        if (this.#state === 'starting' && isHopeless && failure.recovery !== 'resnapshot') {
          this.#become('failed', [failure.message]);
          this.#ready.reject(failure);
          this.emit('failed', failure);
          return;
        }
        const waitMs = this.#retry.after(failure, this.position);
        if (failure.recovery === 'resnapshot') {
          await this.#history.discard(failure);
          // What else was wrong with this history is over with it.
          this.#mustStartOver = null;
        }
        this.#become('reconnecting', [failure.message]);
        await this.#pause(failure, waitMs);
      }
    }
  }

  /** Whether a change that is longer than the server can send may come in another way, which is then the next. */
  #sendsShorter(failure: RivuletError): boolean {
    const shorter = SHORTER[this.#delivery];
    const isWorthIt =
      failure.code === 'CHANGE_TOO_LONG' && shorter !== undefined && this.#history.changeLog !== null;
    this.#delivery = isWorthIt ? shorter : 'blocks';
    if (!isWorthIt) return false;
    this.#options.log.warn(
      { code: failure.code, err: failure.cause },
      shorter === 'whole'
        ? failure.message
        : `${failure.message}: the tables of its transaction are read again`,
    );
    this.#become('reconnecting', [failure.message]);
    return true;
  }

  /** Before the next attempt; on a full disk for as long as it stays full, without asking anything of Postgres. */
  async #pause(failure: RivuletError, waitMs: number): Promise<void> {
    const { log, dataDir, buildInto } = this.#options;
    const { signal } = this.#abort;
    const isFull = failure.code === 'DISK_FULL';
    // A full disk is said once, until something has gone on.
    log[isFull && this.#retry.failures > 1 ? 'debug' : 'warn'](
      {
        code: failure.code,
        hint: failure.hint,
        ...(isFull ? {} : { retryInMs: waitMs }),
        err: failure.cause,
      },
      failure.message,
    );
    await delay(waitMs, undefined, { signal }).catch(() => undefined);
    if (!isFull) return;
    const bytes = Number(failure.facts.bytes ?? 0) + SPACE_MARGIN_BYTES;
    await untilSpace({ dirs: [...new Set([dataDir, dirname(buildInto)])], bytes }, signal);
  }

  /** One connection's life, with everything that has to be in place before it. */
  async #connectAndStream(): Promise<void> {
    const { postgres, slot, publication, log } = this.#options;
    const { signal } = this.#abort;
    const history = this.#history;
    await history.open();
    if (this.#mustStartOver !== null) throw this.#mustStartOver;
    const client = await connect(postgres, { applicationName: 'rivulet replicator' });
    let identity: SourceIdentity;
    let isEpochDue = false;
    try {
      identity = await identify(client);
      if (history.changeLog === null) await history.resume(client, identity, signal);
      if (history.changeLog !== null) {
        checkBelongs(history.changeLog, { identity, slot, publication });
        this.#isConfirmed = true;
        this.emit('confirmed');
        await waitForSlot(client, { slot, log, signal });
        await checkContinuity(client, {
          slot,
          publication,
          identity,
          changeLog: history.changeLog,
          mayStartOver: !this.#hasStreamed,
        });
        await this.#publicationGuard.check(client, history.schema!);
        await this.#crashGuard.check(client, history.changeLog.position);
        const said = (message: string): void => log.info(message);
        this.#misplaced = await keepPublishedTables({ client, publication, log: said, attempts: 1 });
        await this.#keepIdentities(client);
        // If somebody else has begun an epoch since, that one stands until the slot turns out to be ours all the same.
        const entered = await readEpoch(client, publication);
        isEpochDue = !hasClaimed(this.#options.dataDir, { ...identity, slot }, entered);
        if (!isEpochDue) await this.#enterEpoch(client, history.changeLog.epoch, identity);
      } else {
        await this.#prepare(client, identity);
      }
      await this.#checkList(client);
      this.#announced(await hasEventTriggers(client));
      await this.#readKey(client);
    } finally {
      await disconnect(client);
    }
    const stopEpoch = new AbortController();
    const stop = (): void => stopEpoch.abort();
    signal.addEventListener('abort', stop, { once: true });
    if (signal.aborted) stop();
    try {
      let copying: Promise<void> = Promise.resolve();
      if (history.changeLog === null) {
        this.#publicationGuard.epochBegins();
        this.#become('copying', []);
        const epoch = await startEpoch({
          url: postgres,
          slot,
          publication,
          dataDir: this.#options.dataDir,
          identity,
          base: history.base,
          log,
          signal: stopEpoch.signal,
          isAnnounced: () => this.#isAnnounced,
          messageKey: () => this.#messageKey,
          onBegin: (name) => {
            claimSlot(this.#options.dataDir, { ...identity, slot }, name);
            return this.#connectAndEnterEpoch(name, identity);
          },
          onProgress: (progress) => {
            this.#copy = progress;
            this.emit('copy', progress);
          },
        });
        this.#retry.epochBegan();
        history.begin(epoch.changeLog, epoch.schema);
        copying = epoch.copied;
        // While the copy runs the stream already goes to the log, so that Postgres keeps no WAL for it.
        copying.catch(stop);
      }
      this.#pipeline = new Pipeline({
        url: postgres,
        slot,
        publication,
        changeLog: history.changeLog!,
        dataDir: this.#options.dataDir,
        delivery: this.#delivery,
        durablePosition: history.durablePosition(),
        publisher: this.publisher,
        schema: history.schema!,
        log,
        isAnnounced: () => this.#isAnnounced,
        messageKey: () => this.#messageKey,
        readKey: (client) => this.#readKey(client),
        seeTo: async (client) => {
          await this.#checkList(client);
          await this.#keepIdentities(client, 1);
        },
        onAnnounced: (isAnnounced) => this.#announced(isAnnounced),
        onMisplaced: (tables) => {
          this.#misplaced = tables;
        },
        onBegun: () => this.#crashGuard.begun(),
        onStreaming: () => {
          if (isEpochDue)
            this.#connectAndEnterEpoch(history.changeLog!.epoch, identity).catch((error: unknown) =>
              this.#pipeline?.fail(error),
            );
          void copying.then(
            () => {
              this.#hasStreamed = true;
              this.#retry.streaming();
              this.#lastError = null;
              this.#become('streaming', []);
              this.publisher.open();
              history.startHousekeeping();
              this.#ready.resolve();
              // Whoever asks now shall see the slot.
              void this.#monitor.poll();
            },
            () => undefined,
          );
        },
      });
      // It may have turned out meanwhile.
      if (this.#mustStartOver !== null) this.#pipeline.fail(this.#mustStartOver);
      const streaming = this.#pipeline.run(stopEpoch.signal);
      // Whichever fails first ends the other; a copy without its stream is as useless as the other way round.
      streaming.catch(stop);
      const outcomes = await Promise.allSettled([streaming, copying]);
      if (outcomes[0].status === 'rejected') {
        this.#publicationGuard.streamFailed(outcomes[0].reason);
        outcomes[0].reason = this.#poisonGuard.judge(outcomes[0].reason, this.position);
      }
      for (const outcome of outcomes) if (outcome.status === 'rejected') throw asStreamError(outcome.reason);
      this.#delivery = 'blocks';
    } finally {
      signal.removeEventListener('abort', stop);
      this.#pipeline = null;
      this.publisher.paused();
      await history.forgetUnfinished();
    }
  }

  /** Before the first copy: set-up, and a leftover slot of an unfinished one goes. */
  async #prepare(client: pg.Client, { systemIdentifier, database }: SourceIdentity): Promise<void> {
    const { slot, publication, log, dataDir, takeover } = this.#options;
    const claim = { systemIdentifier, database, slot };
    const { signal } = this.#abort;
    await waitForSlot(client, { slot, log, signal });
    const epoch = await readEpoch(client, publication);
    const isOurs = hasClaimed(dataDir, claim, epoch);
    if (!isOurs && !takeover) await checkSlotIsFree(client, slot, database);
    if (await dropSlot(client, slot, false)) {
      if (isOurs) log.info({ slot }, 'the slot of a history that is over was dropped');
      else
        log.warn(
          { slot },
          'the slot that was there was dropped: a replicator with another --data directory has to begin anew',
        );
    }
    claimSlot(dataDir, claim, epoch);
    // It takes as long as set-up does.
    this.#history.base.prepareBuild();
    await this.#setUp();
  }

  async #setUp(): Promise<void> {
    const { postgres, slot, publication, tables, log } = this.#options;
    const report = await setup({
      url: postgres,
      slot,
      publication,
      ...(tables === undefined ? {} : { tables }),
      onlyAgain: true,
      log: (message) => log.info(message),
      signal: this.#abort.signal,
    });
    for (const problem of report.missing) log.warn(problem);
  }

  async #connectAndEnterEpoch(epoch: string, identity: SourceIdentity): Promise<void> {
    const client = await connect(this.#options.postgres, { applicationName: 'rivulet replicator' });
    await this.#enterEpoch(client, epoch, identity).finally(() => disconnect(client));
  }

  /** Where there were none from the beginning set-up has said so. */
  #announced(isAnnounced: boolean): void {
    if (this.#isAnnounced && !isAnnounced) {
      this.#lostHooks = LOST_HOOKS;
      this.#options.log.warn(LOST_HOOKS);
    }
    if (isAnnounced) this.#lostHooks = null;
    this.#isAnnounced = isAnnounced;
  }

  async #readKey(client: pg.Client): Promise<void> {
    this.#messageKey = (await readMessageKey(client)) ?? this.#messageKey;
  }

  /** What is wrong with the list is said when it shows, and shown for as long as it is so. */
  async #checkList(client: pg.Client): Promise<void> {
    const { publication, tables, log } = this.#options;
    if (tables === undefined) return;
    const known = new Set(this.#listProblems.map(({ problem }) => problem));
    this.#listProblems = await readListProblems(client, { publication, tables });
    for (const { problem } of this.#listProblems) if (!known.has(problem)) log.warn(problem);
  }

  async #keepIdentities(client: pg.Client, attempts?: number): Promise<void> {
    const { publication, log } = this.#options;
    const said = (message: string): void => log.info(message);
    const failed = await keepPublishedIdentities(client, publication, said, attempts);
    this.#identityProblems = failed
      .filter(({ table }) => !this.#misplaced.some(({ oid }) => oid === table.rootOid))
      .map(
        ({ table, reason }) =>
          `${table.schema}.${table.name}: UPDATE and DELETE fail in Postgres (${reason})`,
      );
  }

  async #enterEpoch(client: pg.ClientBase, epoch: string, identity: SourceIdentity): Promise<void> {
    const { publication, log } = this.#options;
    if (await enterEpoch(client, { publication, epoch, identity })) return;
    log.warn(
      'the function rivulet.enter_epoch is not there for this user: no tokens can be taken from Postgres; run `rivulet setup`',
    );
  }

  #compareReplicas(): void {
    const { log } = this.#options;
    this.digests.run().then(
      (report) => {
        for (const warning of digestWarnings(report)) log.error({ position: report.position }, warning);
      },
      // Fewer than two replicas are live.
      (error: unknown) => log.debug({ err: error }, 'the replicas were not compared'),
    );
  }

  #become(state: ReplicatorState, reasons: readonly string[]): void {
    if (this.#state !== state)
      this.#options.log.info({ from: this.#state, to: state }, `replicator is ${state}`);
    this.#state = state;
    this.#reasons = reasons;
    this.emit('state', state, reasons);
  }
}

/** What the stream says of a slot that is gone is no verdict: the next connection looks at what else is gone. */
function asStreamError(error: unknown): unknown {
  if (!(error instanceof RivuletError) || error.code !== 'SLOT_LOST') return error;
  return new RivuletError('POSTGRES_UNREACHABLE', error.message, { cause: error });
}

/** See Replicator. */
export function startReplicator(options: ReplicatorOptions): Promise<Replicator> {
  return Replicator.start(options);
}
