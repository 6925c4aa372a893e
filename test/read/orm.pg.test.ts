import type Database from 'better-sqlite3';
import { eq } from 'drizzle-orm';
import { drizzle as drizzleSqlite } from 'drizzle-orm/better-sqlite3';
import { drizzle as drizzlePg } from 'drizzle-orm/node-postgres';
import { integer as pgInteger, pgTable, text as pgText } from 'drizzle-orm/pg-core';
import { integer, sqliteTable, text } from 'drizzle-orm/sqlite-core';
import { Kysely, PostgresDialect, SqliteDialect } from 'kysely';
import pg from 'pg';
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest';
import { readPolicy } from '../../src/read/read-policy.ts';
import { trackWrites, type WriteTracker } from '../../src/read/track-writes.ts';
import { type Mirror, startMirror } from './mirror.ts';

let mirror: Mirror;
let pool: pg.Pool;
let tracker: WriteTracker;

beforeAll(async () => {
  mirror = await startMirror('create table users (id int primary key, name text not null)', {
    settings: { synchronous_commit: 'off' },
  });
});
afterAll(() => mirror?.[Symbol.asyncDispose]());
beforeEach(() => {
  pool = new pg.Pool({ connectionString: mirror.postgres.url, max: 2 });
  tracker = trackWrites(pool);
});
afterEach(async () => {
  if (!pool.ended) await pool.end();
});

interface Tables {
  users: { id: number; name: string };
}

test('Kysely writes to Postgres and reads from SQLite', async () => {
  const postgres = new Kysely<Tables>({ dialect: new PostgresDialect({ pool }) });
  // The file may be another one after a new bootstrap, so the reading Kysely is made where it is used.
  const sqlite = (database: Database.Database): Kysely<Tables> =>
    new Kysely<Tables>({ dialect: new SqliteDialect({ database }) });

  const one = await tracker.collect(() =>
    postgres.insertInto('users').values({ id: 1, name: 'Ada' }).returning('id').executeTakeFirstOrThrow(),
  );
  expect(one.result).toEqual({ id: 1 });
  await mirror.replica.waitFor(one.token!, { timeoutMs: 5_000 });
  const found = await sqlite(mirror.replica.db).selectFrom('users').selectAll().where('id', '=', 1).execute();
  expect(found).toEqual([{ id: 1, name: 'Ada' }]);

  const two = await tracker.collect(() =>
    postgres.transaction().execute(async (transaction) => {
      await transaction.updateTable('users').set({ name: 'Ada L.' }).where('id', '=', 1).execute();
      await transaction.insertInto('users').values({ id: 2, name: 'Grace' }).execute();
    }),
  );
  await mirror.replica.waitFor(two.token!, { timeoutMs: 5_000 });
  const names = await sqlite(mirror.replica.db).selectFrom('users').select('name').orderBy('id').execute();
  expect(names).toEqual([{ name: 'Ada L.' }, { name: 'Grace' }]);

  const none = await tracker.collect(async () => {
    await postgres
      .selectFrom('users')
      .select(({ fn }) => fn.countAll().as('count'))
      .execute();
    await postgres
      .transaction()
      .execute(async (transaction) => {
        await transaction.deleteFrom('users').execute();
        throw new Error('no');
      })
      .catch(() => undefined);
  });
  expect(none.token).toBe(null);
  await postgres.destroy();
});

test('Drizzle writes to Postgres and reads from SQLite', async () => {
  const users = pgTable('users', { id: pgInteger().primaryKey(), name: pgText().notNull() });
  const copies = sqliteTable('users', { id: integer().primaryKey(), name: text().notNull() });
  const postgres = drizzlePg({ client: pool });
  const reads = readPolicy(mirror.replica, { waitMs: 5_000 });
  const names = async (token: string | null, id: number): Promise<unknown> => {
    await mirror.replica.waitFor(token!, { timeoutMs: 5_000 });
    const { value } = await reads.read({
      replica: (client) => drizzleSqlite({ client }).select().from(copies).where(eq(copies.id, id)).all(),
    });
    return value;
  };

  const one = await tracker.collect(() => postgres.insert(users).values({ id: 11, name: 'Ada' }).returning());
  expect(one.result).toEqual([{ id: 11, name: 'Ada' }]);
  expect(await names(one.token, 11)).toEqual([{ id: 11, name: 'Ada' }]);

  const two = await tracker.collect(() =>
    postgres.transaction(async (transaction) => {
      await transaction.update(users).set({ name: 'Ada L.' }).where(eq(users.id, 11));
      await transaction.transaction(async (nested) => {
        await nested.insert(users).values({ id: 12, name: 'Grace' });
      });
    }),
  );
  expect(await names(two.token, 11)).toEqual([{ id: 11, name: 'Ada L.' }]);
  expect(await names(two.token, 12)).toEqual([{ id: 12, name: 'Grace' }]);

  const none = await tracker.collect(async () => {
    await postgres.select().from(users).where(eq(users.id, 11));
    await postgres.transaction(async (transaction) => transaction.select().from(users));
    await postgres
      .transaction(async (transaction) => {
        await transaction.delete(users);
        transaction.rollback();
      })
      .catch(() => undefined);
  });
  expect(none.token).toBe(null);
});
