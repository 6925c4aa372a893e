import { existsSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import Database from 'better-sqlite3';
import { expect, test } from 'vitest';
import { openReplica, type Replica } from '../../src/replica/replica.ts';
import { insertItem, TestReplicator, temporaryDirectory } from '../fanout/test-replicator.ts';
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
