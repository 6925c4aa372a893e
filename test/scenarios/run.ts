import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import Database from 'better-sqlite3';
import pg from 'pg';
import { parseLsn } from '../../src/lsn.ts';
import { filePosition } from '../helpers/cluster.ts';
import { type Difference, findDifferences, quote } from '../helpers/compare.ts';
import { actualValue } from '../helpers/expected-value.ts';
import type { TestPostgres } from '../helpers/postgres.ts';
import { type RivuletProcess, rivulet } from '../helpers/processes.ts';
import { waitUntil } from '../helpers/wait-until.ts';
import type { Mode, Scenario, Step } from './scenario.ts';

/** Scenarios under way at once: schema changes of one happen under the load of others. */
const AT_ONCE = 6;

/** Tables are read again, and the catalog is looked at, within some seconds; a loaded machine takes longer. */
const SETTLED_MS = 20_000;

export interface ScenarioOutcome {
  /** What is not as it should be; empty if all is well. */
  readonly problems: readonly string[];
}

/**
 * One database of a server that others use too, with its own replicator and replica, in which many scenarios run
 * at once, each in its own schema.
 */
export class ScenarioDatabase implements AsyncDisposable {
  readonly mode: Mode;
  readonly file: string;
  readonly #server: Pick<TestPostgres, 'sql'>;
  readonly #url: string;
  readonly #dir: string;
  readonly #clients = new Set<pg.Client>();
  #flushed = Promise.resolve('');
  replicator: RivuletProcess | null = null;
  replica: RivuletProcess | null = null;

