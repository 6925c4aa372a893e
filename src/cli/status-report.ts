import type { DigestReport } from '../fanout/digest-board.ts';
import type { FollowerStatus } from '../fanout/follower-registry.ts';
import { parseLsn } from '../lsn.ts';
import type { ReplicatorStatus, SlotStatus, TablesStatus, UpstreamStatus } from '../replicator/status.ts';
import type { TransferProgress } from '../snapshot/chunk-upload.ts';
import type { SnapshotterStatus } from '../snapshot/snapshotter.ts';
import { copyProgressText } from './copy-progress.ts';
import {
  formatBytes,
  formatCount,
  formatDuration,
  formatMs,
  formatTable,
  paint,
  type Style,
} from './format.ts';

/** A slot that may be lost within this time is shown in red. */
const SOON_MS = 60 * 60 * 1000;
/** A replica that is further behind is shown in yellow. */
const BEHIND_MS = 1_000;
/** A replica that has not been heard of for longer is shown in red. */
const SILENT_MS = 15_000;
const MAX_TABLES_SHOWN = 20;

export interface FileStatus {
  readonly file: string;
  readonly epoch: string;
  readonly position: string;
  /** Commit time of the newest transaction in it. */
  readonly commitTime: string | null;
  readonly tables: number;
  readonly bytes: number;
  readonly walBytes: number;
  /** Values that no row of SQLite can hold, in words. */
  readonly leftOut: readonly string[];
}

export interface PostgresStatus {
  readonly version: string;
  readonly database: string;
  readonly walEnd: string;
  readonly slot: {
    readonly name: string;
    readonly exists: boolean;
    readonly active: boolean | null;
    readonly walStatus: string | null;
    readonly retainedBytes: number | null;
    readonly safeWalBytes: number | null;
  };
  readonly mirrored: number;
  readonly notMirrored: readonly { readonly table: string; readonly reason: string }[];
}

export interface StatusReport {
  readonly replicator?: ReplicatorStatus;
  readonly snapshotter?: SnapshotterStatus;
  readonly file?: FileStatus;
  readonly postgres?: PostgresStatus;
}

/** The report as tables for a person. */
export function formatStatus(report: StatusReport, options: { colour: boolean; now: number }): string {
  const sections: string[] = [];
  const page = new Page(options.colour, options.now);
  if (report.replicator !== undefined) sections.push(...page.replicator(report.replicator));
  if (report.snapshotter !== undefined) sections.push(page.snapshotter(report.snapshotter));
  if (report.postgres !== undefined)
    sections.push(...page.postgres(report.postgres, report.replicator === undefined));
  if (report.file !== undefined) sections.push(page.file(report.file, report.replicator));
  return sections.join('\n\n');
}

class Page {
  readonly #colour: boolean;
  readonly #now: number;

  constructor(colour: boolean, now: number) {
    this.#colour = colour;
    this.#now = now;
  }

