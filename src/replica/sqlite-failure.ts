/** Whether SQLite itself is at its end, rather than that it refuses a statement: no space, a broken file, a lock. */
export function isFailure(error: unknown): boolean {
  const code = String((error as { code?: unknown }).code);
  return /^SQLITE_(FULL|IOERR|NOMEM|BUSY|READONLY|CANTOPEN|NOTADB|INTERRUPT|CORRUPT$|CORRUPT_INDEX)/.test(
    code,
  );
}
