import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, relative } from 'node:path';
import Database from 'better-sqlite3';
import { formatLsn, parseLsn } from '../../src/lsn.ts';
import { compareWithPostgres } from './compare.ts';
import { startPostgres, type TestPostgres } from './postgres.ts';
import { type RivuletProcess, rivulet } from './processes.ts';
import { waitUntil } from './wait-until.ts';

/** The position of a replica file, or null while there is none. */
export function filePosition(file: string): bigint | null {
  try {
    const db = new Database(file, { readonly: true, fileMustExist: true });
    try {
      return BigInt(
        db.prepare('select lsn_int from _rivulet_position').pluck().safeIntegers().get() as bigint,
      );
    } finally {
      db.close();
    }
  } catch {
    return null;
  }
}

/** A path as people give it: from where they are. */
export function asTyped(path: string): string {
  return relative(process.cwd(), path);
}

/** A server, a replicator and replicas, as processes of their own, all in one temporary directory. */
export class TestCluster implements AsyncDisposable {
  readonly postgres: TestPostgres;
  readonly dir: string;
  replicator: RivuletProcess | null = null;
  replicatorUrl = '';
  /** Where the replicator finds Postgres, if something stands between them. */
  sourceUrl: string | null = null;
  /** Where replicas find the replicator, likewise. */
  followUrl: string | null = null;
  readonly replicas = new Map<string, RivuletProcess>();

  private constructor(postgres: TestPostgres, dir: string) {
    this.postgres = postgres;
    this.dir = dir;
  }

  static async start(options: Parameters<typeof startPostgres>[0] = {}): Promise<TestCluster> {
    const dir = mkdtempSync(join(tmpdir(), 'rivulet-test-'));
    return new TestCluster(await startPostgres(options), dir);
  }

  file(name: string): string {
    return join(this.dir, `${name}.db`);
  }

  /** Makes a database in that encoding, for the replicator to mirror in the place of the server's first one. */
  async useDatabase(encoding: string): Promise<string> {
    await this.postgres.sql(`create database odd encoding '${encoding}' template template0 locale 'C'`);
    const url = new URL(this.postgres.url);
    url.pathname = '/odd';
    this.sourceUrl = url.href;
    return url.href;
  }

  /** Starts the replicator, or starts it again on the port that its replicas know. */
  async startReplicator(env: Readonly<Record<string, string>> = {}): Promise<RivuletProcess> {
    const listen = this.replicatorUrl === '' ? '127.0.0.1:0' : new URL(this.replicatorUrl).host;
    this.replicator = rivulet(
      [
        'replicator',
        '--postgres',
        this.sourceUrl ?? this.postgres.url,
        '--data',
        asTyped(join(this.dir, 'data')),
        '--listen',
        listen,
      ],
      env,
    );
    this.replicatorUrl = await this.replicator.ready;
    return this.replicator;
  }

  async startReplica(name: string, env: Readonly<Record<string, string>> = {}): Promise<RivuletProcess> {
    const replica = rivulet(
      [
        'replica',
        '--file',
        asTyped(this.file(name)),
        '--replicator',
        this.followUrl ?? this.replicatorUrl,
        '--name',
        name,
      ],
      env,
    );
    this.replicas.set(name, replica);
    await replica.ready;
    return replica;
  }

  /** Waits until every replica's file has everything that is committed now, as long as it comes nearer at all. */
  async caughtUp(timeoutMs = 60_000): Promise<void> {
    const [row] = await this.postgres.sql<{ lsn: string }>('select pg_current_wal_flush_lsn()::text as lsn');
    const target = parseLsn(row!.lsn);
    for (const name of this.replicas.keys()) {
      let reached = filePosition(this.file(name)) ?? 0n;
      while (reached < target) {
        const before = reached;
        const further = (): bigint | null => {
          const now = filePosition(this.file(name)) ?? 0n;
          return now > before ? now : null;
        };
        const what = `${name} to come from ${formatLsn(before)} to ${row!.lsn}`;
        reached = await waitUntil(what, further, { timeoutMs }).catch(async (error: Error) => {
          throw new Error(`${error.message}\n${await this.#state(name)}`, { cause: error });
        });
      }
    }
  }

  /** What a replica, the replicator and the server say of themselves: for those who ask why nothing comes. */
  async #state(name: string): Promise<string> {
    const status = await fetch(new URL('/status', this.replicatorUrl))
      .then((response) => response.text())
      .catch(String);
    const slots = await this.postgres.sql('select * from pg_replication_slots');
    const said = (process: RivuletProcess | null | undefined): string =>
      process?.stderr.split('\n').slice(-20).join('\n') ?? 'none';
    return [
      `the replicator's status: ${status}`,
      `the server's slots: ${JSON.stringify(slots)}`,
      `the replicator: ${said(this.replicator)}`,
      `${name}: ${said(this.replicas.get(name))}`,
    ].join('\n');
  }

  /** Differences between Postgres and every replica, with the replica's name in front. */
  async differences(): Promise<string[]> {
    await this.caughtUp();
    return compareWithPostgres(
      this.postgres.url,
      ...[...this.replicas.keys()].map((name) => this.file(name)),
    );
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const replica of this.replicas.values()) await replica[Symbol.asyncDispose]();
    await this.replicator?.[Symbol.asyncDispose]();
    await this.postgres.close();
    rmSync(this.dir, { recursive: true, force: true });
  }
}
