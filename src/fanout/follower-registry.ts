import { formatLsn, type Lsn, parseLsn } from '../lsn.ts';

/** As GET /v1/status shows it. LSNs are text, times ISO 8601, null means unknown. */
export interface FollowerStatus {
  readonly id: string;
  readonly name: string;
  /** The relays between here and there, the nearest first; null if it is connected here. */
  readonly via: string | null;
  /** `unknown`: the relay that told of it is gone. */
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

/** A follower of a relay, as the relay's own status shows it. */
export type RelayedFollower = Omit<FollowerStatus, 'lagBytes'>;

/** What a follower says of itself, POST /v1/followers/ID. */
export interface FollowerReport {
  readonly name?: string;
  readonly position: Lsn;
  readonly lagMs?: LagSummary;
  /** Of a relay. */
  readonly followers?: readonly RelayedFollower[];
}

interface Entry {
  name: string;
  state: string;
  position: Lsn | null;
  lagMs: LagSummary;
  connectedAtMs: number;
  lastSeenAtMs: number;
  /** When it last reported over the present connection, by report()'s clock; null: not yet. */
  heardAtMs: number | null;
  /** The follower of ours that told of it, and the names of all relays on the way; null if it was connected here. */
  via: { readonly relay: string; readonly names: string } | null;
}

const UNKNOWN_LAG: LagSummary = { p50: null, p99: null, last: null };

/** One that left stays in sight for a day: a replica that does not come back should be noticed. */
const REMEMBER_GONE_MS = 24 * 60 * 60 * 1000;
/** Names of followers come from outside: there is a bound to how many are kept. */
export const MAX_FOLLOWERS_KNOWN = 10_000;

/** Every follower seen lately, connected here, to a relay, or not at all, by the id that it gave itself. */
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
    this.#set(id, {
      name,
      state: 'catching-up',
      position,
      lagMs,
      connectedAtMs: nowMs,
      lastSeenAtMs: nowMs,
      heardAtMs: null,
      via: null,
    });
  }

  changed(id: string, state: string): void {
    const entry = this.#entries.get(id);
    if (entry !== undefined) entry.state = state;
  }

  /** `heardAtMs`: by a clock that nobody sets, for silent(). */
  report(id: string, report: FollowerReport, nowMs: number, heardAtMs: number): void {
    let entry = this.#entries.get(id);
    if (entry === undefined) {
      entry = {
        name: report.name ?? id,
        state: 'gone',
        position: null,
        lagMs: UNKNOWN_LAG,
        connectedAtMs: nowMs,
        lastSeenAtMs: nowMs,
        heardAtMs: null,
        via: null,
      };
      this.#set(id, entry);
    }
    entry.name = report.name ?? entry.name;
    entry.position = report.position;
    entry.lagMs = report.lagMs ?? entry.lagMs;
    entry.lastSeenAtMs = nowMs;
    entry.heardAtMs = heardAtMs;
    for (const follower of report.followers ?? []) this.#relayed(id, entry.name, follower);
  }

  /** Connected, have reported, and not since that moment. */
  silent(sinceMs: number): readonly string[] {
    return [...this.#entries]
      .filter(([, { state, heardAtMs }]) => state !== 'gone' && heardAtMs !== null && heardAtMs < sinceMs)
      .map(([id]) => id);
  }

  forgetOld(nowMs: number): void {
    for (const [id, entry] of this.#entries) {
      if (this.#stateOf(entry) === 'gone' && nowMs - entry.lastSeenAtMs > REMEMBER_GONE_MS)
        this.#entries.delete(id);
    }
  }

  status(position: Lsn | null): readonly FollowerStatus[] {
    return [...this.#entries].map(([id, entry]) => ({
      id,
      name: entry.name,
      via: entry.via?.names ?? null,
      state: this.#stateOf(entry),
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

  #stateOf({ state, via }: Entry): string {
    if (via === null || state === 'gone') return state;
    const relay = this.#entries.get(via.relay);
    return relay === undefined || relay.state === 'gone' ? 'unknown' : state;
  }

  /** One that has moved is where it was seen last: connected here, or at the relay that heard of it later. */
  #relayed(relay: string, relayName: string, follower: RelayedFollower): void {
    const { id, name, state, position, lagMs } = follower;
    const known = this.#entries.get(id);
    const lastSeenAtMs = Date.parse(follower.lastSeenAt);
    const isElsewhere = known !== undefined && known.via?.relay !== relay && known.state !== 'gone';
    if (id === relay || (isElsewhere && (known.via === null || known.lastSeenAtMs > lastSeenAtMs))) return;
    if (known !== undefined && state === 'gone' && known.via?.relay !== relay) return;
    const names = follower.via === null ? relayName : `${relayName} > ${follower.via}`;
    this.#set(id, {
      name,
      state,
      position: position === null ? null : parseLsn(position),
      lagMs,
      connectedAtMs: Date.parse(follower.connectedAt),
      lastSeenAtMs,
      heardAtMs: null,
      via: { relay, names },
    });
  }

  #set(id: string, entry: Entry): void {
    if (!this.#entries.has(id) && this.#entries.size >= MAX_FOLLOWERS_KNOWN) {
      const oldest =
        [...this.#entries].find(([, { state }]) => state === 'gone') ?? this.#entries.entries().next().value;
      if (oldest !== undefined) this.#entries.delete(oldest[0]);
    }
    this.#entries.set(id, entry);
  }
}
