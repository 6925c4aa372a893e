export const DEFAULT_SNAPSHOT_INTERVAL_MS = 15 * 60_000;

/** A snapshot before its time: applying more log than this, and than the file itself, takes longer than loading it. */
const LEAST_LOG_BYTES = 64 * 1024 * 1024;

/** What there is to restore from. */
export interface SnapshotState {
  /** Of the present history. */
  readonly newest: { readonly takenAtMs: number; readonly fileBytes: number } | null;
  /** The segments lead on from it. */
  readonly isRestorable: boolean;
  /** Of the log behind it. */
  readonly bytesSince: number;
}

/** Whether a snapshot is to be taken now. Pure. */
export function isSnapshotDue(
  { newest, isRestorable, bytesSince }: SnapshotState,
  { intervalMs, nowMs }: { readonly intervalMs: number; readonly nowMs: number },
): boolean {
  if (newest === null || !isRestorable) return true;
  if (bytesSince === 0) return false;
  return nowMs - newest.takenAtMs >= intervalMs || bytesSince > Math.max(LEAST_LOG_BYTES, newest.fileBytes);
}
