import type pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { parseLsn } from '../../src/lsn.ts';
import { identify, type SourceIdentity } from '../../src/source/catalog.ts';
import { connect } from '../../src/source/connection.ts';
import { enterEpoch } from '../../src/source/current-epoch.ts';
import { setup } from '../../src/source/setup.ts';
import { teardown } from '../../src/source/teardown.ts';
import { WalFlusher } from '../../src/source/wal-flusher.ts';
import { decodeToken, tokenLsn } from '../../src/token.ts';
import { startHotStandby } from '../helpers/hot-standby.ts';
import { MAJORS, startPostgres, type TestPostgres } from '../helpers/postgres.ts';

const EPOCH = '00112233445566aa';

describe.each(MAJORS)('rivulet_token() on Postgres %i', (major) => {
  let server: TestPostgres;
  let client: pg.Client;
  let identity: SourceIdentity;
  const names = (): { url: string; publication: string; slot: string; log(): void } => ({
    url: server.url,
    publication: 'rivulet',
    slot: 'rivulet',
    log: () => undefined,
  });

  beforeAll(async () => {
    // The WAL writer comes by too rarely to help: what is flushed, was flushed by us.
    server = await startPostgres({ major, settings: { wal_level: 'logical', wal_writer_delay: '10s' } });
    await server.sql("create table t (id int primary key); create role app login password 'app'");
    await setup(names());
    client = await server.client();
    identity = await identify(client);
  });
  afterAll(() => server?.close());

  const ask = async (sql = 'select rivulet_token() as token'): Promise<string> =>
    (await client.query(sql)).rows[0].token;

  it('knows no token before there is a history', async () => {
    await expect(ask()).rejects.toMatchObject({
      code: '55000',
      message: expect.stringContaining('no replicator'),
    });
    expect(await enterEpoch(client, { publication: 'rivulet', epoch: EPOCH, identity })).toBe(true);
    const [before] = await server.sql('select * from rivulet.epoch');
    expect(before).toMatchObject({ publication: 'rivulet', epoch: EPOCH, timeline: 1 });
    // Entered again by every connection of the replicator: nothing is written.
    expect(await enterEpoch(client, { publication: 'rivulet', epoch: EPOCH, identity })).toBe(true);
    expect(await server.sql('select * from rivulet.epoch')).toEqual([before]);
  });

  it('covers a commit that is not flushed, and the flush position alone would not', async () => {
    await client.query('set synchronous_commit = off');
    await client.query('insert into t values (1)');
    const token = decodeToken(await ask());
    const [{ flushed }] = (await client.query('select pg_current_wal_flush_lsn()::text as flushed')).rows;
    expect(token.epoch).toBe(EPOCH);
    expect(parseLsn(flushed)).toBeLessThan(token.lsn);
    const flusher = new WalFlusher(server.url);
    try {
      expect(await flusher.flush()).toBe(true);
      const [{ now }] = (await client.query('select pg_current_wal_flush_lsn()::text as now')).rows;
      expect(parseLsn(now)).toBeGreaterThanOrEqual(token.lsn);
    } finally {
      await flusher.close();
      await client.query('reset synchronous_commit');
    }
  });

  it('is refused inside a transaction that has written, and taken in one that has not', async () => {
    await client.query('begin; select 1');
    expect(await ask()).toMatch(/^1\./);
    await client.query('insert into t values (2)');
    await expect(ask()).rejects.toMatchObject({
      code: '25001',
      hint: expect.stringContaining('after COMMIT'),
    });
    await client.query('rollback');
    await expect(client.query('insert into t values (3); select rivulet_token()')).rejects.toMatchObject({
      code: '25001',
    });
    expect((await client.query('select from t where id > 1')).rowCount).toBe(0);
  });

  it('stands at the page boundary where the last record ends with its page', async () => {
    let boundaries = 0;
    for (let round = 0; round < 300 && boundaries < 2; round++) {
      // In one statement nothing comes in between: pad up to the end of the page, less a bit more each time.
      const { rows } = await client.query(
        `select pg_logical_emit_message(false, 'pad', repeat('x', greatest(0,
           8192 - ((pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint & 8191)::int - $1::int))), '' as token`,
        [round % 150],
      );
      expect(rows).toHaveLength(1);
      const both = await client.query(
        'select pg_current_wal_insert_lsn()::text as insert, rivulet_token() as token, pg_current_wal_insert_lsn()::text as after',
      );
      const { insert, token, after } = both.rows[0];
      if (insert !== after) continue;
      const { lsn } = decodeToken(token);
      expect(lsn).toBe(tokenLsn(parseLsn(insert)));
      if (lsn !== parseLsn(insert)) boundaries++;
    }
    expect(boundaries).toBeGreaterThan(0);
  });

  it('is everybody’s to ask for, and nothing else is', async () => {
    const url = new URL(server.url);
    url.username = url.password = 'app';
    const app = await connect(url.href, { applicationName: 'test' });
    try {
      await app.query('set search_path to default');
      expect((await app.query('select rivulet_token() as t')).rows[0].t).toMatch(/^1\.00112233445566aa\./);
      expect((await app.query("select rivulet.token('rivulet') as t")).rows[0].t).toMatch(/^1\./);
      await expect(app.query('delete from rivulet.epoch')).rejects.toMatchObject({ code: '42501' });
      await expect(app.query("select rivulet.published_schema('rivulet')")).rejects.toMatchObject({
        code: '42501',
      });
      await expect(enterEpoch(app, { publication: 'rivulet', epoch: 'f', identity })).rejects.toMatchObject({
        code: '42501',
      });
    } finally {
      await app.end();
    }
  });

  it('asks which, where there are several publications', async () => {
    await enterEpoch(client, { publication: 'other', epoch: 'aa', identity });
    expect(await ask()).toMatch(/^1\.00112233445566aa\./);
    expect(await ask("select rivulet.token('other') as token")).toMatch(/^1\.aa\./);
    await client.query("delete from rivulet.epoch where publication = 'rivulet'");
    expect(await ask()).toMatch(/^1\.aa\./);
    await expect(ask("select rivulet.token('rivulet') as token")).rejects.toThrow(/publication rivulet/);
    await client.query('delete from rivulet.epoch');
  });

  it('is not given by another server or timeline than the replicas were made from', async () => {
    for (const wrong of [{ timeline: 2 }, { systemIdentifier: '1' }]) {
      await enterEpoch(client, { publication: 'rivulet', epoch: EPOCH, identity: { ...identity, ...wrong } });
      await expect(ask()).rejects.toMatchObject({
        code: '55000',
        hint: expect.stringContaining('replicator'),
      });
    }
    await enterEpoch(client, { publication: 'rivulet', epoch: EPOCH, identity });
    expect(await ask()).toMatch(/^1\./);
  });

  it('is not given by a standby, which says where to ask', async () => {
    await using standby = await startHotStandby(server);
    await expect(standby.client.query('select rivulet_token()')).rejects.toMatchObject({
      code: '55000',
      message: expect.stringContaining('standby'),
      hint: expect.stringContaining('primary'),
    });
  });

  it('leaves a function of that name alone, and goes with the schema', async () => {
    const functions = `select from pg_proc where proname = 'rivulet_token'`;
    await teardown(names());
    expect(await server.sql(functions)).toEqual([]);
    await server.sql(`create function rivulet_token() returns int language sql return 7`);
    expect((await setup(names())).missing).toEqual([expect.stringContaining('use rivulet.token()')]);
    expect(await server.sql('select rivulet_token() as mine')).toEqual([{ mine: 7 }]);
    await teardown(names());
    expect(await server.sql('select rivulet_token() as mine')).toEqual([{ mine: 7 }]);
    await server.sql('drop function rivulet_token()');
    // As an application does that starts anew.
    await setup(names());
    await server.sql('drop schema public cascade; create schema public');
    const again = await setup(names());
    expect(again.did).toEqual([expect.stringContaining('006_token.sql')]);
    expect(again.missing).toEqual([]);
    expect(await server.sql(functions)).toHaveLength(1);
    expect((await setup(names())).did).toEqual([]);
    await teardown(names());
    // Without the function the replicator goes on, and says so.
    expect(await enterEpoch(client, { publication: 'rivulet', epoch: EPOCH, identity })).toBe(false);
  });
});
