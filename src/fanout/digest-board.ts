import { randomUUID } from 'node:crypto';
import { type DigestAnnouncement, FRAME, jsonFrame } from '../change/frame.ts';
import type { ReplicaDigest, TableDigest } from '../change/table-digest.ts';
import { RivuletError } from '../errors.ts';
import { formatLsn } from '../lsn.ts';
import type { Publisher } from './publisher.ts';

/** What a replica may take for it: its snapshot keeps the WAL of its file from starting over for so long. */
export const DEFAULT_DIGEST_LIMIT_MS = 60_000;

/** What replicas are given to get ready: they start a thread. */
const PREPARE_MS = 10_000;
/** How often it is looked whether one that is waited for is gone. */
const LOOK_MS = 1000;
/** On top of the limit: a replica that works through its last table, and a report on its way. */
const GRACE_MS = 5000;

/** A table that is not the same on all replicas that told of it. */
export interface DifferingTable {
  readonly table: string;
  /** Replicas that have the same, largest group first. */
  readonly groups: readonly {
    readonly replicas: readonly string[];
    /** Null: they do not have the table. */
    readonly rows: number | null;
    readonly digest: string | null;
  }[];
}

/** What GET /v1/status shows of the newest round, and POST /v1/digest answers. */
export interface DigestReport {
  /** All of them had exactly the transactions up to here. */
  readonly position: string;
  readonly at: string;
  readonly replicas: readonly string[];
  /** Were asked and did not answer in time. */
  readonly silent: readonly string[];
  /** Tables that at least two replicas told of. */
  readonly tables: number;
  readonly differing: readonly DifferingTable[];
}

/**
 * Announces positions at which every live replica makes a digest of each of its tables, and compares them: so
 * replicas that differ from each other are noticed without asking Postgres.
 *
 * The announcement stands in the stream itself, behind the same transaction for all of them, so "at the same
 * position" needs no agreement. Replicas that are catching up, or do not know of digests, are not asked.
 */
export class DigestBoard {
  readonly #publisher: Publisher;
  readonly #limitMs: number;
  readonly #ready = new Set<string>();
  readonly #digests = new Map<string, ReplicaDigest & { readonly tables: readonly TableDigest[] }>();
  #roundId: string | null = null;
  #onDigest: (() => void) | null = null;
  #running: Promise<DigestReport> | null = null;
  #newest: DigestReport | null = null;

  constructor(publisher: Publisher, { limitMs = DEFAULT_DIGEST_LIMIT_MS } = {}) {
    this.#publisher = publisher;
    this.#limitMs = limitMs;
  }

  get newest(): DigestReport | null {
    return this.#newest;
  }

  /** A follower's digest, for the round that is under way; any other comes too late. */
  take(follower: string, digest: ReplicaDigest): void {
    const { id, tables } = digest;
    if (id !== this.#roundId) return;
    if (tables === null) this.#ready.add(follower);
    else this.#digests.set(follower, { ...digest, tables });
    this.#onDigest?.();
  }

  /** Runs a round, or waits for the one that is under way. */
  run(): Promise<DigestReport> {
    this.#running ??= this.#run().finally(() => {
      this.#running = null;
    });
    return this.#running;
  }

  async #run(): Promise<DigestReport> {
    const id = randomUUID();
    this.#ready.clear();
    this.#digests.clear();
    this.#roundId = id;
    const first = this.#announce({ id, limitMs: null });
    const isReady = (each: string): boolean => this.#ready.has(each);
    await this.#until(
      () => [...first.followers].every(([each, { isGone }]) => isReady(each) || isGone()),
      PREPARE_MS,
    );
    const { position, followers } = this.#announce({ id, limitMs: this.#limitMs });
    const at = new Date().toISOString();
    // Whoever loses its connection may have lost the announcement.
    const isDone = (each: string): boolean => this.#digests.has(each) || followers.get(each)!.isGone();
    const asked = [...followers.keys()].filter(isReady);
    await this.#until(() => asked.every(isDone), this.#limitMs + GRACE_MS);
    this.#roundId = null;
    const report = compareDigests(
      new Map(
        [...this.#digests].map(([follower, digest]) => [followers.get(follower)?.name ?? follower, digest]),
      ),
    );
    const silent = [...followers]
      .filter(([follower]) => !this.#digests.has(follower))
      .map(([, { name }]) => name);
    this.#newest = { position: formatLsn(position), at, silent, ...report };
    return this.#newest;
  }

  #announce(announcement: DigestAnnouncement): ReturnType<Publisher['announceDigest']> {
    const announced = this.#publisher.announceDigest(jsonFrame(FRAME.digest, announcement));
    if (announced.followers.size < 2) {
      throw new RivuletError(
        'NOT_READY',
        `${announced.followers.size === 0 ? 'no replica is' : 'only one replica is'} live: there is nothing to compare`,
        { hint: 'compare a replica with Postgres instead: rivulet verify --postgres URL --file PATH' },
      );
    }
    return announced;
  }

  async #until(condition: () => boolean, timeoutMs: number): Promise<void> {
    const deadlineMs = performance.now() + timeoutMs;
    while (!condition() && performance.now() < deadlineMs) {
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, LOOK_MS);
        this.#onDigest = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
    this.#onDigest = null;
  }
}

/** Compares what replicas, by name, told of the same position. A table that one had no time for is not held against it. */
export function compareDigests(
  digests: ReadonlyMap<string, { readonly tables: readonly TableDigest[]; readonly left: number }>,
): Pick<DigestReport, 'replicas' | 'tables' | 'differing'> {
  const names = new Set([...digests.values()].flatMap(({ tables }) => tables.map(({ table }) => table)));
  const differing: DifferingTable[] = [];
  let compared = 0;
  for (const table of [...names].sort()) {
    const groups = new Map<string, { replicas: string[]; rows: number | null; digest: string | null }>();
    let told = 0;
    for (const [replica, { tables, left }] of [...digests].sort(([a], [b]) => (a < b ? -1 : 1))) {
      const found = tables.find((each) => each.table === table);
      if (found === undefined && left > 0) continue;
      told++;
      const key = found === undefined ? '' : `${found.digest} ${found.rows}`;
      const group = groups.get(key) ?? {
        replicas: [],
        rows: found?.rows ?? null,
        digest: found?.digest ?? null,
      };
      group.replicas.push(replica);
      groups.set(key, group);
    }
    if (told < 2) continue;
    compared++;
    if (groups.size > 1)
      differing.push({
        table,
        groups: [...groups.values()].sort((a, b) => b.replicas.length - a.replicas.length),
      });
  }
  return { replicas: [...digests.keys()].sort(), tables: compared, differing };
}

/** One sentence for each table that differs, fit for a health page. */
export function digestWarnings(report: DigestReport | null): readonly string[] {
  return (report?.differing ?? []).map(({ table, groups }) => {
    const sides = groups.map(
      ({ replicas, rows }) => `${replicas.join(', ')} (${rows === null ? 'lacks it' : `${rows} rows`})`,
    );
    return `replicas differ in ${table} at ${report!.position}: ${sides.join(' | ')}`;
  });
}
