import { existsSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import Database from 'better-sqlite3';
import { expect, test } from 'vitest';
import { parseLsn } from '../../src/lsn.ts';
import { openReplica, type Replica } from '../../src/replica/replica.ts';
import { ITEMS, insertItem, TestReplicator, temporaryDirectory } from '../fanout/test-replicator.ts';
import { testRelation } from '../helpers/frames.ts';
import { waitUntil } from '../helpers/wait-until.ts';

const names = (db: Database.Database): unknown[] =>
  db
    .prepare(
      "SELECT name FROM sqlite_schema WHERE name IN ('labels', 'by_label', 'by_nothing') ORDER BY name",
    )
    .pluck()
    .all();

const LOCAL_SQL = `
  CREATE INDEX by_label ON items (label);
  CREATE INDEX by_nothing ON items (nothing_like_it);
  CREATE VIEW labels AS SELECT label FROM items;`;

test('the file has them before it is ready, and a new file before it takes the place of the old one', async () => {
  using dir = temporaryDirectory();
  await using replicator = await TestReplicator.start({ dir: dir.path });
  const lsn = replicator.commit(insertItem(1));
  await using replica = await openReplica({
    file: join(dir.path, 'app.db'),
    replicator: replicator.url,
    localSql: { text: LOCAL_SQL },
  });
  await replica.waitFor(lsn);
  expect(names(replica.db)).toEqual(['by_label', 'labels']);
  expect(replica.db.prepare('SELECT * FROM labels').pluck().all()).toEqual(['item 1']);
  const reason = 'the local index by_nothing is not there: no such column: nothing_like_it';
  expect(replica.status()).toMatchObject({
    isHealthy: true,
    reasons: [reason],
    missingLocalObjects: [{ type: 'index', name: 'by_nothing', reason: 'no such column: nothing_like_it' }],
  });
  const seen: unknown[] = [];
  replica.on('file', () => seen.push(names(replica.db)));
  await replicator.newEpoch('e2');
  await waitUntil('the new file', () => replica.epoch === 'e2');
  expect(seen).toEqual([['by_label', 'labels']]);
  const base = new Database(replicator.snapshotPath, { readonly: true });
  expect(names(base)).toEqual([]);
  base.close();
});

test('a script that changed counts from the next start', async () => {
  using dir = temporaryDirectory();
  await using replicator = await TestReplicator.start({ dir: dir.path });
  const [file, localSql] = [join(dir.path, 'app.db'), join(dir.path, 'local.sql')];
  const open = async (text: string | null): Promise<Replica> => {
    if (text !== null) writeFileSync(localSql, text);
    return openReplica({ file, replicator: replicator.url, ...(text === null ? {} : { localSql }) });
  };
  for (const [text, expected] of [
    ['CREATE VIEW labels AS SELECT 1;', ['labels']],
    ['CREATE INDEX by_label ON items (label);', ['by_label']],
    [null, []],
  ] as const) {
    await using replica = await open(text);
    expect(names(replica.db)).toEqual(expected);
    expect(replica.status().reasons).toEqual([]);
  }
});

test('the status tells what is being made while nothing is applied', async () => {
  using dir = temporaryDirectory();
  await using replicator = await TestReplicator.start({ dir: dir.path });
  await using replica = await openReplica({
    file: join(dir.path, 'app.db'),
    replicator: replicator.url,
    // Fails until there is such a column; then it takes its time.
    localSql: {
      text: `CREATE TABLE heavy (n INTEGER);
        INSERT INTO heavy WITH RECURSIVE c (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 400000)
          SELECT c.n FROM c, items WHERE items.note IS NULL;`,
    },
  });
  await replica.waitFor(replicator.commit(insertItem(1)));
  expect(replica.status().makingLocalObject).toBeNull();
  const noted = testRelation({
    oid: ITEMS.oid,
    name: ITEMS.name,
    columns: [
      { name: 'id', mapping: 'int', key: 1 },
      { name: 'label', mapping: 'text' },
      { name: 'note', mapping: 'text' },
    ],
  });
  const lsn = replicator.commit({ schema: { changed: [noted], dropped: [] } });
  await waitUntil('it is being made', () => replica.status().makingLocalObject !== null);
  const { makingLocalObject, reasons, position } = replica.status();
  expect(makingLocalObject).toEqual({ type: 'table', name: 'heavy', forMs: expect.any(Number) });
  expect(reasons).toContainEqual(
    expect.stringMatching(/^the local table heavy is being made, for \d+\.\d s so far/),
  );
  expect(parseLsn(position)).toBeLessThan(lsn);
  await replica.waitFor(lsn);
  expect(replica.status()).toMatchObject({ makingLocalObject: null, missingLocalObjects: [], reasons: [] });
  expect(replica.db.prepare('SELECT count(*) FROM heavy').pluck().get()).toBe(400_000);
});

test('a wrong script is refused before anything is opened', async () => {
  using dir = temporaryDirectory();
  const file = join(dir.path, 'app.db');
  const open = (localSql: string | { text: string }) =>
    openReplica({ file, replicator: 'http://127.0.0.1:9', localSql });
  await expect(open({ text: 'CREATE VIEW v AS SELECT 1;\nDROP TABLE items;' })).rejects.toMatchObject({
    code: 'CONFIG',
    message: 'localSql line 2: DROP is not allowed here',
  });
  await expect(open(join(dir.path, 'no.sql'))).rejects.toMatchObject({
    code: 'CONFIG',
    message: expect.stringContaining('ENOENT'),
  });
  expect(existsSync(file)).toBe(false);
  expect(readdirSync(dir.path)).toEqual([]);
});
