import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Batch } from '../../src/change/batch.ts';
import { abortFrame } from '../../src/change/frame.ts';
import {
  createChangeLog,
  openChangeLog,
  type SqliteChangeLog,
} from '../../src/changelog/sqlite-change-log.ts';
import { RivuletError } from '../../src/errors.ts';
import { DigestBoard } from '../../src/fanout/digest-board.ts';
import { Publisher, type PublisherOptions } from '../../src/fanout/publisher.ts';
import type { HttpServer } from '../../src/http/listen.ts';
import { type ServedReplicator, serveReplicator } from '../../src/http/server.ts';
import { silentLog } from '../../src/log.ts';
import { formatLsn, type Lsn } from '../../src/lsn.ts';
import { formatChecksum } from '../../src/replica/page-checksum.ts';
import { createReplicaFile } from '../../src/replica/replica-file.ts';
import { createReplicaSchema } from '../../src/replica/schema.ts';
import type { ReplicatorStatus } from '../../src/replicator/status.ts';
import { checksumOf } from '../../src/snapshot/file-checksum.ts';
import type { SnapshotLease } from '../../src/snapshot/snapshot-provider.ts';
import { partFrame, type TestChange, testRelation, transactionFrame } from '../helpers/frames.ts';

export const START: Lsn = 0x1000n;
export const SOURCE = {
  systemIdentifier: '7000',
  timeline: 1,
  database: 'shop',
  slot: 'rivulet',
  publication: 'rivulet',
} as const;

export const ITEMS = testRelation({
  oid: 500,
  name: 'items',
  columns: [
    { name: 'id', mapping: 'int', key: 1 },
    { name: 'label', mapping: 'text' },
  ],
});

export function insertItem(id: number, label = `item ${id}`): TestChange {
  return { insert: ITEMS.oid, row: [id, label] };
}

/** One transaction. */
export function batch(
  endLsn: Lsn,
  changes: readonly TestChange[],
  more: { xid?: number; hasParts?: boolean; commitTimeUs?: bigint } = {},
): Batch {
  return {
    bytes: transactionFrame({ endLsn, changes, commitTimeUs: BigInt(Date.now()) * 1000n, ...more }),
    endLsn,
    closes: 1,
    opensParts: false,
  };
}

export function partBatch(endLsn: Lsn, changes: readonly TestChange[], xid = 700): Batch {
  return { bytes: partFrame(changes, xid), endLsn, closes: 0, opensParts: true };
}

export function abortBatch(endLsn: Lsn, xid = 700): Batch {
  return { bytes: abortFrame(xid), endLsn, closes: 0, opensParts: false };
}

export function temporaryDirectory(): { readonly path: string } & Disposable {
  const path = mkdtempSync(join(tmpdir(), 'rivulet-test-'));
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true, force: true }) };
}

export function newChangeLog(
  dir: string,
  epoch = 'e1',
  startPosition = START,
  database: string = SOURCE.database,
): SqliteChangeLog {
  return createChangeLog({ dir, epoch, startPosition, source: { ...SOURCE, database }, sourceState: '{}' });
}

export interface TestReplicatorOptions {
  readonly dir: string;
  readonly publisher?: Partial<PublisherOptions>;
  readonly token?: string;
  readonly port?: number;
  readonly host?: string;
  readonly epoch?: string;
  readonly database?: string;
}

/** Everything of a replicator but its Postgres: a log, a publisher, an empty snapshot, HTTP. */
export class TestReplicator implements AsyncDisposable {
  readonly dir: string;
  log: SqliteChangeLog;
  readonly publisher: Publisher;
  readonly digests: DigestBoard;
  server!: HttpServer;
  hastened = 0;
  onHasten: () => void = () => undefined;
  snapshotEpoch: string;
  snapshotPosition = START;
  /** Another one than the file has, if the test says so. */
  snapshotChecksum: string | null = null;
  leases = 0;
  rechecks = 0;
  #nextLsn: Lsn;

  private constructor(options: TestReplicatorOptions, log: SqliteChangeLog) {
    this.dir = options.dir;
    this.log = log;
    this.#nextLsn = log.position;
    this.snapshotEpoch = log.epoch;
    this.publisher = new Publisher({ log: silentLog(), ...options.publisher });
    this.digests = new DigestBoard(this.publisher);
    this.publisher.attach(log);
    this.publisher.open();
    makeSnapshot(this.snapshotPath, log.epoch, START);
  }

