import { parentPort, workerData } from 'node:worker_threads';
import Database from 'better-sqlite3';
import { DigestSum, type ReplicaDigest, type TableDigest } from '../change/table-digest.ts';
import { DIGEST_BEGUN, DIGEST_STATE, type DigestTask } from './digester.ts';
import { readPosition } from './replica-file.ts';
import { readLayouts } from './schema.ts';
import { loadSqlite } from './sqlite-thread.ts';
import { StoredRows } from './stored-rows.ts';

const { state } = workerData as { readonly state: Int32Array };
const port = parentPort!;

/** A look at the clock costs as much as some rows. */
const ROWS_BETWEEN_LOOKS = 4096;

class OutOfTime extends Error {}

port.on('message', ({ id, file, limitMs }: DigestTask) => {
  const db = new Database(file, { readonly: true, fileMustExist: true });
  try {
    db.exec('BEGIN');
    readPosition(db);
  } finally {
    // The writer waits for this, whatever came of it.
    Atomics.store(state, DIGEST_STATE, DIGEST_BEGUN);
    Atomics.notify(state, DIGEST_STATE);
  }
  const deadlineMs = performance.now() + limitMs;
  const tables: TableDigest[] = [];
  const layouts = [...readLayouts(db).values()]
    .map((layout) => ({ layout, table: `${layout.relation.schema}.${layout.relation.name}` }))
    .sort((a, b) => (a.table < b.table ? -1 : 1));
  try {
    for (const { layout, table } of layouts) {
      const rows = new StoredRows(db, layout);
      let sum = new DigestSum(layout.relation);
      rows.read(
        () => {
          sum.add(rows.view, 0, rows.end);
          // A long reader keeps the file's WAL from starting over.
          if (sum.rows % ROWS_BETWEEN_LOOKS === 0 && performance.now() > deadlineMs) throw new OutOfTime();
        },
        () => {
          sum = new DigestSum(layout.relation);
        },
      );
      tables.push({ table, rows: sum.rows, digest: sum.digest });
    }
  } catch (error) {
    if (!(error instanceof OutOfTime)) throw error;
  } finally {
    db.close();
  }
  port.postMessage({ id, tables, left: layouts.length - tables.length } satisfies ReplicaDigest);
});

loadSqlite(port);
