import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import pg from 'pg';
import { openReader, type Reader } from '../../../src/read/reader.ts';
import { trackWrites, type WriteTracker } from '../../../src/read/track-writes.ts';
import { openReplica, type Replica } from '../../../src/replica/replica.ts';
import { type HotStandby, startHotStandby } from '../../helpers/hot-standby.ts';
import type { BenchCase, BenchContext, Sample } from '../bench-case.ts';
import { type BenchServer, startBenchServer } from '../bench-server.ts';
import { commitAtRate, createPacedTables } from '../load/paced-commits.ts';
import { monotonicMs } from '../monotonic-clock.ts';
import { percentile } from '../statistics.ts';
import { type RunningSystem, replicatorAndReplica } from '../system.ts';

/** Writes of others beside the measured one. */
const BUSY_PER_SECOND = 500;
const SESSIONS = 4;
/** Between one write and the next, so that a quiet server is quiet again. */
const PAUSE_MS = 15;
/** An app that polls its standby more often than this mostly keeps it busy. */
const STANDBY_POLL_MS = 1;

const INSERT = { name: 'insert', text: 'insert into ryw values ($1)' };

interface Parts {
  readonly server: BenchServer;
  readonly running: RunningSystem;
  readonly standby: HotStandby;
  readonly replica: Replica;
  readonly reader: Reader;
  readonly pool: pg.Pool;
  readonly tracker: WriteTracker;
  /** Not tracked. */
  readonly plain: pg.Client;
}

export const readYourWrites: BenchCase = {
  name: 'read-your-writes',
  title:
    'a row that was just written, read on another node: from COMMIT returned to read there, the token included; a hot standby polled beside it',
  async prepare(context) {
    const server = await startBenchServer(context.postgresMajor);
    const stack = new AsyncDisposableStack();
    stack.use(server);
    try {
      await createPacedTables(server, SESSIONS);
      await server.sql.query('create table ryw (id int primary key)');
      const system = replicatorAndReplica({
        program: context.program,
        url: server.url,
        slot: 'bench_ryw',
        directory: join(context.directory, 'ryw'),
        profile: context.profile,
      });
      const running = stack.use(await system.start());
      await running.reached(await server.markWalEnd());
      const standby = stack.use(await startHotStandby(server));
      const replica = stack.use(
        await openReplica({ file: join(context.directory, 'app.db'), replicator: running.replicatorUrl! }),
      );
      const reader = stack.use(openReader({ file: system.file }));
      const pool = new pg.Pool({ connectionString: server.url, max: 1 });
      stack.defer(() => pool.end());
      const plain = new pg.Client({ connectionString: server.url });
      await plain.connect();
      stack.defer(() => plain.end());
      const parts = { server, running, standby, replica, reader, pool, plain, tracker: trackWrites(pool) };
      let nextId = 1;
      return {
        run: () => runRepetition(context, parts, () => nextId++),
        [Symbol.asyncDispose]: () => stack.disposeAsync(),
      };
    } catch (error) {
      await stack.disposeAsync();
      throw error;
    }
  },
};

async function runRepetition(context: BenchContext, parts: Parts, nextId: () => number): Promise<Sample[]> {
  const samples: Sample[] = [];
  const seconds = Math.max(1, context.sizes.lagSeconds / 3);
  for (const mode of ['on', 'off']) {
    await parts.server.sql.query(`alter system set synchronous_commit = ${mode}`);
    await parts.server.sql.query('select pg_reload_conf()');
    for (const perSecond of [0, BUSY_PER_SECOND]) {
      const name = `synchronous_commit ${mode}, ${perSecond === 0 ? 'idle' : `${perSecond} writes/s`}`;
      context.say(name);
      const load =
        perSecond === 0
          ? Promise.resolve()
          : commitAtRate({ url: parts.server.url, perSecond, seconds, sessions: SESSIONS });
      samples.push(...(await measureReads(name, parts, seconds, nextId)));
      await load;
    }
  }
  await parts.server.sql.query('alter system reset synchronous_commit');
  await parts.server.sql.query('select pg_reload_conf()');
  samples.push(...(await measureToken(parts)));
  return samples;
}

