/** ok: as it should be. note: worth knowing. warning: works, at a price or a risk. problem: stops replication. */
export const SEVERITIES = ['ok', 'note', 'warning', 'problem'] as const;
export type Severity = (typeof SEVERITIES)[number];

export interface Finding {
  /** Stable name of what was looked at, for programs: `wal_level`, `replica_identity`. */
  readonly check: string;
  readonly severity: Severity;
  readonly says: string;
  /** What to do about it. */
  readonly advice?: string;
}

export function worst(findings: readonly Finding[]): Severity {
  return SEVERITIES[Math.max(0, ...findings.map(({ severity }) => SEVERITIES.indexOf(severity)))]!;
}
