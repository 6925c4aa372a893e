import Database from 'better-sqlite3';

/** Changes a replica file behind Rivulet's back: what nobody may do, and verify must find. */
export function plant(file: string, statements: readonly string[]): void {
  const db = new Database(file, { fileMustExist: true, timeout: 10_000 });
  try {
    for (const statement of statements) {
      if (db.prepare(statement).run().changes === 0) throw new Error(`nothing was planted by: ${statement}`);
    }
  } finally {
    db.close();
  }
}