  private constructor(server: TestPostgres, mode: Mode) {
    this.#server = server;
    this.mode = mode;
    const url = new URL(server.url);
    url.pathname = `/${mode}`;
    this.#url = url.toString();
    this.#dir = mkdtempSync(join(tmpdir(), 'rivulet-scenarios-'));
    this.file = join(this.#dir, 'replica.db');
  }

  static async create(server: TestPostgres, mode: Mode): Promise<ScenarioDatabase> {
    const client = await server.client();
    await client.query(`create database ${mode}`);
    await client.end();
    const database = new ScenarioDatabase(server, mode);
    if (mode === 'listed') {
      const owner = await database.client('public');
      await owner.query('create publication rivulet with (publish_via_partition_root = true)');
    }
    return database;
  }

  /** Runs all scenarios: what is wrong with each, by name, and under '' what is wrong with the run as a whole. */
  async run(scenarios: readonly Scenario[]): Promise<Map<string, string[]>> {
    const problems = new Map<string, string[]>(
      ['', ...scenarios.map(({ name }) => name)].map((name) => [name, []]),
    );
    const runs = scenarios.map((scenario) => new ScenarioRun(this, scenario, problems.get(scenario.name)!));
    for (const run of runs) await run.setUp();
    await this.#start();
    // Those that are compared most often take longest.
    const queue = [...runs].sort((left, right) => right.checks - left.checks);
    await Promise.all(
      Array.from({ length: AT_ONCE }, async () => {
        for (let run = queue.shift(); run !== undefined; run = queue.shift()) await run.live();
      }),
    );
    const differs = (schema: string, table: string): boolean =>
      runs.some((run) => run.owns(schema) && run.mayDiffer(table));
    const differences = await this.differences(() => true, differs);
    for (const run of runs) run.judge(differences.filter(({ schema }) => run.owns(schema)));
    const unowned = differences.filter(({ schema }) => !runs.some((run) => run.owns(schema)));
    problems.get('')!.push(...unowned.map(({ text }) => text), ...this.#newCopies());
    return problems;
  }

  async client(searchPath: string): Promise<pg.Client> {
    const client = new pg.Client({ connectionString: this.#url });
    client.on('error', () => undefined);
    await client.connect();
    this.#clients.add(client);
    await client.query(`set search_path = ${searchPath}, public; set statement_timeout = '20s'`);
    return client;
  }

  /**
   * What still differs once nothing is on its way: a table that is read again keeps its old rows until then, and what
   * Postgres does not send is found in the catalog a little later.
   */
  async differences(
    isWanted: (schema: string) => boolean,
    mayDiffer: (schema: string, table: string) => boolean,
  ): Promise<readonly Difference[]> {
    const deadline = performance.now() + SETTLED_MS;
    for (;;) {
      await this.caughtUp();
      const found = await findDifferences({ url: this.#url, files: [this.file], isWanted });
      const differences = found.filter(({ schema, table }) => !mayDiffer(schema, table));
      if (differences.length === 0 || performance.now() > deadline) return differences;
      await delay(100);
    }
  }

  /** Waits until the replica has everything that is committed now. */
  async caughtUp(): Promise<void> {
    // One connection for all scenarios: one query at a time.
    this.#flushed = this.#flushed.then(async () => {
      const [row] = await this.#server.sql<{ lsn: string }>('select pg_current_wal_flush_lsn()::text as lsn');
      return row!.lsn;
    });
    const lsn = await this.#flushed;
    const target = parseLsn(lsn);
    const what = `the replica of ${this.mode} at ${lsn}`;
    const hasReached = (): boolean => {
      const failure = this.#failure();
      if (failure !== null) throw new Error(`${what}: ${failure}`);
      return (filePosition(this.file) ?? 0n) >= target;
    };
    await waitUntil(what, hasReached, { timeoutMs: 60_000 });
  }

  /** No scenario may need more than the first copy. */
  #newCopies(): string[] {
    const copies = this.replicator!.stderr.split('\n').filter((line) =>
      line.includes('a new history begins'),
    );
    return copies.length > (this.mode === 'fallback' ? 0 : 1) ? copies : [];
  }

  /** Whether one of the processes cannot go on; both heal what they can, which must not hide it. */
  #failure(): string | null {
    for (const child of [this.replicator!, this.replica!]) {
      const said = child.stderr.split('\n').filter((line) => /"level":[4-6]0/.test(line));
      if (child.child.exitCode !== null) return `a process ended\n${child.stderr}`;
      if (said.some((line) => /made anew|ROW_MISSING|SNAPSHOT_CORRUPT|UNSUPPORTED_SCHEMA/.test(line)))
        return said.join('\n');
    }
    return null;
  }

  async #start(): Promise<void> {
    const replicator = async (): Promise<string> => {
      this.replicator = rivulet([
        ...['replicator', '--postgres', this.#url, '--slot', `rivulet_${this.mode}`],
        ...['--data', join(this.#dir, 'data'), '--listen', '127.0.0.1:0'],
      ]);
      return this.replicator.ready;
    };
    let url = await replicator();
    if (this.mode === 'fallback') {
      const client = await this.client('public');
      await client.query('drop event trigger _rivulet_ddl; drop event trigger _rivulet_drop');
      await this.replicator!.kill('SIGTERM');
      url = await replicator();
    }
    this.replica = rivulet(['replica', '--file', this.file, '--replicator', url]);
    await this.replica.ready;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.allSettled([...this.#clients].map((client) => client.end()));
    await this.replica?.[Symbol.asyncDispose]();
    await this.replicator?.[Symbol.asyncDispose]();
    rmSync(this.#dir, { recursive: true, force: true });
  }
}

/**
 * The ways in which the rows of a `both ways` table come, besides the initial copy: inserted live into a table
 * like it, and through a table without a key where they are updated and deleted by all their values.
 */
type Way = 'streamed' | 'bag';
const WAYS: readonly Way[] = ['streamed', 'bag'];
const wayTable = (table: string, way: Way): string => `${table}__${way}`;

class ScenarioRun {
  readonly #database: ScenarioDatabase;
  readonly #scenario: Scenario;
  readonly #problems: string[];
  readonly #sessions = new Map<string, Promise<pg.Client>>();

  constructor(database: ScenarioDatabase, scenario: Scenario, problems: string[]) {
    this.#database = database;
    this.#scenario = scenario;
    this.#problems = problems;
  }

  get checks(): number {
    return this.#scenario.live.filter(({ kind }) => kind === 'check').length;
  }

  owns(schema: string): boolean {
    const { name } = this.#scenario;
    return schema === name || schema.startsWith(`${name}_`);
  }

  mayDiffer(table: string): boolean {
    return this.#scenario.differs.some((each) => each.table === table);
  }

  async setUp(): Promise<void> {
    await this.#noting(() => this.#setUp());
  }

  async live(): Promise<void> {
    const { live, bothWays } = this.#scenario;
    await this.#noting(async () => {
      if (this.#problems.length > 0) return;
      for (const table of bothWays) await this.#stream(table);
      await this.#steps(live);
    });
    for (const session of this.#sessions.values()) await (await session).end();
  }

  async #noting(work: () => Promise<void>): Promise<void> {
    try {
      await work();
    } catch (error) {
      this.#problems.push((error as Error).message);
    }
  }

  async #setUp(): Promise<void> {
    const { name, setup, bothWays } = this.#scenario;
    const client = await this.#session('main');
    await client.query(`create schema ${quote(name)}`);
    await this.#steps(setup);
    for (const table of bothWays) {
      await client.query(
        `create table ${wayTable(table, 'streamed')} (like ${table} including all);
         create table ${wayTable(table, 'bag')} (like ${table}, turn__ int);
         alter table ${wayTable(table, 'bag')} replica identity full`,
      );
    }
  }

  async #stream(table: string): Promise<void> {
    const client = await this.#session('main');
    const { rows } = await client.query<{ list: string }>(
      `select string_agg(quote_ident(attname), ', ' order by attnum) as list from pg_attribute
        where attrelid = $1::regclass and attnum > 0 and not attisdropped and attgenerated = ''`,
      [table],
    );
    const { list } = rows[0]!;
    const bag = wayTable(table, 'bag');
    await client.query(
      `insert into ${wayTable(table, 'streamed')} (${list}) overriding system value select ${list} from ${table}`,
    );
    await client.query(`insert into ${bag} (${list}, turn__) select ${list}, 0 from ${table}`);
    await client.query(`insert into ${bag} (${list}, turn__) select ${list}, 1 from ${table}`);
    await client.query(`update ${bag} set turn__ = turn__ + 2`);
    await client.query(`delete from ${bag} where turn__ = 3`);
  }

  async #steps(steps: readonly Step[]): Promise<void> {
    for (const step of steps) {
      if (step.kind === 'check') await this.#check(step.line);
      else await this.#statement(step);
    }
  }

  async #statement({ session, sql, fails }: Extract<Step, { kind: 'statement' }>): Promise<void> {
    const client = await this.#session(session);
    try {
      await client.query(sql);
    } catch (error) {
      const { code, message } = error as { code?: string; message: string };
      if (code === fails) return;
      throw new Error(`${message} (${code}) at: ${sql.slice(0, 300)}`);
    }
    if (fails !== null) throw new Error(`Postgres was expected to refuse, with ${fails}: ${sql}`);
  }

  async #check(line: number): Promise<void> {
    const differences = await this.#database.differences(
      (schema) => this.owns(schema),
      (_schema, table) => this.mayDiffer(table),
    );
    this.#problems.push(...differences.map(({ text }) => `line ${line}: ${text}`));
  }

