import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import pg from 'pg';
import { EXIT, RivuletError } from '../../errors.ts';
import { formatLsn, type Lsn, parseLsn } from '../../lsn.ts';
import type { Context } from '../command.ts';
import { formatCount, formatDuration, paint } from '../format.ts';
import { Cluster } from './cluster.ts';
import { compareWithPostgres } from './compare.ts';
import { Dashboard } from './dashboard.ts';
import { type DataSet, loadDataSet } from './data-set.ts';
import { type EmbeddedPostgres, startEmbeddedPostgres } from './embedded-postgres.ts';
import { ReadProbe } from './read-probe.ts';
import { SaveProbe } from './save-probe.ts';
import { Workload } from './workload.ts';

const REPLICAS = 3;
const TTY_INTERVAL_MS = 500;
const PLAIN_INTERVAL_MS = 2_000;
/** When the first replica is killed: early in a short demo. Then again every so often. */
const FIRST_KILL_MS = 6_000;
const KILL_INTERVAL_MS = 25_000;
/** How long the killed one stays away: long enough to be seen. */
const AWAY_MS = 2_500;

function makeDirectory(): string {
  try {
    return mkdtempSync(join(tmpdir(), 'rivulet-demo-'));
  } catch (cause) {
    throw new RivuletError(
      'FILE_UNUSABLE',
      `no directory can be made in ${tmpdir()}: ${(cause as NodeJS.ErrnoException).code ?? String(cause)}`,
      { cause, hint: 'set TMPDIR to a directory where this user may write' },
    );
  }
}

export interface DemoOptions {
  /** Null: until the signal. */
  readonly seconds: number | null;
  readonly context: Context;
}

/** Everything on this machine, in front of the user; gives the exit code. */
export async function runDemo({ seconds, context }: DemoOptions): Promise<number> {
  await using stack = new Closers();
  const dir = makeDirectory();
  const removeDir = (): void => rmSync(dir, { recursive: true, force: true });
  process.once('exit', removeDir);
  stack.defer(() => {
    removeDir();
    process.off('exit', removeDir);
  });
  const hangUp = new AbortController();
  // A closed terminal: nobody looks any more, so nothing is shown to the end, but everything is taken away.
  process.once('SIGHUP', () => hangUp.abort());
  const signal = AbortSignal.any([context.signal, hangUp.signal]);
  const dashboard = new Dashboard(context.stdout, context.colour && context.stdout.isTTY === true);
  stack.defer(() => dashboard.close());
  try {
    return await new Demo({ dir, dashboard, signal, seconds, colour: context.colour, stack }).run();
  } catch (error) {
    if (!signal.aborted || error instanceof RivuletError) throw error;
    throw new RivuletError('CLOSED', 'the demo was interrupted before anything could be compared', {
      cause: error,
    });
  } finally {
    dashboard.clear();
  }
}

/** What has to be ended, in reverse order. (Node 22 has no AsyncDisposableStack yet.) */
class Closers implements AsyncDisposable {
  readonly #closers: (() => void | Promise<void>)[] = [];

  use<T extends AsyncDisposable>(resource: T): T {
    this.#closers.push(() => Promise.resolve(resource[Symbol.asyncDispose]()));
    return resource;
  }

  defer(close: () => void | Promise<void>): void {
    this.#closers.push(close);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const failures: unknown[] = [];
    for (let close = this.#closers.pop(); close !== undefined; close = this.#closers.pop()) {
      try {
        await close();
      } catch (error) {
        failures.push(error);
      }
    }
    if (failures.length > 0) throw failures[0];
  }
}

interface Parts {
  readonly dir: string;
  readonly dashboard: Dashboard;
  readonly signal: AbortSignal;
  readonly seconds: number | null;
  readonly colour: boolean;
  /** Takes what was started, to be ended in reverse order. */
  readonly stack: Closers;
}

class Demo {
  readonly #parts: Parts;
  #startedAt = 0;

  constructor(parts: Parts) {
    this.#parts = parts;
  }

