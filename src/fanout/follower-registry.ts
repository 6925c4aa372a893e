import { formatLsn, type Lsn } from '../lsn.ts';

/** As GET /v1/status shows it. LSNs are text, times ISO 8601, null means unknown. */
export interface FollowerStatus {
  readonly id: string;
  readonly name: string;
  readonly state: string;
  readonly position: string | null;
  /** Commit to applied, as the follower measured it over about the last ten seconds. */
  readonly lagMs: LagSummary;
  readonly lagBytes: number | null;
  readonly connectedAt: string;
  readonly lastSeenAt: string;
}

export interface LagSummary {
  readonly p50: number | null;
  readonly p99: number | null;
  readonly last: number | null;
}

/** What a follower says of itself, POST /v1/followers/ID. */
export interface FollowerReport {
  readonly name?: string;
  readonly position: Lsn;
  readonly lagMs?: LagSummary;
}

interface Entry {
  name: string;
  state: string;
  position: Lsn | null;
  lagMs: LagSummary;
  connectedAtMs: number;
  lastSeenAtMs: number;
}

const UNKNOWN_LAG: LagSummary = { p50: null, p99: null, last: null };

/** One that left stays in sight for a day: a replica that does not come back should be noticed. */
const REMEMBER_GONE_MS = 24 * 60 * 60 * 1000;
/** Names of followers come from outside: there is a bound to how many are kept. */
const MAX_ENTRIES = 10_000;

/** Every follower seen lately, connected or not, by the id that it gave itself. */
export class FollowerRegistry {
  readonly #entries = new Map<string, Entry>();

  connected(follower: {
    readonly id: string;
    readonly name: string;
    readonly position: Lsn;
    readonly nowMs: number;
  }): void {
    const lagMs = this.#entries.get(follower.id)?.lagMs ?? UNKNOWN_LAG;
    const { id, name, position, nowMs } = follower;
    this.#set(id, { name, state: 'catching-up', position, lagMs, connectedAtMs: nowMs, lastSeenAtMs: nowMs });
  }

  changed(id: string, state: string, nowMs: number): void {
    const entry = this.#entries.get(id);
    if (entry === undefined) return;
    entry.state = state;
    entry.lastSeenAtMs = nowMs;
  }

  report(id: string, report: FollowerReport, nowMs: number): void {
    let entry = this.#entries.get(id);
    if (entry === undefined) {
      entry = {
        name: report.name ?? id,
        state: 'gone',
        position: null,
        lagMs: UNKNOWN_LAG,
        connectedAtMs: nowMs,
        lastSeenAtMs: nowMs,
      };
      this.#set(id, entry);
    }
    entry.name = report.name ?? entry.name;
    entry.position = report.position;
    entry.lagMs = report.lagMs ?? entry.lagMs;
    entry.lastSeenAtMs = nowMs;
  }

  forgetOld(nowMs: number): void {
    for (const [id, entry] of this.#entries) {
      if (entry.state === 'gone' && nowMs - entry.lastSeenAtMs > REMEMBER_GONE_MS) this.#entries.delete(id);
    }
  }

  status(position: Lsn | null): readonly FollowerStatus[] {
    return [...this.#entries].map(([id, entry]) => ({
      id,
      name: entry.name,
      state: entry.state,
      position: entry.position === null ? null : formatLsn(entry.position),
      lagMs: entry.lagMs,
      lagBytes:
        entry.position === null || position === null
          ? null
          : Number(position > entry.position ? position - entry.position : 0n),
      connectedAt: new Date(entry.connectedAtMs).toISOString(),
      lastSeenAt: new Date(entry.lastSeenAtMs).toISOString(),
    }));
  }

  #set(id: string, entry: Entry): void {
    if (!this.#entries.has(id) && this.#entries.size >= MAX_ENTRIES) {
      const oldest =
        [...this.#entries].find(([, { state }]) => state === 'gone') ?? this.#entries.entries().next().value;
      if (oldest !== undefined) this.#entries.delete(oldest[0]);
    }
    this.#entries.set(id, entry);
  }
}
