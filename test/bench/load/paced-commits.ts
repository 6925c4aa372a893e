import { setTimeout as delay } from 'node:timers/promises';
import pg from 'pg';
import type { BenchServer } from '../bench-server.ts';
import { monotonicMs } from '../monotonic-clock.ts';

/** One row per session, whose number says how many of the session's commits are visible; and a row per commit. */
export async function createPacedTables({ sql }: BenchServer, sessions: number): Promise<void> {
  await sql.query(`
    create table bench_session (session int primary key, commits int not null);
    create table bench_event (id int8 primary key generated always as identity, session int, commits int, at timestamptz default now(), filler text);
    insert into bench_session select i, 0 from generate_series(0, ${sessions - 1}) i`);
}

const COMMIT_SQL = `with event as (insert into bench_event (session, commits, filler) values ($1, $2, $3))
  update bench_session set commits = $2 where session = $1`;

export interface PacedCommits {
  /** Per session, the moment at which the commit with that number had returned; index 0 is not used. */
  readonly committedMs: readonly (readonly number[])[];
  /** Of every commit, how long the application waited for it. */
  readonly durationsMs: readonly number[];
  /** Those that took long. */
  readonly slow: readonly { readonly fromMs: number; readonly toMs: number }[];
}

const SLOW_MS = 20;

/** Commits at an even rate, each transaction an update and an insert in one round trip. */
export async function commitAtRate(options: {
  readonly url: string;
  readonly perSecond: number;
  readonly seconds: number;
  readonly sessions: number;
  /** Of text in each row that is inserted. */
  readonly rowBytes?: number;
}): Promise<PacedCommits> {
  const { url, perSecond, seconds, sessions, rowBytes = 0 } = options;
  const filler = rowBytes === 0 ? null : 'x'.repeat(rowBytes);
  const clients = await Promise.all(
    Array.from({ length: sessions }, async () => {
      const client = new pg.Client({ connectionString: url });
      await client.connect();
      return client;
    }),
  );
  const total = Math.round(perSecond * seconds);
  const committedMs = clients.map(() => [Number.NaN]);
  const durationsMs: number[] = [];
  const slow: { fromMs: number; toMs: number }[] = [];
  try {
    await clients[0]!.query('update bench_session set commits = 0');
    let next = 0;
    const startMs = monotonicMs() + 10;
    await Promise.all(
      clients.map(async (client, session) => {
        for (let ticket = next++; ticket < total; ticket = next++) {
          const waitMs = startMs + (ticket * 1000) / perSecond - monotonicMs();
          if (waitMs > 0) await delay(waitMs);
          const own = committedMs[session]!;
          const sentMs = monotonicMs();
          await client.query({ name: 'commit', text: COMMIT_SQL, values: [session, own.length, filler] });
          const doneMs = monotonicMs();
          own.push(doneMs);
          durationsMs.push(doneMs - sentMs);
          if (doneMs - sentMs >= SLOW_MS) slow.push({ fromMs: sentMs, toMs: doneMs });
        }
      }),
    );
  } finally {
    await Promise.all(clients.map((client) => client.end()));
  }
  return { committedMs, durationsMs, slow };
}
