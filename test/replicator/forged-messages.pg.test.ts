import pg from 'pg';
import { expect, test } from 'vitest';
import { TestCluster } from '../helpers/cluster.ts';
import { waitUntil } from '../helpers/wait-until.ts';

const FORGED: readonly (readonly [string, string])[] = [
  ['rivulet', '{"v":1,"publication":"rivulet","command":"x","touched":null,"relations":[]}'],
  ['rivulet', '{"v":1,"key":"guessed","publication":"rivulet","command":"x","touched":null,"relations":[]}'],
  ['rivulet', '{"v":1,"failed":"XX000"}'],
  ['rivulet', '{"v":1,"rewritten":1}'],
  ['rivulet', '{"v":2}'],
  ['rivulet', 'not json'],
  ['rivulet', ''],
  ['rivulet.reread', '{"publication":"rivulet","oids":[1]}'],
  ['rivulet.reread', 'not json'],
  ['rivulet.watermark', '0011223344556677'],
  ['rivulet.end', 'x'],
  ['rivulet', `{"v":1,"failed":"${'L'.repeat(300_000)}"}`],
  ['rivulet', `[${'1,'.repeat(100_000)}1]`],
  ['rivulet.watermark', 'x'.repeat(300_000)],
  ['p'.repeat(100_000), 'x'],
];

test('messages that anybody may write change nothing, and hold up nothing', async () => {
  await using cluster = await TestCluster.start();
  const { postgres } = cluster;
  await postgres.sql(`
    create table secret (id int primary key, name text);
    insert into secret select i, 'name ' || i from generate_series(1, 100) i;
    create role stranger login password 'stranger';
  `);
  await cluster.startReplicator();
  await cluster.startReplica('one');
  const url = new URL(postgres.url);
  url.username = url.password = 'stranger';
  const stranger = new pg.Client({ connectionString: url.href });
  await stranger.connect();
  try {
    await expect(stranger.query('select * from secret')).rejects.toThrow(/permission denied/);
    await expect(stranger.query('select * from rivulet.message_key')).rejects.toThrow(/permission denied/);
    await expect(stranger.query('select rivulet.read_message_key()')).rejects.toThrow(
      /for a replication user/,
    );
    for (const [prefix, text] of FORGED) {
      await stranger.query('select pg_logical_emit_message(true, $1, $2)', [prefix, text]);
      // Beside a change that the real hooks tell of, and rows of the new shape.
      await postgres.sql(`
        alter table secret add column c${FORGED.findIndex((each) => each[1] === text)}_${prefix.length} int default 7;
        insert into secret (id, name) select max(id) + 1, 'more' from secret;
      `);
      await cluster.caughtUp();
    }
  } finally {
    await stranger.end();
  }
  expect(await cluster.differences()).toEqual([]);
  await waitUntil('healthy', async () => (await fetch(`${cluster.replicatorUrl}/healthz`)).ok);
  const epochs = cluster.replicator!.stderr.match(/a new history begins/g) ?? [];
  expect(epochs.length).toBeLessThanOrEqual(1);
  expect(cluster.replicator!.stderr).toContain("has not got this set-up's key");
  expect(cluster.replicator!.stderr).not.toContain('PROTOCOL');
});
