import { setTimeout as delay } from 'node:timers/promises';
import { parentPort, workerData } from 'node:worker_threads';
import Database from 'better-sqlite3';
import { ProtocolError, RivuletError } from '../errors.ts';
import type { Lsn } from '../lsn.ts';
import { toPlainError } from '../plain-error.ts';
import { quoteName } from '../replica/naming.ts';
import { readPosition } from '../replica/replica-file.ts';
import { readLayouts } from '../replica/schema.ts';
import { loadSqlite } from '../replica/sqlite-thread.ts';
import { StoredRows } from '../replica/stored-rows.ts';
import type { TableLayout } from '../replica/table-layout.ts';
import type {
  FileReplies,
  FileReply,
  FileRequest,
  FileSnapshot,
  TablePart,
  WireSums,
} from './file-messages.ts';
import { emptySums, RowSorter } from './table-sums.ts';

/** The thread that reads the file: SQLite reads synchronously, and Postgres is read at the same time. */
const path = workerData as string;
const port = parentPort!;

const POLL_INTERVAL_MS = 2;
/** How often the path is opened again meanwhile: another file may take its place. */
const REOPEN_INTERVAL_MS = 250;
const CACHE_KIB = 8 * 1024;
const CHUNK_BYTES = 256 * 1024;

let db: Database.Database | null = null;
let layouts: Map<number, TableLayout> = new Map();
/** Tables in which texts were seen that are no UTF-8, or might not be. */
const readAsBytes = new Set<number>();
let picked: Iterator<Buffer> | null = null;

async function begin(target: Lsn, timeoutMs: number): Promise<FileReplies['begin']> {
  const deadlineMs = performance.now() + timeoutMs;
  let first: Lsn | null = null;
  for (;;) {
    close();
    const opened = open();
    const reopenAtMs = performance.now() + REOPEN_INTERVAL_MS;
    for (;;) {
      opened.exec('BEGIN');
      // The first read of a transaction fixes what all others in it see.
      const { applied, epoch } = readPosition(opened);
      first ??= applied;
      if (applied >= target) {
        db = opened;
        layouts = readLayouts(opened);
        readAsBytes.clear();
        const reloading = opened
          .prepare<[], number>('SELECT relation_oid FROM _rivulet_reload')
          .pluck()
          .all();
        return { position: applied, epoch, layouts, reloading } satisfies FileSnapshot;
      }
      opened.exec('COMMIT');
      if (performance.now() >= deadlineMs) {
        opened.close();
        return { late: applied, hasMoved: applied !== first };
      }
      await delay(POLL_INTERVAL_MS);
      if (performance.now() >= reopenAtMs) break;
    }
    opened.close();
  }
}

function open(): Database.Database {
  try {
    const opened = new Database(path, { readonly: true, fileMustExist: true });
    opened.pragma(`cache_size = -${CACHE_KIB}`);
    return opened;
  } catch (cause) {
    throw new RivuletError('FILE_UNUSABLE', `${path} cannot be read: ${(cause as Error).message}`, { cause });
  }
}

function close(): null {
  picked = null;
  db?.close();
  db = null;
  return null;
}

function opened(): Database.Database {
  if (db === null) throw new ProtocolError('no snapshot of the file is open');
  return db;
}

function layout(oid: number): TableLayout {
  const found = layouts.get(oid);
  if (found === undefined) throw new ProtocolError(`the file has no table of the relation ${oid}`);
  return found;
}

function boundary(request: Extract<FileRequest, { kind: 'boundary' }>): bigint | null {
  const { from, rows } = request;
  const column = quoteName(request.column);
  const table = quoteName(layout(request.oid).sqliteName);
  const query = (sql: string, ...values: (bigint | number)[]): unknown =>
    opened()
      .prepare(sql)
      .pluck()
      .safeIntegers()
      .get(...values);
  const where = from === null ? '' : ` WHERE ${column} >= ?`;
  const values = from === null ? [] : [from];
  const found = query(
    `SELECT ${column} FROM ${table}${where} ORDER BY ${column} LIMIT 1 OFFSET ?`,
    ...values,
    rows,
  );
  if (typeof found !== 'bigint') return null;
  if (from === null || found > from) return found;
  const next = query(`SELECT min(${column}) FROM ${table} WHERE ${column} > ?`, from);
  return typeof next === 'bigint' ? next : null;
}

function sum({ oid, key, range, apart }: TablePart): WireSums {
  const rows = new StoredRows(opened(), layout(oid), range);
  const sorter = new RowSorter(key, new Set(apart));
  let sums = emptySums();
  rows.read(
    () => sorter.add(sums, rows.bytes, rows.view, 0, rows.end),
    () => {
      sums = emptySums();
      readAsBytes.add(oid);
    },
  );
  return { ...sums, apart: [...sums.apart].map(([text, { tuple, count }]) => [text, tuple, count] as const) };
}

function* pick(request: Extract<FileRequest, { kind: 'pick' }>): Generator<Buffer> {
  const { oid, key, range, buckets, apart } = request;
  const rows = new StoredRows(opened(), layout(oid), range);
  const sorter = new RowSorter(key, new Set(apart));
  const asBytes = readAsBytes.has(oid);
  for (const row of rows.iterate(asBytes)) {
    if (asBytes) rows.encodeBytes(row);
    else rows.encode(row);
    const bucket = sorter.bucket(rows.bytes, rows.view, 0, rows.end);
    if (buckets[bucket] === 0 || sorter.isApart(rows.bytes, 0, rows.end, bucket)) continue;
    yield rows.bytes.subarray(0, rows.end);
  }
}

function more(): FileReplies['more'] {
  const parts: Buffer[] = [];
  let bytes = 0;
  let isLast = false;
  while (bytes < CHUNK_BYTES) {
    const next = picked?.next();
    if (next === undefined || next.done === true) {
      isLast = true;
      break;
    }
    const part = Buffer.allocUnsafe(4 + next.value.length);
    part.writeUInt32LE(next.value.length, 0);
    next.value.copy(part, 4);
    parts.push(part);
    bytes += part.length;
  }
  const tuples = new Uint8Array(bytes);
  let at = 0;
  for (const part of parts) {
    tuples.set(part, at);
    at += part.length;
  }
  return { tuples, isLast };
}

async function answer(request: FileRequest): Promise<FileReplies[FileRequest['kind']]> {
  switch (request.kind) {
    case 'begin':
      return await begin(request.target, request.timeoutMs);
    case 'end':
      return close();
    case 'boundary':
      return boundary(request);
    case 'sum':
      return sum(request);
    case 'pick':
      picked = pick(request);
      return null;
    case 'more':
      return more();
  }
}

port.on('message', (request: FileRequest) => {
  answer(request).then(
    (value) => port.postMessage({ ok: true, value } satisfies FileReply),
    (error: unknown) => port.postMessage({ ok: false, error: toPlainError(error) } satisfies FileReply),
  );
});

loadSqlite(port);
