import { EventEmitter, once } from 'node:events';
import pg from 'pg';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { trackWrites, type WriteTracker } from '../../src/read/track-writes.ts';
import type { Position } from '../../src/token.ts';
import { decodeToken } from '../../src/token.ts';
import { MAJORS } from '../helpers/postgres.ts';
import { waitUntil } from '../helpers/wait-until.ts';
import { type Mirror, startMirror } from './mirror.ts';

const SCHEMA = `
  create table t (id int primary key, v text);
  create unlogged table hits (id int);
  create sequence s;
  create function save(n int) returns int language sql as 'insert into t values (n) returning id';
  create view sneaky as select save(900);
  create function harmless(n int) returns int language sql immutable as 'select n';
  create procedure in_pieces(n int) language plpgsql as
    $$ begin insert into t values (n); commit; insert into t values (n + 1); raise 'enough'; end $$;
  create table parent (id int primary key);
  create table child (id int primary key, parent_id int references parent deferrable initially deferred);`;

/** As pg-cursor works: a portal that stays open over several round trips. */
class Cursor extends EventEmitter {
  readonly text: string;
  readonly rows: unknown[] = [];
  #connection: { execute(m: object): void; flush(): void; sync(): void } | null = null;
  constructor(text: string) {
    super();
    this.text = text;
  }
  submit(connection: pg.Connection): void {
    const c = connection as unknown as Record<string, (m?: object) => void>;
    this.#connection = connection as never;
    c.parse!({ text: this.text });
    c.bind!({ portal: 'C_1', values: [] });
    c.describe!({ type: 'P', name: 'C_1' });
    c.execute!({ portal: 'C_1', rows: 2 });
    c.flush!();
  }
  handleRowDescription(): void {}
  handleDataRow(message: { fields: unknown[] }): void {
    this.rows.push(message.fields[0]);
  }
  handlePortalSuspended(): void {
    this.#connection!.execute({ portal: 'C_1', rows: 2 });
    this.#connection!.flush();
  }
  handleCommandComplete(): void {
    this.#connection!.sync();
  }
  handleReadyForQuery(): void {
    this.emit('end');
  }
  handleError(error: Error): void {
    this.#connection!.sync();
    this.emit('error', error);
  }
}