type Way = (id: number) => Promise<number>;

/** The three ways in turn, so that all meet the same server. */
async function measureReads(
  name: string,
  parts: Parts,
  seconds: number,
  nextId: () => number,
): Promise<Sample[]> {
  const ways: Record<string, Way> = {
    'hot standby, polled': (id) => viaStandby(parts, id),
    'replica in the app': (id) => viaFile(parts, parts.replica, id),
    'file of another process': (id) => viaFile(parts, parts.reader, id),
  };
  const times = new Map(Object.keys(ways).map((way) => [way, [] as number[]]));
  const endMs = monotonicMs() + seconds * 1000;
  while (monotonicMs() < endMs) {
    for (const [way, read] of Object.entries(ways)) {
      await delay(PAUSE_MS);
      times.get(way)!.push(await read(nextId()));
    }
  }
  return [...times].flatMap(([way, ms]) =>
    [0.5, 0.99].map((share) => ({
      metric: `${name}: ${way}, p${share * 100}`,
      unit: 'ms' as const,
      value: percentile(ms, share),
      ...(way === 'hot standby, polled' ? {} : { limit: `${name}: hot standby, polled, p${share * 100}` }),
    })),
  );
}

/** The token is taken by trackWrites(), the row read from the file once it has the token. */
async function viaFile({ tracker, pool }: Parts, source: Replica | Reader, id: number): Promise<number> {
  const committed = await committedAt(pool, id);
  const token = tracker.lastToken!;
  await source.waitFor(token, { timeoutMs: 10_000 });
  if (source.db.prepare('select 1 from ryw where id = ?').get(id) === undefined)
    throw new Error('the file has the token, and not the row');
  return monotonicMs() - committed;
}

/** As apps do it without us: the WAL position after COMMIT, and the standby asked until it has replayed it. */
async function viaStandby({ plain, standby }: Parts, id: number): Promise<number> {
  await plain.query({ ...INSERT, values: [id] });
  const committed = monotonicMs();
  const { rows } = await plain.query('select pg_current_wal_insert_lsn()::text as lsn');
  for (;;) {
    const { rows: replayed } = await standby.client.query({
      name: 'replayed',
      text: 'select pg_last_wal_replay_lsn() >= $1::pg_lsn as here',
      values: [rows[0].lsn],
    });
    if (replayed[0].here) break;
    await delay(STANDBY_POLL_MS);
  }
  const found = await standby.client.query({
    name: 'read',
    text: 'select from ryw where id = $1',
    values: [id],
  });
  if (found.rowCount !== 1) throw new Error('the standby has replayed the position, and not the row');
  return monotonicMs() - committed;
}

/** When the commit itself was answered: trackWrites() answers its caller a round trip later. */
async function committedAt(pool: pg.Pool, id: number): Promise<number> {
  const client = await pool.connect();
  let committed = 0;
  const { connection } = client as unknown as { connection: NodeJS.EventEmitter };
  const onComplete = (): void => {
    if (committed === 0) committed = monotonicMs();
  };
  connection.on('commandComplete', onComplete);
  try {
    await client.query({ ...INSERT, values: [id] });
  } finally {
    connection.off('commandComplete', onComplete);
    client.release();
  }
  return committed;
}

async function measureToken({ plain }: Parts): Promise<Sample[]> {
  const statements = { 'a bare select 1': 'select 1', 'the token': 'select rivulet_token()' };
  const samples: Sample[] = [];
  const times = new Map(Object.keys(statements).map((name) => [name, [] as number[]]));
  for (let round = 0; round < 3000; round++) {
    for (const [name, sql] of Object.entries(statements)) {
      const startedMs = monotonicMs();
      await plain.query(sql);
      times.get(name)!.push(monotonicMs() - startedMs);
    }
  }
  for (const [name, ms] of times) {
    for (const share of [0.5, 0.99]) {
      samples.push({
        metric: `round trip of ${name}, p${share * 100}`,
        unit: 'ms',
        value: percentile(ms, share),
        ...(name === 'the token' ? { limit: `round trip of a bare select 1, p${share * 100}` } : {}),
      });
    }
  }
  return samples;
}
