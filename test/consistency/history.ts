/** What a read at one node showed, of the session that reads and of another one. */
export interface Observation {
  readonly node: string;
  readonly versions: readonly (readonly [session: number, version: number])[];
  /** Amounts of the sessions' two rows together: a transaction moves some of it from one to the other. */
  readonly sums: readonly (readonly [session: number, sum: number])[];
}

export type ViolationKind = 'read-your-writes' | 'monotonic-reads' | 'atomicity';

export interface Violation {
  readonly kind: ViolationKind;
  readonly session: number;
  readonly detail: string;
}

/** What every pair of rows holds together, always. */
export const PAIR_SUM = 1000;

/**
 * One session (a user, say): what it has written and what it has been shown, wherever. Judges every further read
 * by it. Versions of a session's row only grow.
 */
export class SessionHistory {
  readonly session: number;
  /** The token that it carries from request to request; null for none. */
  token: string | null = null;
  /** Its newest write that was answered. */
  #written = 0;
  /** Its newest write, answered or not. */
  #attempted: number;
  readonly #shown = new Map<number, number>();

  /** `firstVersion`: above all that the row has had before. */
  constructor(session: number, firstVersion: number) {
    this.session = session;
    this.#attempted = firstVersion - 1;
  }

  /** The version of a write that is about to begin. */
  attempt(): number {
    return ++this.#attempted;
  }

  /** That write was answered. */
  answered(version: number): void {
    this.#written = Math.max(this.#written, version);
  }

  judge({ node, versions, sums }: Observation): Violation[] {
    const found: Violation[] = [];
    const report = (kind: ViolationKind, detail: string): void => {
      found.push({ kind, session: this.session, detail: `${detail} at ${node}` });
    };
    for (const [session, version] of versions) {
      if (session === this.session && version < this.#written)
        report('read-your-writes', `wrote version ${this.#written}, read ${version}`);
      const shown = this.#shown.get(session) ?? 0;
      if (version < shown)
        report('monotonic-reads', `had read version ${shown} of session ${session}, then ${version}`);
      else this.#shown.set(session, version);
    }
    for (const [session, sum] of sums)
      if (sum !== PAIR_SUM) report('atomicity', `the pair of session ${session} held ${sum}`);
    return found;
  }
}
