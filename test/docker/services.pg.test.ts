import { randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { compareWithPostgres } from '../../src/cli/demo/compare.ts';
import { loadDataSet } from '../../src/cli/demo/data-set.ts';
import { Workload } from '../../src/cli/demo/workload.ts';
import { startPostgres } from '../helpers/postgres.ts';
import { rivulet, runRivulet } from '../helpers/processes.ts';
import { waitUntil } from '../helpers/wait-until.ts';

/**
 * The whole way on the server that RIVULET_TEST_POSTGRES names (docker-compose.yml offers one), in a database
 * and with a slot of the test's own; on an embedded server where it names none.
 */
const name = `rivulet_test_${randomBytes(4).toString('hex')}`;
const options = ['--slot', name, '--publication', name];

let dir = '';
let url = '';
let admin: pg.Client;
let closeServer: () => Promise<void> = async () => undefined;

beforeAll(async () => {
  dir = mkdtempSync(join(tmpdir(), 'rivulet-services-'));
  let server = process.env.RIVULET_TEST_POSTGRES;
  if (server === undefined || server === '') {
    const embedded = await startPostgres();
    closeServer = () => embedded.close();
    server = embedded.url;
  }
  admin = new pg.Client({ connectionString: server });
  await admin.connect();
  await admin.query(`create database ${name}`);
  const own = new URL(server);
  own.pathname = `/${name}`;
  url = own.href;
});
afterAll(async () => {
  await runRivulet(['teardown', '--postgres', url, ...options]);
  await admin?.query(`drop database if exists ${name} with (force)`);
  await admin?.end();
  await closeServer();
  rmSync(dir, { recursive: true, force: true });
});

test('real data under live writes is equal on a replica, and teardown leaves nothing', async () => {
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  const data = await loadDataSet(client, () => undefined, new AbortController().signal);
  await using replicator = rivulet(['replicator', '--data', join(dir, 'data'), '--listen', '0', ...options], {
    RIVULET_POSTGRES: url,
  });
  const address = await replicator.ready;
  const workload = new Workload(url, data.cityIds);
  await workload.start();
  const file = join(dir, 'replica.db');
  await using replica = rivulet(['replica', '--file', file, '--replicator', address]);
  await replica.ready;
  await waitUntil('some writes', () => workload.transactions > 300);
  await workload.stop();
  const { rows } = await client.query<{ lsn: string }>('select pg_current_wal_lsn()::text as lsn');
  expect(await runRivulet(['wait', '--file', file, '--lsn', rows[0]!.lsn])).toMatchObject({ code: 0 });
  const [result] = await compareWithPostgres(url, [file], () => undefined);
  expect(result?.differences).toEqual([]);
  expect(result?.rows).toBeGreaterThan(135_000);
  expect(await replica.kill('SIGTERM')).toBe(0);
  expect(await replicator.kill('SIGTERM')).toBe(0);
  expect(await runRivulet(['teardown', '--postgres', url, ...options])).toMatchObject({ code: 0 });
  const left = await client.query(
    `select 'slot' as what from pg_replication_slots where slot_name = $1
      union all select 'publication' from pg_publication
      union all select 'schema' from pg_namespace where nspname = 'rivulet'
      union all select 'event trigger' from pg_event_trigger`,
    [name],
  );
  expect(left.rows).toEqual([]);
  await client.end();
});
