import { readFileSync } from 'node:fs';
import { ConfigError } from '../../../errors.ts';
import { connect, disconnect, postgresError } from '../../../source/connection.ts';
import { checkPublicationName, checkSlotName } from '../../../source/preflight.ts';
import { analyseMigration } from './analyse.ts';
import { type Catalog, emptyState } from './catalog-state.ts';
import { isBad, type StatementReport } from './effects.ts';
import { readCatalog } from './read-catalog.ts';
import { splitStatements } from './statements.ts';
import { parseParts } from './syntax.ts';
import { BUILTIN_BINARY_CASTS } from './type-change.ts';

/** The version whose rules count where there is no server to ask. */
const NEWEST_VERSION = 180_000;

/** Functions of every server's that give each row a value of its own. */
const VOLATILE_FUNCTIONS = new Set([
  'clock_timestamp',
  'currval',
  'gen_random_uuid',
  'nextval',
  'random',
  'random_normal',
  'statement_timestamp',
  'timeofday',
  'uuid_generate_v1',
  'uuid_generate_v1mc',
  'uuid_generate_v4',
  'uuidv4',
  'uuidv7',
]);

export interface MigrationOptions {
  readonly file: string;
  /** Null: only what the file itself makes is known. */
  readonly url: string | null;
  readonly publication: string;
  readonly slot: string;
  readonly tables?: readonly string[] | undefined;
}

export interface MigrationReport {
  readonly file: string;
  readonly isConnected: boolean;
  /** Whether the server's event triggers announce schema changes, or would after set-up. */
  readonly isAnnounced: boolean;
  /** True if a statement is refused, unnoticed by replicas, breaks replication or is no SQL. */
  readonly isBad: boolean;
  /** Tables that are read again, each once per transaction, and their estimated rows. */
  readonly backfill: { readonly tables: number; readonly rows: number; readonly isComplete: boolean };
  readonly statements: readonly StatementReport[];
}

/** Tells what the statements of a SQL file would do to the replicas. Runs none of them. */
export async function examineMigration(options: MigrationOptions): Promise<MigrationReport> {
  checkSlotName(options.slot);
  checkPublicationName(options.publication);
  const parsed = await parseParts(splitStatements(readFile(options.file)));
  const catalog = options.url === null ? offline(options) : await ask(options.url, options);
  const { isAnnounced } = catalog.state;
  const statements = analyseMigration(parsed, catalog);
  const reads = statements.flatMap(({ consequences }) =>
    consequences.filter(({ effect }) => effect === 'backfill'),
  );
  return {
    file: options.file,
    isConnected: options.url !== null,
    isAnnounced,
    isBad: statements.some(({ effect }) => isBad(effect)),
    backfill: {
      tables: reads.length,
      rows: reads.reduce((sum, { rows }) => sum + (rows ?? 0), 0),
      isComplete: reads.every(({ rows }) => rows !== null),
    },
    statements,
  };
}

function readFile(file: string): string {
  try {
    return readFileSync(file, 'utf8');
  } catch (cause) {
    throw new ConfigError(
      `the migration ${file} cannot be read: ${(cause as NodeJS.ErrnoException).code ?? String(cause)}`,
      { cause, hint: 'check its path, owner and mode' },
    );
  }
}

function offline({ publication, slot }: MigrationOptions): Catalog {
  return {
    state: emptyState(publication),
    version: NEWEST_VERSION,
    binaryCasts: BUILTIN_BINARY_CASTS,
    isVolatile: (name) => VOLATILE_FUNCTIONS.has(name),
    isComplete: false,
    slot,
  };
}

async function ask(url: string, options: MigrationOptions): Promise<Catalog> {
  const client = await connect(url, { applicationName: 'rivulet doctor' });
  try {
    await client.query('set default_transaction_read_only = on');
    return await readCatalog(client, options);
  } catch (error) {
    throw postgresError(error, 'reading the catalog');
  } finally {
    await disconnect(client);
  }
}
