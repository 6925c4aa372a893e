/**
 * What a statement does to the replicas, from nothing to the worst; of several things that it does, the last in
 * this order stands for the statement.
 */
export const EFFECTS = [
  'none', // nothing changes in the replicas
  'live', // they follow the change of schema at its place among the transactions
  'rows', // its rows are streamed
  'opaque', // nobody can tell without running it
  'backfill', // rows of tables are read again from Postgres
  'leaves', // tables leave the replicas
  'unseen', // replicas keep what they had
  'refused', // Postgres refuses it, or statements of the application after it
  'rebuild', // every replica starts from a new copy
  'dangerous', // it breaks replication
  'error', // it is no SQL
] as const;
export type Effect = (typeof EFFECTS)[number];

/** Those after which somebody has to act, or better does not run it. */
export function isBad(effect: Effect): boolean {
  return EFFECTS.indexOf(effect) >= EFFECTS.indexOf('unseen');
}

export function worstEffect(effects: readonly Effect[]): Effect {
  return EFFECTS[Math.max(0, ...effects.map((effect) => EFFECTS.indexOf(effect)))]!;
}

/** One thing that a statement does. */
export interface Consequence {
  readonly effect: Effect;
  readonly says: string;
  /** Schema-qualified. */
  readonly table?: string;
  /** Rows that are read again or streamed; null if nobody knows. */
  readonly rows?: number | null;
  /** Why rows are read again. */
  readonly why?: string;
}

export interface StatementReport {
  /** 1-based, in the file. */
  readonly line: number;
  /** The statement on one line, cut. */
  readonly statement: string;
  readonly effect: Effect;
  readonly consequences: readonly Consequence[];
}