  /** After everything: what Postgres and the file have not in common, and what one way gave and the other not. */
  judge(differences: readonly Difference[]): void {
    const { name, bothWays } = this.#scenario;
    this.#problems.push(...differences.map(({ text }) => text));
    if (bothWays.length === 0 || this.#problems.length > 0) return;
    const db = new Database(this.#database.file, { readonly: true });
    try {
      for (const table of bothWays) {
        const [copied, ...others] = [table, ...WAYS.map((way) => wayTable(table, way))].map((each) =>
          contents(db, `${name}.${each}`),
        );
        if (copied!.length === 0) this.#problems.push(`${table} has no rows to go both ways`);
        others.forEach((rows, index) => {
          if (JSON.stringify(rows) !== JSON.stringify(copied))
            this.#problems.push(`${table}: the copy and the way "${WAYS[index]}" gave different contents`);
        });
      }
    } finally {
      db.close();
    }
  }

  #session(name: string): Promise<pg.Client> {
    let session = this.#sessions.get(name);
    if (session === undefined) {
      session = this.#database.client(quote(this.#scenario.name));
      this.#sessions.set(name, session);
    }
    return session;
  }
}

function contents(db: Database.Database, table: string): string[] {
  const statement = db.prepare(`select * from ${quote(table)}`);
  const columns = statement.columns().flatMap(({ name }, index) => (name === 'turn__' ? [] : [index]));
  const rows = statement.raw().safeIntegers().all() as unknown[][];
  return rows.map((row) => JSON.stringify(columns.map((index) => actualValue(row[index])))).sort();
}
