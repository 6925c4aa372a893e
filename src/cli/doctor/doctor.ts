import { connect, disconnect, postgresError } from '../../source/connection.ts';
import { checkPublicationName, checkSlotName, MIN_SERVER_VERSION } from '../../source/preflight.ts';
import { findTables, parseTableName } from '../../source/publication.ts';
import { type Finding, type Severity, worst } from './finding.ts';
import { judgeServerReport } from './judge-server.ts';
import { judgeTables, type TableReport } from './judge-tables.ts';
import { readServerReport } from './server-facts.ts';
import { readTablesReport } from './table-facts.ts';

export interface DoctorOptions {
  readonly url: string;
  readonly publication: string;
  readonly slot: string;
  readonly tables?: readonly string[] | undefined;
}

export interface DoctorReport {
  readonly severity: Severity;
  readonly server: {
    readonly version: string;
    readonly database: string;
    readonly user: string;
    /** Whether the publication is there already; otherwise the tables are as set-up would publish them. */
    readonly isSetUp: boolean;
    readonly findings: readonly Finding[];
  };
  readonly tables: readonly TableReport[];
  readonly notMirrored: readonly { readonly table: string; readonly reason: string }[];
  readonly notReplicated: { readonly views: number; readonly sequences: number };
  /** Of the first copy, as Postgres estimates: tables that were never analysed count as no rows. */
  readonly copy: { readonly rows: number; readonly bytes: number; readonly tablesWithoutEstimate: number };
}

/** Looks at a server and its tables, before or after set-up. Changes nothing. */
export async function examine(options: DoctorOptions): Promise<DoctorReport> {
  checkSlotName(options.slot);
  checkPublicationName(options.publication);
  const names = options.tables?.map(parseTableName) ?? null;
  const client = await connect(options.url, { applicationName: 'rivulet doctor' });
  try {
    // Belt and braces: nothing here writes, and so nothing can.
    await client.query('set default_transaction_read_only = on');
    const server = await readServerReport(client, options);
    const { facts } = server;
    const isSetUp = server.publication !== null;
    const findings = judgeServerReport(server, { ...options, isListed: names !== null });
    const isReadable = facts.version >= MIN_SERVER_VERSION;
    const listed =
      names === null || !isReadable ? null : (await findTables(client, names)).map(({ oid }) => oid);
    const report = isReadable
      ? await readTablesReport(client, {
          publication: options.publication,
          version: facts.version,
          isPublished: isSetUp,
          listed,
        })
      : null;
    const tables =
      report === null ? [] : judgeTables(report, { isPublished: isSetUp, isListed: listed !== null });
    if (isSetUp && listed !== null && report !== null) {
      const published = new Set(report.relations.map(({ oid }) => oid));
      const absent = listed.filter((oid) => !published.has(oid)).length;
      if (absent > 0) {
        findings.push({
          check: 'tables',
          severity: 'warning',
          says: `${absent} of the tables in --tables are not in the publication ${options.publication}`,
          advice: 'run `rivulet setup` with the same --tables',
        });
      }
    }
    return {
      severity: worst([...findings, ...tables.flatMap((table) => table.findings)]),
      server: {
        version: facts.versionText,
        database: facts.database,
        user: facts.user,
        isSetUp,
        findings,
      },
      tables,
      notMirrored: report?.notMirrored ?? [],
      notReplicated: report?.others ?? { views: 0, sequences: 0 },
      copy: {
        rows: tables.reduce((sum, { rows }) => sum + (rows ?? 0), 0),
        bytes: tables.reduce((sum, { bytes }) => sum + bytes, 0),
        tablesWithoutEstimate: tables.filter(({ rows }) => rows === null).length,
      },
    };
  } catch (error) {
    throw postgresError(error, 'looking at the server');
  } finally {
    await disconnect(client);
  }
}
