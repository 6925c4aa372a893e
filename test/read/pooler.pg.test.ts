import pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { trackWrites } from '../../src/read/track-writes.ts';
import { hasPgBouncer, type PgBouncer, startPgBouncer } from '../helpers/pgbouncer.ts';
import { type Mirror, startMirror } from './mirror.ts';

const CLIENTS = 6;
const SERVER_CONNECTIONS = 2;
const WRITES_PER_CLIENT = 20;

// The registry has no pooler: `apt-get install pgbouncer`.
const testPooler = test.skipIf(!hasPgBouncer);

let mirror: Mirror;
let pooler: PgBouncer;
let pool: pg.Pool;

beforeAll(async () => {
  if (!hasPgBouncer) return;
  mirror = await startMirror('create table t (id int primary key, client int)', {
    settings: { synchronous_commit: 'off', wal_writer_delay: '200ms' },
  });
  pooler = await startPgBouncer(mirror.postgres.url, SERVER_CONNECTIONS);
  pool = new pg.Pool({ connectionString: pooler.url, max: CLIENTS });
});
afterAll(async () => {
  await pool?.end();
  await pooler?.[Symbol.asyncDispose]();
  await mirror?.[Symbol.asyncDispose]();
});

testPooler(
  'through a pooler in transaction mode every commit has a token, and the file what it says',
  async () => {
    const tracker = trackWrites(pool);
    const servers = new Set<number>();
    const isThere = (id: number): unknown =>
      mirror.replica.db.prepare('select client from t where id = ?').pluck().get(id);

    async function writeAndRead(client: number): Promise<void> {
      for (let round = 0; round < WRITES_PER_CLIENT; round++) {
        const id = client * 1000 + round;
        const { token } = await tracker.collect(async () => {
          // One statement by itself, and then a transaction on one check-out.
          if (round % 2 === 0) return pool.query('insert into t values ($1, $2)', [id, client]);
          const connection = await pool.connect();
          try {
            await connection.query('begin');
            const { rows } = await connection.query('select pg_backend_pid() as pid');
            servers.add(rows[0].pid);
            await connection.query('insert into t values ($1, $2)', [id, client]);
            return await connection.query('commit');
          } finally {
            connection.release();
          }
        });
        await mirror.replica.waitFor(token!, { timeoutMs: 20_000 });
        expect(isThere(id)).toBe(client);
      }
    }

    await Promise.all(Array.from({ length: CLIENTS }, (_, index) => writeAndRead(index + 1)));
    // More clients than connections, or nothing was shared.
    expect(servers.size).toBe(SERVER_CONNECTIONS);
  },
);

testPooler('through a pooler neither reads nor what was rolled back have a token', async () => {
  const tracker = trackWrites(pool);
  expect((await tracker.collect(() => pool.query('select count(*) from t'))).token).toBeNull();
  const rolledBack = await tracker.collect(async () => {
    const connection = await pool.connect();
    try {
      await connection.query('begin');
      await connection.query('insert into t values (-1, 0)');
      await connection.query('rollback');
    } finally {
      connection.release();
    }
  });
  expect(rolledBack.token).toBeNull();
  const failed = tracker.collect(() => pool.query('insert into t values (1000, 0), (1000, 0)'));
  await expect(failed).rejects.toThrow('duplicate key');
});
