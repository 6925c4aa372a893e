import Database from 'better-sqlite3';
import { formatLsn } from '../../../src/lsn.ts';
import { createReplicaSchema } from '../../../src/replica/schema.ts';
import { ManifestWriter } from '../../../src/snapshot/manifest-writer.ts';
import { type SnapshotReport, SnapshotWriter } from '../../../src/snapshot/snapshot-writer.ts';
import type { ObjectStore } from '../../../src/store/object-store.ts';
import { testRelation } from '../../helpers/frames.ts';

export const LARGE_EPOCH = 'bench';
export const LARGE_POSITION = 0x1000n;

const SOURCE = { systemIdentifier: '7000', database: 'bench' };

const ORDERS = testRelation({
  oid: 700,
  name: 'orders',
  columns: [
    { name: 'id', mapping: 'int', key: 1 },
    { name: 'customer', mapping: 'int' },
    { name: 'reference', mapping: 'text' },
    { name: 'placed_at', mapping: 'text' },
    { name: 'note', mapping: 'text' },
  ],
});

/** Keys in order, some numbers, random references, a time, words: it shrinks to less than half, as such tables do. */
const INSERT_SQL = `
  WITH RECURSIVE counter(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM counter WHERE id < ?)
  INSERT INTO orders
  SELECT id, abs(random()) % 100000, lower(hex(randomblob(16))),
         strftime('%Y-%m-%d %H:%M:%S.000000Z', 1790000000 + id * 7, 'unixepoch'),
         'order ' || id || ' of ' || abs(random()) % 50 || ' parcels, to be left at the ' ||
           CASE abs(random()) % 4 WHEN 0 THEN 'door' WHEN 1 THEN 'neighbour' WHEN 2 THEN 'shop' ELSE 'office' END ||
           ', paid by card, reference on request ' || lower(hex(randomblob(24)))
  FROM counter`;

/** The same rows under other keys: what repeats is far beyond what a chunk's compression sees. */
const REPEAT_SQL = `
  INSERT INTO orders
  SELECT id + :offset, abs(random()) % 100000, reference, placed_at, note FROM orders WHERE id <= :rows`;

const ROWS_AT_ONCE = 100_000;

/** A replica file of about this size, without a WAL. */
export function makeLargeReplica(file: string, bytes: number): void {
  const db = new Database(file);
  db.pragma('journal_mode = OFF');
  db.pragma('synchronous = OFF');
  createReplicaSchema(db, [ORDERS], {
    epoch: LARGE_EPOCH,
    position: LARGE_POSITION,
    commitTimeUs: null,
    systemIdentifier: SOURCE.systemIdentifier,
    databaseName: SOURCE.database,
  });
  const rows = Math.min(ROWS_AT_ONCE, Math.ceil(bytes / 1000));
  db.prepare(INSERT_SQL).run(rows);
  const repeat = db.prepare(REPEAT_SQL);
  const size = (): number =>
    (db.pragma('page_count', { simple: true }) as number) *
    (db.pragma('page_size', { simple: true }) as number);
  for (let offset = rows; size() < bytes; offset += rows) repeat.run({ offset, rows });
  db.pragma('journal_mode = WAL');
  db.close();
}

/** Changes the rows of one region of the table, about so much of the file. */
export function touchRegion(file: string, share: number, position: bigint): void {
  const db = new Database(file);
  const rows = db.prepare('SELECT max(id) FROM orders').pluck().get() as number;
  const from = Math.trunc(rows / 3);
  db.prepare('UPDATE orders SET customer = abs(random()) % 100000 WHERE id BETWEEN ? AND ?').run(
    from,
    from + Math.trunc(rows * share),
  );
  const lsn = formatLsn(position);
  db.prepare('UPDATE _rivulet_position SET lsn = ?, lsn_int = ?, applied_lsn = ?').run(lsn, position, lsn);
  db.pragma('wal_checkpoint(TRUNCATE)');
  db.close();
}

/** Takes snapshots of such a file as a replicator does, and names it as all that there is. */
export async function snapshotter(
  store: ObjectStore,
): Promise<(file: string, position: bigint) => Promise<SnapshotReport>> {
  const manifest = new ManifestWriter({ store, source: SOURCE, onWarning: () => undefined });
  await manifest.takeOver();
  const writer = new SnapshotWriter({ store, manifest });
  return async (file, position) => {
    const report = await writer.take({ file, epoch: LARGE_EPOCH, position });
    await manifest.update((before) => ({
      ...before,
      archived: { epoch: LARGE_EPOCH, position, at: new Date().toISOString() },
    }));
    return report;
  };
}