  get snapshotPath(): string {
    return join(this.dir, 'base.db');
  }

  static async start(options: TestReplicatorOptions): Promise<TestReplicator> {
    const replicator = new TestReplicator(
      options,
      newChangeLog(options.dir, options.epoch, START, options.database),
    );
    await replicator.#listen(options);
    return replicator;
  }

  /** As after a crash: the same log, opened again. */
  static async restart(options: TestReplicatorOptions): Promise<TestReplicator> {
    const replicator = new TestReplicator(options, openChangeLog({ dir: options.dir }));
    await replicator.#listen(options);
    return replicator;
  }

  async #listen(options: TestReplicatorOptions): Promise<void> {
    const served: ServedReplicator = {
      publisher: this.publisher,
      digests: this.digests,
      snapshots: {
        acquire: () => this.#acquire(),
        recheck: () => {
          this.rechecks++;
        },
      },
      status: () => this.status(),
      hasten: () => {
        this.hastened++;
        this.onHasten();
      },
      takeSnapshot: () => Promise.reject(new RivuletError('CONFIG', 'no object store')),
    };
    this.server = await serveReplicator({
      replicator: served,
      listen: { host: options.host ?? '127.0.0.1', port: options.port ?? 0 },
      token: options.token,
      log: silentLog(),
    });
  }

  get url(): string {
    return this.server.url;
  }

  /** One transaction through log and publisher; gives its end. */
  commit(...changes: TestChange[]): Lsn {
    this.#nextLsn += 0x100n;
    this.publish(batch(this.#nextLsn, changes));
    return this.#nextLsn;
  }

  publish(next: Batch): void {
    this.log.append(next);
    this.publisher.publish(next);
  }

  advance(position: Lsn): void {
    this.#nextLsn = position;
    this.log.advance(position);
    this.publisher.advance();
  }

  status(): ReplicatorStatus {
    return {
      state: 'streaming',
      reasons: [],
      upstream: null,
      epoch: this.log.epoch,
      position: formatLsn(this.log.position),
      durablePosition: formatLsn(this.log.durablePosition),
      copy: null,
      postgres: {
        version: '18',
        database: 'shop',
        walEnd: null,
        asOf: null,
        connected: true,
        lastError: null,
      },
      slot: {
        name: 'rivulet',
        active: true,
        walStatus: 'reserved',
        retainedBytes: 0,
        safeWalBytes: null,
        lostInMs: null,
      },
      tables: { mirrored: 1, notMirrored: [], reloading: [] },
      openTransactions: { count: 0, bytes: 0 },
      log: {
        ...this.log.size(),
        oldestPosition: formatLsn(this.log.oldestPosition),
        newestPosition: formatLsn(this.log.position),
      },
      followers: this.publisher.followers(),
      buffers: this.publisher.buffers,
      digest: this.digests.newest,
      snapshot: { position: formatLsn(START), bytes: null },
      store: null,
    };
  }

  /** A new history in the same place. */
  async newEpoch(epoch: string): Promise<void> {
    this.publisher.detach();
    await this.log.close();
    for (const suffix of ['', '-wal', '-shm']) rmSync(join(this.dir, `log.db${suffix}`), { force: true });
    this.log = newChangeLog(this.dir, epoch, this.#nextLsn);
    makeSnapshot(this.snapshotPath, epoch, this.#nextLsn);
    this.snapshotEpoch = epoch;
    this.snapshotPosition = this.#nextLsn;
    this.publisher.attach(this.log);
    this.publisher.open();
  }

  async #acquire(): Promise<SnapshotLease> {
    if (!this.publisher.isOpen) throw new RivuletError('NOT_READY', 'there is no snapshot yet');
    this.leases++;
    const release = (): void => {
      this.leases--;
    };
    return {
      path: this.snapshotPath,
      epoch: this.snapshotEpoch,
      position: this.snapshotPosition,
      checksum: this.snapshotChecksum ?? formatChecksum(checksumOf(this.snapshotPath)),
      release,
    };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.server.close();
    await this.publisher.close();
    await this.log.close();
  }
}

export function makeSnapshot(
  file: string,
  epoch: string,
  position: Lsn,
  databaseName: string = SOURCE.database,
): void {
  const db = createReplicaFile(file);
  createReplicaSchema(db, [ITEMS], {
    epoch,
    position,
    commitTimeUs: null,
    systemIdentifier: SOURCE.systemIdentifier,
    databaseName,
  });
  db.close();
}
