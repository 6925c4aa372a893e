import pg from 'pg';
import { expect, test } from 'vitest';
import { TestCluster } from '../helpers/cluster.ts';
import { waitUntil } from '../helpers/wait-until.ts';

test('what ends the stream each time at once is said each time', async () => {
  await using cluster = await TestCluster.start();
  const url = await cluster.useDatabase('WIN1252');
  const client = new pg.Client(url);
  await client.connect();
  try {
    await client.query('create table t (id int primary key, v text)');
    const replicator = await cluster.startReplicator();
    // Postgres stores this character, and has no equivalent of it in UTF-8.
    await client.query('insert into t values (1, chr(129))');
    const reasons = (): string[] =>
      replicator.stderr
        .split('\n')
        .filter((line) => line.includes('POSTGRES_'))
        .map((line) => JSON.parse(line).reason ?? line);
    await waitUntil('several attempts', () => reasons().length >= 3);
    for (const reason of reasons()) expect(reason).toContain('0x81');
  } finally {
    await client.end();
  }
});
