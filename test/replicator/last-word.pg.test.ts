import pg from 'pg';
import { expect, test } from 'vitest';
import { TestCluster } from '../helpers/cluster.ts';
import { waitUntil } from '../helpers/wait-until.ts';

test('what ends the stream each time at once is said each time', async () => {
  await using cluster = await TestCluster.start();
  await cluster.postgres.sql(`create database odd encoding 'WIN1252' template template0 locale 'C'`);
  const url = new URL(cluster.postgres.url);
  url.pathname = '/odd';
  cluster.sourceUrl = url.href;
  const client = new pg.Client(url.href);
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