describe.each(MAJORS)('tracking writes on Postgres %i', (major) => {
  let mirror: Mirror;
  let pool: pg.Pool;
  let tracker: WriteTracker;
  let roundTrips = 0;
  let nextId = 1;

  beforeAll(async () => {
    mirror = await startMirror(SCHEMA, { major, settings: { max_prepared_transactions: '5' } });
  });
  afterAll(() => mirror?.[Symbol.asyncDispose]());
  beforeEach(() => {
    pool = new pg.Pool({ connectionString: mirror.postgres.url, max: 3 });
    pool.on('error', () => undefined);
    tracker = trackWrites(pool);
    pool.on('connect', (client) => {
      (client as unknown as { connection: EventEmitter }).connection.on('readyForQuery', () => roundTrips++);
    });
  });
  afterEach(async () => {
    tracker.stop();
    await pool.end();
  });

  const id = (): number => nextId++;
  const inFile = (n: number): boolean =>
    mirror.replica.db.prepare('select 1 from t where id = ?').get(n) !== undefined;

  /** Runs it on a pool whose connection is there; says how many round trips it took. */
  async function collect(work: (pool: pg.Pool) => unknown): Promise<{ token: string | null; trips: number }> {
    await pool.query('select 1');
    roundTrips = 0;
    const { token, error } = await tracker.collect(async () => void (await work(pool)));
    expect(error).toBe(null);
    return { token, trips: roundTrips };
  }

  /** What was written is in the file once the file has the token, and the token costs one round trip. */
  async function expectWritten(
    n: number | null,
    work: (pool: pg.Pool) => unknown,
    trips: number,
  ): Promise<void> {
    const done = await collect(work);
    expect(done.token).not.toBe(null);
    expect(done.trips).toBe(trips);
    await mirror.replica.waitFor(done.token!, { timeoutMs: 5_000 });
    if (n !== null) expect(inFile(n)).toBe(true);
  }

  async function expectRead(work: (pool: pg.Pool) => unknown, trips: number): Promise<void> {
    const { token } = await collect(work);
    expect(token).toBe(null);
    // Of an error the caller hears before the server is ready again.
    await waitUntil('the server to be ready', () => roundTrips >= trips);
    expect(roundTrips).toBe(trips);
  }

  async function onClient(work: (client: pg.PoolClient) => Promise<unknown>): Promise<void> {
    const client = await pool.connect();
    try {
      await work(client);
    } finally {
      client.release();
    }
  }

  describe.each(['on', 'off'])('with synchronous_commit = %s', (mode) => {
    beforeEach(async () => {
      await mirror.postgres.sql(`alter role postgres set synchronous_commit = ${mode}`);
    });
    afterAll(() => mirror.postgres.sql('alter role postgres reset synchronous_commit'));

    it('statements outside a transaction: one more round trip', async () => {
      const [a, b, c, d, e] = [id(), id(), id(), id(), id()];
      await expectWritten(a, (p) => p.query(`insert into t values (${a})`), 2);
      await expectWritten(b, (p) => p.query('insert into t values ($1)', [b]), 2);
      await expectWritten(
        c,
        (p) => p.query({ name: 'ins', text: 'insert into t values ($1)', values: [c] }),
        2,
      );
      await expectWritten(d, (p) => p.query(`insert into t values (${d}); select 1`), 2);
      await expectWritten(
        e,
        (p) => new Promise((done) => p.query('insert into t values ($1)', [e], done)),
        2,
      );
      const [f, g] = [id(), id()];
      await expectWritten(
        f,
        (p) => p.query('with x as (insert into t values ($1) returning id) select * from x', [f]),
        2,
      );
      await expectWritten(
        g,
        (p) => p.query(`with x as (insert into t values (${g}) returning id) select * from x`),
        2,
      );
      await expectWritten(null, (p) => p.query('create table if not exists made as select 1 as id'), 2);
      await expectWritten(null, (p) => p.query('drop table made'), 2);
    });

    it('a function that writes, however it is called', async () => {
      const [a, b, c] = [id(), id(), id()];
      await expectWritten(a, (p) => p.query('select save($1)', [a]), 2);
      await expectWritten(b, (p) => p.query(`select save(${b}) -- a comment`), 2);
      await expectWritten(c, (p) => p.query(`select 1; select save(${c})`), 2);
    });

    it('transactions: one more round trip, whatever was in them', async () => {
      const [a, b, c] = [id(), id(), id()];
      await expectWritten(
        a,
        () =>
          onClient(async (client) => {
            await client.query('begin');
            await client.query('insert into t values ($1)', [a]);
            await client.query('commit');
          }),
        4,
      );
      await expectWritten(
        b,
        () =>
          onClient(async (client) => {
            await client.query('BEGIN');
            const { rows } = await client.query('select save($1) as saved', [b]);
            expect(rows).toEqual([{ saved: b }]);
            const committed = await client.query('COMMIT');
            expect(committed).toMatchObject({ command: 'COMMIT', rows: [] });
          }),
        4,
      );
      // The view hides it, the COMMIT does not.
      await mirror.postgres.sql('delete from t where id = 900');
      await expectWritten(
        900,
        () =>
          onClient(async (client) => {
            await client.query('begin');
            await client.query('select * from sneaky');
            await client.query('commit');
          }),
        4,
      );
      await expectWritten(
        c,
        () =>
          onClient(async (client) => {
            await client.query('begin');
            await client.query('savepoint a');
            await client.query('insert into t values ($1)', [id()]);
            await client.query('rollback to a');
            await client.query('insert into t values ($1)', [c]);
            await client.query('commit and chain');
            await client.query('select 1');
            await client.query('rollback');
          }),
        // The token had to wait for the end of the transaction behind.
        9,
      );
    });
  });

  it('reads take no round trip more, and give no token', async () => {
    await expectRead((p) => p.query('select * from t where id = $1', [1]), 1);
    await expectRead((p) => p.query('select count(*), max(id) from t'), 1);
    await expectRead((p) => p.query('show work_mem'), 1);
    await expectRead((p) => p.query("set statement_timeout = '1min'"), 1);
    // Could write, and does not.
    const answers: pg.QueryResult[] = [];
    await expectRead(async (p) => answers.push(await p.query('select harmless($1) as n', [7])), 1);
    await expectRead(async (p) => answers.push(await p.query('select harmless(7) as n;')), 1);
    await expectRead(
      async (p) => answers.push(await p.query({ text: 'select harmless(8)', rowMode: 'array' } as never)),
      1,
    );
    expect(
      answers.map(({ rows, rowCount, command, fields }) => [rows, rowCount, command, fields.length]),
    ).toEqual([
      [[{ n: 7 }], 1, 'SELECT', 1],
      [[{ n: 7 }], 1, 'SELECT', 1],
      [[[8]], 1, 'SELECT', 1],
    ]);
    await expectRead(
      () =>
        onClient(async (client) => {
          await client.query('begin read only');
          await client.query('select harmless(1), * from t');
          expect(await client.query('commit')).toMatchObject({ command: 'COMMIT' });
        }),
      3,
    );
    // Nothing was updated, so nothing is there to wait for.
    await expectRead(
      () =>
        onClient(async (client) => {
          await client.query('begin');
          await client.query('update t set v = 1 where id = -1');
          await client.query('commit');
        }),
      3,
    );
  });

  it('errors and rollbacks give none', async () => {
    const a = id();
    await expectRead((p) => p.query('insert into t values (900)').catch(() => undefined), 1);
    await expectRead((p) => p.query(`insert into t values (${a}); select 1 / 0`).catch(() => undefined), 1);
    await expectRead((p) => p.query('select save($1)', [900]).catch(() => undefined), 1);
    await expectRead((p) => p.query('select save(900)').catch(() => undefined), 1);
    await expectRead((p) => p.query('begin; insert into t values (-5); rollback'), 1);
    await expectRead(
      () =>
        onClient(async (client) => {
          await client.query('begin');
          await client.query('insert into t values ($1)', [a]);
          await client.query('rollback');
        }),
      3,
    );
    // A COMMIT that turns out to be a ROLLBACK.
    await expectRead(
      () =>
        onClient(async (client) => {
          await client.query('begin');
          await client.query('insert into t values ($1)', [a]);
          await client.query('select 1 / 0').catch(() => undefined);
          expect(await client.query('commit')).toMatchObject({ command: 'ROLLBACK' });
        }),
      4,
    );
    // One that fails itself.
    await expectRead(
      () =>
        onClient(async (client) => {
          await client.query('begin');
          await client.query('insert into child values (1, 77)');
          await expect(client.query('commit')).rejects.toMatchObject({ code: '23503' });
        }),
      3,
    );
    const failure = await pool.query('select 1 / 0').catch((error: Error) => error);
    expect((failure as Error).stack).toContain('track-writes.pg.test.ts');
    await expect(pool.query({ text: 'select 1', values: 'no array' } as never)).rejects.toThrow(/array/);
    const b = id();
    await expectWritten(b, (p) => p.query('insert into t values ($1)', [b]), 2);
  });

  it('a procedure that committed before it failed is not forgotten', async () => {
    const a = id();
    id();
    const { token } = await collect((p) => p.query(`call in_pieces(${a})`).catch(() => undefined));
    await mirror.replica.waitFor(token!, { timeoutMs: 5_000 });
    expect([inFile(a), inFile(a + 1)]).toEqual([true, false]);
  });

  it('cursors, queries as objects, and several at once without waiting', async () => {
    const a = id();
    const { token } = await collect(() =>
      onClient(async (client) => {
        const cursor = client.query(
          new Cursor(`insert into t select n from generate_series(${a}, ${a + 4}) n returning id`) as never,
        ) as unknown as Cursor;
        await once(cursor, 'end');
        expect(cursor.rows).toHaveLength(5);
      }),
    );
    nextId += 4;
    await mirror.replica.waitFor(token!, { timeoutMs: 5_000 });
    expect(inFile(a + 4)).toBe(true);
    const b = id();
    const query = new pg.Query(`insert into t values (${b}) returning id`);
    const rows: unknown[] = [];
    query.on('row', (row: unknown) => rows.push(row));
    await expectWritten(b, () => onClient(async (client) => once(client.query(query) as never, 'end')), 2);
    expect(rows).toEqual([{ id: b }]);
    const [c, d, e] = [id(), id(), id()];
    const several = await collect(() =>
      onClient(async (client) => {
        await Promise.all([
          client.query('insert into t values ($1)', [c]),
          client.query('begin'),
          client.query('insert into t values ($1)', [d]),
          client.query('select 1'),
          client.query('commit'),
          client.query('insert into t values ($1)', [e]),
        ]);
      }),
    );
    await mirror.replica.waitFor(several.token!, { timeoutMs: 5_000 });
    expect([c, d, e].map(inFile)).toEqual([true, true, true]);
  });

  it('pipelines, two-phase commits and a plain client', async () => {
    const [a, b, c] = [id(), id(), id()];
    const client = new pg.Client({
      connectionString: mirror.postgres.url,
      pipeline: true,
    } as pg.ClientConfig);
    const own = trackWrites(client);
    await client.connect();
    const done = await own.collect(async () => {
      await Promise.all([
        client.query('select 1'),
        client.query('insert into t values ($1)', [a]),
        client.query('select save($1)', [b]),
        client.query('begin'),
        client.query('select save($1)', [c]),
        client.query('commit'),
      ]);
    });
    await mirror.replica.waitFor(done.token!, { timeoutMs: 5_000 });
    expect([a, b, c].map(inFile)).toEqual([true, true, true]);
    await client.end();
    const d = id();
    await expectRead(
      () =>
        onClient(async (one) => {
          await one.query('begin');
          await one.query('insert into t values ($1)', [d]);
          await one.query(`prepare transaction 'two'`);
        }),
      3,
    );
    await expectWritten(d, (p) => p.query(`commit prepared 'two'`), 2);
  });

  it('a token is of the work that wrote, also when connections are scarce', async () => {
    const ids = Array.from({ length: 40 }, id);
    const done = await Promise.all(
      ids.map(async (n) => {
        const isWriter = n % 2 === 0;
        return {
          isWriter,
          ...(await tracker.collect(() =>
            isWriter
              ? new Promise((resolve) => pool.query('insert into t values ($1)', [n], resolve))
              : pool.query('select * from t where id = $1', [n]),
          )),
        };
      }),
    );
    for (const { isWriter, token } of done) expect(token !== null).toBe(isWriter);
    // Work inside work: the inner token is the inner one's.
    const n = id();
    const outer = await tracker.collect(() =>
      tracker.collect(() => pool.query('insert into t values ($1)', [n])),
    );
    expect(outer.token).toBe(null);
    expect(outer.result.token).toMatch(/^1\./);
  });

  it('a connection that ends before its token: another one is asked', async () => {
    const n = id();
    const query = new pg.Query(`insert into t values (${n})`);
    const { token } = await collect(async () => {
      const client = await pool.connect();
      const end = once(query, 'end');
      client.query(query);
      await end;
      client.release(true);
    });
    await mirror.replica.waitFor(token!, { timeoutMs: 5_000 });
    expect(inFile(n)).toBe(true);
  });

  it('what nobody can notice is said with markWrite()', async () => {
    await mirror.postgres.sql('delete from t where id = 900');
    await expectRead((p) => p.query('select * from sneaky'), 1);
    const { token } = await collect(() => tracker.markWrite());
    await mirror.replica.waitFor(token!, { timeoutMs: 5_000 });
    expect(inFile(900)).toBe(true);
    expect(() => tracker.markWrite()).toThrow(expect.objectContaining({ code: 'CONFIG' }));
    expect(decodeToken(tracker.lastToken!).epoch).toBe(mirror.replica.epoch);
  });

  it('a pool that was in use before, tracked twice, and no longer', async () => {
    const used = new pg.Pool({ connectionString: mirror.postgres.url, max: 1 });
    await used.query('select 1');
    const late = trackWrites(used);
    expect(trackWrites(used)).toBe(late);
    const n = id();
    const { token } = await late.collect(() => used.query('insert into t values ($1)', [n]));
    expect(token).not.toBe(null);
    late.stop();
    expect((await late.collect(() => used.query('delete from t where id = $1', [n]))).token).toBe(null);
    await used.end();
    expect(() => trackWrites({})).toThrow(expect.objectContaining({ code: 'CONFIG' }));
  });

  it('says why there is no token, and the write stands', async () => {
    const position: Position = decodeToken(
      (await collect((p) => p.query('delete from t where id = 900'))).token!,
    );
    await mirror.postgres.sql(`update rivulet.epoch set timeline = 99`);
    try {
      const errors: string[] = [];
      tracker.stop();
      tracker = trackWrites(pool, { onError: (error) => errors.push(error.message) });
      const n = id();
      const done = await tracker.collect(() => pool.query('insert into t values ($1)', [n]));
      expect(done.token).toBe(null);
      expect(done.error).toMatchObject({
        code: 'TOKEN_UNAVAILABLE',
        hint: expect.stringContaining('replicator'),
      });
      expect(errors).toHaveLength(1);
      await expect(tracker.take()).rejects.toMatchObject({ code: 'TOKEN_UNAVAILABLE' });
    } finally {
      await mirror.postgres.sql(`update rivulet.epoch set timeline = 1`);
    }
    expect((await tracker.take()).lsn).toBeGreaterThan(position.lsn);
  });
});
