import pg from 'pg';
import { type EmbeddedPostgres, startEmbeddedPostgres } from '../../src/cli/demo/embedded-postgres.ts';
import { type Lsn, parseLsn } from '../../src/lsn.ts';
import type { PostgresMajor } from './bench-case.ts';
import { type ProcessUsage, serverCpuSeconds } from './process-usage.ts';

const PACKAGES: Record<PostgresMajor, string> = { 15: 'embedded-postgres-15', 18: 'embedded-postgres' };

/**
 * Durability as shipped (fsync, synchronous_commit and full_page_writes are on). What works at moments of its
 * own choosing is kept away from the measurements: no checkpoint by time or size, no autovacuum.
 */
export const SERVER_SETTINGS = {
  shared_buffers: '256MB',
  max_wal_size: '16GB',
  checkpoint_timeout: '1h',
  autovacuum: 'off',
} as const;

/** What a replica is to get to: a position, or for a system that has none, a content. */
export interface Goal {
  readonly lsn: Lsn;
  /** A query of the SQLite file, whose one number must be at least so much. */
  readonly content: { readonly sql: string; readonly atLeast: number };
}

export interface BenchServer extends AsyncDisposable {
  readonly url: string;
  readonly sql: pg.Client;
  readonly dataDir: string;
  readonly pid: number | null;
  readonly major: PostgresMajor;
  usage(): ProcessUsage;
  /** Where the WAL ends, behind everything committed so far. Something is written behind it, so that every reader of the WAL comes to it. */
  markWalEnd(): Promise<Goal>;
}

/** `settings`: other than those above. */
export async function startBenchServer(
  major: PostgresMajor,
  settings: Readonly<Record<string, string>> = {},
): Promise<BenchServer> {
  const server = await startEmbeddedPostgres({
    packageName: PACKAGES[major],
    settings: { ...SERVER_SETTINGS, ...settings },
  });
  const sql = new pg.Client({ connectionString: server.url });
  try {
    await sql.connect();
    await sql.query('create table bench_mark (id int primary key generated always as identity)');
  } catch (error) {
    await closeAll(server, sql);
    throw error;
  }
  return {
    url: server.url,
    sql,
    major,
    dataDir: server.dataDir,
    get pid() {
      return server.pid;
    },
    usage: () => ({
      name: 'postgres',
      cpuSeconds: server.pid === null ? 0 : serverCpuSeconds(server.pid),
      peakRssBytes: null,
    }),
    async markWalEnd() {
      // This commit flushes the WAL of those that did not wait for it.
      const { rows: marks } = await sql.query<{ id: number }>(
        'insert into bench_mark default values returning id',
      );
      const { rows } = await sql.query<{ lsn: string }>('select pg_current_wal_flush_lsn()::text as lsn');
      await sql.query('insert into bench_mark default values');
      return {
        lsn: parseLsn(rows[0]!.lsn),
        content: { sql: 'select max(id) from bench_mark', atLeast: marks[0]!.id },
      };
    },
    [Symbol.asyncDispose]: () => closeAll(server, sql),
  };
}

async function closeAll(server: EmbeddedPostgres, sql: pg.Client): Promise<void> {
  await sql.end().catch(() => undefined);
  await server.close();
}
