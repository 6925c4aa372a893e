import pg from 'pg';
import { ACCOUNTS } from './data-set.ts';

/** A load that two cores with everything on them carry easily, so that the lag shown is lag and not a queue. */
const DEFAULT_RATE_PER_SECOND = 200;
const CONNECTIONS = 2;
const RATE_WINDOW_MS = 2_000;

/** Each kind of write and how often it comes, out of 1000. */
const MIX: readonly (readonly [share: number, write: Write])[] = [
  [430, insertVisit],
  [280, updateCity],
  [150, transfer],
  [80, addPresence],
  [35, thinOutVisits],
  [23, updateManyCities],
  [2, truncatePresence],
];

type Write = (client: pg.ClientBase, cityId: () => number) => Promise<number>;

/** Application writes of several kinds, at a steady rate, on connections of their own. */
export class Workload {
  readonly #url: string;
  readonly #cityIds: readonly number[];
  readonly #stop = new AbortController();
  #writers: Promise<void>[] = [];
  #clients: pg.Client[] = [];
  #failure: unknown = null;
  #recent: { at: number; rows: number }[] = [];
  transactions = 0;
  rows = 0;

  constructor(url: string, cityIds: readonly number[]) {
    this.#url = url;
    this.#cityIds = cityIds;
  }

  async start(): Promise<void> {
    for (let index = 0; index < CONNECTIONS; index++) {
      const client = new pg.Client({ connectionString: this.#url, application_name: 'demo workload' });
      client.on('error', (error) => {
        this.#failure ??= error;
      });
      await client.connect();
      this.#clients.push(client);
      this.#writers.push(
        this.#write(client).catch((error: unknown) => {
          this.#failure ??= error;
        }),
      );
    }
  }

  /** Transactions and rows per second over the last two seconds. */
  rate(): { transactions: number; rows: number } {
    const now = performance.now();
    this.#forgetBefore(now - RATE_WINDOW_MS);
    const seconds = Math.max(0.2, Math.min(RATE_WINDOW_MS, now - (this.#recent[0]?.at ?? now)) / 1000);
    return {
      transactions: this.#recent.length / seconds,
      rows: this.#recent.reduce((sum, each) => sum + each.rows, 0) / seconds,
    };
  }

  /** Lets the statements under way end. Throws what went wrong meanwhile. */
  async stop(): Promise<void> {
    this.#stop.abort();
    await Promise.all(this.#writers);
    await Promise.all(this.#clients.map((client) => client.end().catch(() => undefined)));
    this.#writers = [];
    this.#clients = [];
    if (this.#failure !== null) throw this.#failure;
  }

  async #write(client: pg.Client): Promise<void> {
    const intervalMs = (1000 * CONNECTIONS) / DEFAULT_RATE_PER_SECOND;
    const cityId = (): number => this.#cityIds[Math.floor(Math.random() * this.#cityIds.length)]!;
    for (let due = performance.now(); !this.#stop.signal.aborted; due += intervalMs) {
      const now = performance.now();
      // After a hiccup the rate goes on as before; a burst would only show its own queue.
      if (now - due > 1000) due = now;
      if (due > now) await new Promise((resolve) => setTimeout(resolve, due - now));
      const rows = await chooseWrite()(client, cityId);
      this.transactions++;
      this.rows += rows;
      this.#recent.push({ at: performance.now(), rows });
      if (this.#recent.length % 512 === 0) this.#forgetBefore(performance.now() - RATE_WINDOW_MS);
    }
  }

  #forgetBefore(time: number): void {
    this.#recent = this.#recent.filter((each) => each.at >= time);
  }
}

function chooseWrite(): Write {
  let ticket = Math.random() * 1000;
  for (const [share, write] of MIX) {
    ticket -= share;
    if (ticket < 0) return write;
  }
  return insertVisit;
}

async function insertVisit(client: pg.ClientBase, cityId: () => number): Promise<number> {
  const rating = Math.random() < 0.2 ? null : 1 + Math.floor(Math.random() * 5);
  const note = Math.random() < 0.5 ? null : 'żółć, 東京, "quoted" – and a line\nmore';
  const tags = Math.random() < 0.3 ? [] : ['by train', 'with, comma', Math.random() < 0.5 ? null : 'NULL'];
  await client.query({
    name: 'insert-visit',
    text: 'insert into visit (city_id, rating, spent, note, tags) values ($1, $2, $3, $4, $5)',
    values: [cityId(), rating, (Math.random() * 500).toFixed(2), note, tags],
  });
  return 1;
}

async function updateCity(client: pg.ClientBase, cityId: () => number): Promise<number> {
  const result = await client.query({
    name: 'update-city',
    text: 'update city set population = population + $2, updated_at = clock_timestamp() where id = $1',
    values: [cityId(), Math.floor(Math.random() * 100)],
  });
  return result.rowCount ?? 0;
}

async function updateManyCities(client: pg.ClientBase, cityId: () => number): Promise<number> {
  const result = await client.query({
    name: 'update-many-cities',
    text: `update city set feature = feature || jsonb_build_object('census', $2::integer), updated_at = clock_timestamp()
            where id = any ($1::bigint[])`,
    // In order, so that two of these never wait for each other in a circle.
    values: [
      Array.from({ length: 20 }, cityId).sort((left, right) => left - right),
      Math.floor(Math.random() * 1e6),
    ],
  });
  return result.rowCount ?? 0;
}

/** Several statements in one transaction; readers of a replica see all of it or nothing. */
async function transfer(client: pg.ClientBase): Promise<number> {
  const from = 1 + Math.floor(Math.random() * ACCOUNTS);
  const to = 1 + ((from + Math.floor(Math.random() * (ACCOUNTS - 1))) % ACCOUNTS);
  const amount = (Math.random() * 20).toFixed(2);
  const change =
    'update account set balance = balance + $2::numeric, changed_at = localtimestamp where id = md5($1)::uuid';
  await client.query('begin');
  try {
    const deltas: [number, string][] = [
      [from, `-${amount}`],
      [to, amount],
    ];
    // The lower number first: the usual way around a deadlock.
    for (const [account, delta] of deltas.sort(([left], [right]) => left - right)) {
      await client.query({ name: 'transfer', text: change, values: [`account ${account}`, delta] });
    }
    await client.query('commit');
  } catch (error) {
    await client.query('rollback');
    throw error;
  }
  return 2;
}

async function addPresence(client: pg.ClientBase, cityId: () => number): Promise<number> {
  const result = await client.query({
    name: 'add-presence',
    text: `insert into presence (session, city_id, duration)
           select gen_random_uuid(), $1, make_interval(mins => number, secs => random() * 60) from generate_series(1, 3) number`,
    values: [cityId()],
  });
  return result.rowCount ?? 0;
}

async function thinOutVisits(client: pg.ClientBase): Promise<number> {
  const result = await client.query({
    name: 'thin-out-visits',
    text: 'delete from visit where id in (select id from visit order by id limit 5 for update skip locked)',
  });
  return result.rowCount ?? 0;
}

async function truncatePresence(client: pg.ClientBase): Promise<number> {
  await client.query('truncate presence');
  return 1;
}