  async run(): Promise<number> {
    const { dashboard, signal, stack, dir } = this.#parts;
    dashboard.say(
      `\n  ${this.#paint('bold', 'Rivulet')}: one Postgres, and exact SQLite copies of it that follow it live\n`,
    );
    const postgres = await this.#step('Postgres', 'starting Postgres', async () => {
      const server = stack.use(await startEmbeddedPostgres({ settings: { wal_writer_delay: '10ms' } }));
      return [server, `a real server, at 127.0.0.1:${server.port}`];
    });
    const client = await this.#connect(postgres);
    const data = await this.#step(
      'the cities of the world',
      'loading the cities of the world',
      async (working) => {
        const loaded = await loadDataSet(
          client,
          (rows, total) => working(`${formatCount(rows)} of ${formatCount(total)}`),
          signal,
        );
        return [loaded, `${formatCount(loaded.rows)} rows with 14 types of columns`];
      },
    );
    const cluster = stack.use(new Cluster(dir, postgres.url));
    await this.#step('replicator', 'the replicator makes its first copy', async () => {
      await cluster.startReplicator(signal);
      return [null, `first copy made; ${cluster.url}`];
    });
    await this.#step('three replicas', 'three replicas fetch their files', async () => {
      const started = Array.from({ length: REPLICAS }, (_, index) => cluster.startReplica(index));
      for (const replica of started) {
        await replica.child.ready(signal);
        replica.state = 'live';
      }
      return [null, 'a process and a SQLite file each'];
    });
    const notesUrl = await this.#step('an app', 'the example app starts', async () => {
      const url = await cluster.startNotes(postgres.url, signal);
      return [url, `examples/notes, at ${url}`];
    });
    const workload = await this.#live(postgres, client, data, cluster, notesUrl);
    return await this.#compare(postgres, client, cluster, workload);
  }

  async #step<T>(
    what: string,
    doing: string,
    work: (working: (detail: string) => void) => Promise<[T, string]>,
  ): Promise<T> {
    const { dashboard, signal } = this.#parts;
    signal.throwIfAborted();
    const startedAt = performance.now();
    dashboard.working(doing);
    const [value, result] = await work((detail) => dashboard.working(`${doing}: ${detail}`));
    dashboard.step(what, result, performance.now() - startedAt);
    return value;
  }

  async #connect(postgres: EmbeddedPostgres): Promise<pg.Client> {
    const client = new pg.Client({ connectionString: postgres.url, application_name: 'demo' });
    client.on('error', () => undefined);
    await client.connect();
    this.#parts.stack.defer(() => client.end().catch(() => undefined));
    return client;
  }

  /** Writes, shows, kills and restarts, until the time is over or somebody presses Ctrl-C. */
  async #live(
    postgres: EmbeddedPostgres,
    client: pg.Client,
    data: DataSet,
    cluster: Cluster,
    notesUrl: string,
  ): Promise<Workload> {
    const { dashboard, signal, seconds, stack } = this.#parts;
    const saves = new SaveProbe(notesUrl, cluster.replicas[0]!.file);
    stack.defer(() => saves[Symbol.dispose]());
    const probe = await ReadProbe.open(postgres.url, cluster.replicas[0]!.file, data.cityIds);
    stack.defer(() => probe.close());
    const workload = new Workload(postgres.url, data.cityIds);
    stack.defer(() => workload.stop().catch(() => undefined));
    await workload.start();
    this.#startedAt = performance.now();
    const endsAt = this.#startedAt + (seconds ?? Number.POSITIVE_INFINITY) * 1000;
    const firstKillMs = Math.min(FIRST_KILL_MS, ((seconds ?? 60) * 1000) / 4);
    let nextKillAt = this.#startedAt + firstKillMs;
    let kills = 0;
    let killing: Promise<void> = Promise.resolve();
    let killFailure: unknown = null;
    const rateHistory: number[] = [];
    const intervalMs = dashboard.isLive ? TTY_INTERVAL_MS : PLAIN_INTERVAL_MS;
    while (!signal.aborted && performance.now() < endsAt) {
      const roundAt = performance.now();
      await probe.round();
      await saves.round(signal);
      await cluster.refresh(signal);
      cluster.checkAlive();
      const rate = workload.rate();
      rateHistory.push(rate.transactions);
      dashboard.show({
        elapsedMs: this.#elapsedMs(),
        seconds,
        transactionsPerSecond: rate.transactions,
        rowsPerSecond: rate.rows,
        transactions: workload.transactions,
        rateHistory: rateHistory.slice(-60),
        replicas: cluster.view(await walEnd(client)),
        sqliteRead: { p50: probe.sqlite.at(0.5), p99: probe.sqlite.at(0.99) },
        postgresRead: { p50: probe.postgres.at(0.5), p99: probe.postgres.at(0.99) },
        saves: {
          url: notesUrl,
          p50: saves.times.at(0.5),
          p99: saves.times.at(0.99),
          saved: saves.saved,
          missing: saves.missing,
        },
      });
      // Not in the last moments: it should be seen coming back.
      if (performance.now() >= nextKillAt && performance.now() < endsAt - AWAY_MS * 1.2) {
        nextKillAt += KILL_INTERVAL_MS;
        killing = this.#killAndRestart(cluster, client, workload, 1 + (kills++ % (REPLICAS - 1))).catch(
          (error: unknown) => {
            killFailure = error;
          },
        );
      }
      if (killFailure !== null) throw killFailure;
      const pauseMs = Math.min(endsAt, roundAt + intervalMs) - performance.now();
      if (pauseMs > 0) await delay(pauseMs, undefined, { signal }).catch(() => undefined);
    }
    dashboard.keep();
    await killing;
    if (killFailure !== null) throw killFailure;
    return workload;
  }

  async #killAndRestart(
    cluster: Cluster,
    client: pg.Client,
    workload: Workload,
    index: number,
  ): Promise<void> {
    const { dashboard, signal } = this.#parts;
    const replica = cluster.replicas[index]!;
    const { pid } = replica.child;
    const before = workload.transactions;
    replica.state = 'killed';
    await replica.child.kill();
    dashboard.event(
      this.#elapsedMs(),
      `${this.#paint('red', 'kill -9')} of ${replica.name} (process ${pid})`,
    );
    await delay(AWAY_MS, undefined, { signal }).catch(() => undefined);
    const missed = workload.transactions - before;
    const target = await walEnd(client);
    const startedAt = performance.now();
    const again = cluster.startReplica(index);
    dashboard.event(this.#elapsedMs(), `${replica.name} starts again (process ${again.child.pid})`);
    // The end of the demo waits for this one too: everything has to be there for the comparison.
    const patience = new AbortController().signal;
    await again.child.ready(patience);
    again.state = 'live';
    await cluster.reached(again, target, patience);
    const tookMs = performance.now() - startedAt;
    dashboard.event(
      this.#elapsedMs(),
      `${this.#paint('green', 'caught up')}: ${replica.name} had missed ${formatCount(missed)} transactions, and has them ${formatDuration(tookMs)} after its start`,
    );
  }

  /** Stops the writes, waits until every file is where Postgres is, and looks at every value. */
  async #compare(
    postgres: EmbeddedPostgres,
    client: pg.Client,
    cluster: Cluster,
    workload: Workload,
  ): Promise<number> {
    const { dashboard } = this.#parts;
    const patience = new AbortController().signal;
    dashboard.say('');
    await workload.stop();
    const target = await walEnd(client);
    const startedAt = performance.now();
    dashboard.working(
      `writes have stopped after ${formatCount(workload.transactions)} transactions; waiting for ${formatLsn(target)}`,
    );
    await Promise.all(cluster.replicas.map((replica) => cluster.reached(replica, target, patience)));
    dashboard.step(
      'writes stopped',
      `after ${formatCount(workload.transactions)} transactions; all at ${formatLsn(target)}`,
      performance.now() - startedAt,
    );
    const comparedAt = performance.now();
    let rows = 0;
    const results = await compareWithPostgres(
      postgres.url,
      cluster.replicas.map((replica) => replica.file),
      (more) => {
        rows += more;
        dashboard.working(`comparing row by row: ${formatCount(rows)} rows`);
      },
    );
    const seconds = performance.now() - comparedAt;
    results.forEach((result, index) => {
      const { name } = cluster.replicas[index]!;
      if (result.differences.length === 0) {
        dashboard.step(
          name,
          `equal: ${formatCount(result.rows)} rows, ${formatCount(result.values)} values`,
          seconds,
        );
        return;
      }
      dashboard.say(`  ${this.#paint('red', '✘')} ${name} is DIFFERENT from Postgres:`);
      for (const difference of result.differences) dashboard.say(`      ${difference}`);
    });
    const areEqual = results.every((result) => result.differences.length === 0);
    dashboard.say(
      areEqual
        ? `\n  ${this.#paint('green', 'All three replicas equal Postgres, row by row.')}\n`
        : `\n  ${this.#paint('red', 'Not all replicas equal Postgres.')} Please report this.\n`,
    );
    return areEqual ? EXIT.done : EXIT.different;
  }

  #elapsedMs(): number {
    return performance.now() - this.#startedAt;
  }

  #paint(style: Parameters<typeof paint>[1], text: string): string {
    return paint(this.#parts.colour, style, text);
  }
}

/** Of everything that was committed so far, and no further: an idle server gets there. */
async function walEnd(client: pg.Client): Promise<Lsn> {
  const { rows } = await client.query<{ lsn: string }>('select pg_current_wal_lsn()::text as lsn');
  return parseLsn(rows[0]!.lsn);
}