  replicator(status: ReplicatorStatus): string[] {
    const good = status.state === 'streaming' && status.reasons.length === 0;
    const state = this.#paint(good ? 'green' : status.state === 'failed' ? 'red' : 'yellow', status.state);
    const general: string[][] = [
      ['state', state],
      ...status.reasons.map((reason) => ['', this.#paint('yellow', reason)]),
      ['epoch', status.epoch ?? 'none yet'],
      ['position', status.position ?? 'none yet'],
    ];
    if (status.copy !== null) general.push(['first copy', copyProgressText(status.copy)]);
    const { postgres, slot, log, snapshot, openTransactions: open } = status;
    const source: string[][] =
      postgres === null
        ? []
        : [
            [
              'server',
              `${postgres.version ?? 'unknown version'}, database ${postgres.database ?? 'unknown'}`,
            ],
            [
              'connection',
              postgres.connected
                ? this.#paint('green', 'streaming')
                : this.#paint('red', postgres.lastError ?? 'not connected'),
            ],
            ...this.#asOf(postgres),
            ['WAL end', withDistance(postgres.walEnd, status.position)],
            ...(slot === null ? [] : this.#slotRows(slot)),
          ];
    return [
      this.#section(status.upstream === null ? 'Replicator' : 'Relay', general),
      ...(status.upstream === null ? [] : [this.#upstream(status.upstream)]),
      ...(source.length === 0 ? [] : [this.#section('Postgres', source)]),
      ...(status.tables === null ? [] : [this.#tables(status.tables, postgres?.asOf !== null)]),
      this.#section('Change log', [
        ['size', `${formatBytes(log.bytes)} in ${formatCount(log.batches)} batches`],
        ['reaches from', `${log.oldestPosition ?? '–'} to ${log.newestPosition ?? '–'}`],
        ...(open === null || open.count === 0
          ? []
          : [
              [
                'open in Postgres',
                `${formatBytes(open.bytes)} of ${formatCount(open.count)} large transactions`,
              ],
            ]),
        [
          'base file',
          snapshot.position === null
            ? 'none yet'
            : `at ${snapshot.position}, ${snapshot.bytes === null ? '' : formatBytes(snapshot.bytes)}`,
        ],
      ]),
      ...(status.store === null ? [] : [this.#store(status.store)]),
      this.#followers(status.followers),
      ...(status.digest === null ? [] : [this.#digest(status.digest)]),
    ];
  }

  postgres(status: PostgresStatus, showsTables: boolean): string[] {
    const { slot } = status;
    return [
      this.#section('Postgres (asked directly)', [
        ['server', `${status.version}, database ${status.database}`],
        ['WAL end', status.walEnd],
        ...(slot.exists
          ? this.#slotRows({ ...slot, lostInMs: null })
          : [['slot', this.#paint('yellow', `${slot.name} does not exist`)]]),
      ]),
      ...(showsTables ? [this.#tables({ ...status, reloading: [] }, true)] : []),
    ];
  }

  file(status: FileStatus, replicator: ReplicatorStatus | undefined): string {
    const rows = [
      ['path', status.file],
      ['position', withDistance(status.position, null)],
      ['epoch', status.epoch],
      [
        'newest commit',
        status.commitTime === null
          ? 'none yet'
          : `${status.commitTime} (${this.#age(status.commitTime)} ago)`,
      ],
      [
        'content',
        `${formatCount(status.tables)} tables, ${formatBytes(status.bytes)} and ${formatBytes(status.walBytes)} of SQLite WAL`,
      ],
    ];
    for (const value of status.leftOut) rows.push(['incomplete', this.#paint('red', value)]);
    if (replicator?.position != null) {
      const sameHistory = replicator.epoch === status.epoch;
      const behind = sameHistory ? Number(parseLsn(replicator.position) - parseLsn(status.position)) : null;
      rows.push([
        'behind',
        behind === null
          ? this.#paint('yellow', "another history than the replicator's")
          : behind <= 0
            ? this.#paint('green', 'nothing')
            : formatBytes(behind),
      ]);
    }
    return this.#section('Replica file', rows);
  }

  snapshotter(status: SnapshotterStatus): string {
    const { state, isHealthy, reasons, position, store, newestSnapshot: newest, upload } = status;
    const rows = [
      ['state', this.#paint(isHealthy ? 'green' : 'yellow', state)],
      ...reasons.map((reason) => ['', this.#paint('yellow', reason)]),
      ['position', position ?? 'none yet'],
      ['store', store],
      ['snapshot', newest === null ? 'none yet' : `at ${newest.position}, ${this.#age(newest.takenAt)} ago`],
    ];
    if (upload !== null) rows.push(uploadRow(upload));
    return this.#section('Snapshotter', rows);
  }

  /** Of a server that is not asked any more, all that follows was so then. */
  #asOf({ asOf, connected }: NonNullable<ReplicatorStatus['postgres']>): string[][] {
    if (asOf === null || (connected && this.#now - Date.parse(asOf) <= SILENT_MS)) return [];
    return [['as of', this.#paint('yellow', `${asOf} (${this.#age(asOf)} ago), slot and tables too`)]];
  }

  #slotRows(slot: SlotStatus): string[][] {
    const walStatus = slot.walStatus ?? 'unknown';
    const healthy = walStatus === 'reserved' || walStatus === 'extended';
    const style = healthy ? 'green' : slot.walStatus === null ? 'yellow' : 'red';
    const active =
      slot.active === null
        ? ''
        : slot.active
          ? ', in use'
          : `, ${this.#paint('yellow', 'nobody reads from it')}`;
    const lost =
      slot.walStatus === 'lost'
        ? this.#paint('red', 'is lost: a new copy is needed')
        : slot.lostInMs !== null
          ? this.#paint(
              slot.lostInMs < SOON_MS ? 'red' : 'green',
              `in ${formatDuration(slot.lostInMs)} at the present rate`,
            )
          : slot.safeWalBytes !== null
            ? `after ${formatBytes(slot.safeWalBytes)} more of WAL`
            : slot.walStatus === null
              ? 'unknown'
              : 'never: the server sets no limit (max_slot_wal_keep_size)';
    return [
      ['slot', `${slot.name}${active}`],
      ['  wal_status', this.#paint(style, walStatus)],
      ['  retains', slot.retainedBytes === null ? 'unknown' : `${formatBytes(slot.retainedBytes)} of WAL`],
      ['  lost', lost],
    ];
  }

  #upstream({ url, connected, lastError, postgresHeardAgoMs, lagMs }: UpstreamStatus): string {
    const ms = (value: number | null): string => (value === null ? '–' : formatMs(value));
    return this.#section('Follows', [
      ['replicator', url],
      [
        'connection',
        connected ? this.#paint('green', 'streaming') : this.#paint('red', lastError ?? 'not connected'),
      ],
      ['lag', `p50 ${ms(lagMs.p50)}, p99 ${ms(lagMs.p99)}`],
      [
        'as of',
        postgresHeardAgoMs === null
          ? 'unknown'
          : this.#paint(
              postgresHeardAgoMs > SILENT_MS ? 'red' : 'gray',
              `${formatDuration(postgresHeardAgoMs)} ago`,
            ),
      ],
    ]);
  }

  #store(store: NonNullable<ReplicatorStatus['store']>): string {
    const { newestSnapshot, upload, lastError } = store;
    const rows = [
      ['place', store.url],
      ['state', this.#paint(store.state === 'archiving' ? 'green' : 'yellow', store.state)],
      ...(lastError === null ? [] : [['', this.#paint('yellow', lastError)]]),
      [
        'archived to',
        `${store.archivedPosition ?? '–'}${store.behindBytes === null ? '' : `, ${formatBytes(store.behindBytes)} of the log behind`}`,
      ],
      [
        'snapshot',
        newestSnapshot === null
          ? 'none yet'
          : `at ${newestSnapshot.position}, ${formatBytes(newestSnapshot.fileBytes)}, ${this.#age(newestSnapshot.takenAt)} ago (${store.snapshots} in all)`,
      ],
    ];
    if (upload !== null) rows.push(uploadRow(upload));
    if (store.durability === 'store') rows.push(['durability', 'Postgres forgets what is in the store']);
    return this.#section('Object store', rows);
  }

  #tables({ mirrored, notMirrored, reloading }: TablesStatus, isAsked: boolean): string {
    const rows = [['mirrored', formatCount(mirrored)]];
    for (const { table, rows: count } of reloading) {
      const what = `${table}: after a schema change, ${formatCount(count)} rows so far`;
      rows.push(['being read again', this.#paint('yellow', what)]);
    }
    if (notMirrored.length === 0) rows.push(['not mirrored', isAsked ? 'none' : 'unknown']);
    const shown = notMirrored.slice(0, MAX_TABLES_SHOWN);
    shown.forEach(({ table, reason }, index) => {
      rows.push([index === 0 ? 'not mirrored' : '', `${table}: ${reason}`]);
    });
    if (shown.length < notMirrored.length)
      rows.push(['', `and ${notMirrored.length - shown.length} more (--json shows all)`]);
    return this.#section('Tables', rows);
  }

  #followers(followers: readonly FollowerStatus[]): string {
    const title = this.#paint('bold', `Replicas (${followers.length})`);
    if (followers.length === 0) return `${title}\n  none is connected`;
    const header = ['name', 'via', 'state', 'position', 'lag p50', 'p99', 'last', 'behind', 'heard of'].map(
      (cell) => this.#paint('gray', cell),
    );
    const sorted = [...followers].sort((left, right) =>
      left.name.localeCompare(right.name, 'en', { numeric: true }),
    );
    const rows = sorted.map((follower) => {
      const { lagMs } = follower;
      const silentMs = this.#now - Date.parse(follower.lastSeenAt);
      const ms = (value: number | null): string => (value === null ? '–' : formatMs(value));
      return [
        follower.name,
        follower.via ?? '',
        this.#paint(
          follower.state === 'live' ? 'green' : follower.state === 'gone' ? 'red' : 'yellow',
          follower.state,
        ),
        follower.position ?? '–',
        ms(lagMs.p50),
        ms(lagMs.p99),
        this.#paint((lagMs.last ?? 0) > BEHIND_MS ? 'yellow' : 'green', ms(lagMs.last)),
        follower.lagBytes === null ? '–' : formatBytes(Math.max(0, follower.lagBytes)),
        this.#paint(silentMs > SILENT_MS ? 'red' : 'gray', `${this.#age(follower.lastSeenAt)} ago`),
      ];
    });
    return [title, ...formatTable([header, ...rows], [4, 5, 6, 7]).map((line) => `  ${line.trimEnd()}`)].join(
      '\n',
    );
  }

  #digest({ position, at, replicas, silent, tables, differing }: DigestReport): string {
    return this.#section('Replicas compared with each other', [
      ['at', `${position}, ${this.#age(at)} ago`],
      ['replicas', `${replicas.length}${silent.length > 0 ? `; no answer from ${silent.join(', ')}` : ''}`],
      [
        'tables',
        differing.length === 0
          ? this.#paint('green', `${formatCount(tables)}, equal`)
          : this.#paint(
              'red',
              `${formatCount(tables)}, different: ${differing.map(({ table }) => table).join(', ')}`,
            ),
      ],
    ]);
  }

  #section(title: string, rows: readonly (readonly string[])[]): string {
    const labelled = rows.map(([label, ...rest]) => [this.#paint('gray', label ?? ''), ...rest]);
    return [this.#paint('bold', title), ...formatTable(labelled).map((line) => `  ${line.trimEnd()}`)].join(
      '\n',
    );
  }

  #age(time: string): string {
    // 'YYYY-MM-DD HH:MM:SS.ffffffZ' as the file holds it, or ISO 8601.
    const at = Date.parse(time.replace(' ', 'T'));
    return Number.isNaN(at) ? 'unknown' : formatDuration(Math.max(0, this.#now - at));
  }

  #paint(style: Style, value: string): string {
    return paint(this.#colour, style, value);
  }
}

function withDistance(lsn: string | null, from: string | null): string {
  if (lsn === null) return 'unknown';
  if (from === null) return lsn;
  const bytes = Number(parseLsn(lsn) - parseLsn(from));
  return bytes <= 0 ? `${lsn}, all of it read` : `${lsn}, ${formatBytes(bytes)} still to be read`;
}

function uploadRow({ bytes, totalBytes }: TransferProgress): string[] {
  return ['uploading', `${formatBytes(bytes)} of ${formatBytes(totalBytes)}`];
}
