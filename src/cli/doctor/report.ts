import { formatBytes, formatCount, formatTable, paint, type Style } from '../format.ts';
import type { DoctorReport } from './doctor.ts';
import type { Finding, Severity } from './finding.ts';
import type { TableReport } from './judge-tables.ts';
import { wrap } from './wrap.ts';

const STYLES: Readonly<Record<Severity, Style>> = {
  ok: 'green',
  note: 'cyan',
  warning: 'yellow',
  problem: 'red',
};
const LABEL_COLUMNS = 'problem'.length + 2;
/** Beyond so many, a person asks for all of them or for JSON. */
const MAX_TABLES_SHOWN = 20;

export interface PageOptions {
  readonly colour: boolean;
  /** Width of the terminal; null where lines are better left whole. */
  readonly columns: number | null;
  readonly verbose: boolean;
}

/** The report for a person: what stands in the way first, then only tables that deserve a word. */
export function formatDoctorReport(report: DoctorReport, options: PageOptions): string {
  return new Page(options).report(report);
}

class Page {
  readonly #options: PageOptions;

  constructor(options: PageOptions) {
    this.#options = options;
  }

  report(report: DoctorReport): string {
    const { server } = report;
    const sections = [
      this.#wrap(
        `Postgres ${server.version}, database ${server.database}, user ${server.user}: ` +
          (server.isSetUp
            ? 'set up'
            : 'not set up yet, so the tables are shown as set-up would publish them'),
      ),
      [this.#bold('Server'), ...this.#serverLines(server.findings)].join('\n'),
      ...this.#tableSections(report),
      ...this.#leftOut(report),
      this.#verdict(report),
    ];
    return sections.join('\n\n');
  }

  #serverLines(findings: readonly Finding[]): string[] {
    const { verbose } = this.#options;
    const shown = findings.filter(({ severity }) => verbose || severity !== 'ok');
    const lines = sorted(shown).map((finding) => this.finding(finding, 2));
    const hidden = findings.length - shown.length;
    if (hidden > 0) lines.push(`  ${this.#label('ok')}${hidden} other checks (--verbose shows them)`);
    return lines;
  }

  #tableSections(report: DoctorReport): string[] {
    const { tables, copy } = report;
    if (tables.length + report.notMirrored.length === 0) return [];
    const { verbose } = this.#options;
    const estimate =
      copy.tablesWithoutEstimate === 0
        ? `about ${formatCount(copy.rows)} rows`
        : `${copy.rows === 0 ? 'an unknown number of rows' : `more than ${formatCount(copy.rows)} rows`} (${copy.tablesWithoutEstimate} never analysed)`;
    const title = this.#wrap(
      `${this.#bold('Tables')}: ${formatCount(tables.length)} ${report.server.isSetUp ? 'mirrored' : 'would be mirrored'}, ` +
        `${formatCount(report.notMirrored.length)} not; a first copy brings ${estimate}, ${formatBytes(copy.bytes)} in Postgres`,
    );
    const deserving = tables.filter(({ severity }) => verbose || severity !== 'ok');
    const bySeverity = [...deserving].sort((left, right) => rank(right.severity) - rank(left.severity));
    const limit = verbose ? Number.POSITIVE_INFINITY : MAX_TABLES_SHOWN;
    const shown = bySeverity.slice(0, limit);
    const lines = shown.flatMap((table) => this.#table(table));
    const hidden = bySeverity.slice(shown.length);
    if (hidden.length > 0) {
      const counts = (['problem', 'warning', 'note'] as const)
        .map((severity) => [severity, hidden.filter((table) => table.severity === severity).length] as const)
        .filter(([, count]) => count > 0)
        .map(([severity, count]) => `${count} with ${severity}s`);
      lines.push(
        `  and ${formatCount(hidden.length)} more tables: ${counts.join(', ')} (--verbose shows them)`,
      );
    }
    const plain = tables.length - deserving.length;
    if (plain > 0 && deserving.length > 0)
      lines.push(`  ${this.#label('ok')}${formatCount(plain)} other ${plain === 1 ? 'table' : 'tables'}`);
    return [[title, ...lines].join('\n')];
  }

  #table(table: TableReport): string[] {
    const { verbose } = this.#options;
    const size = `${table.rows === null ? 'never analysed' : `${formatCount(table.rows)} rows`}, ${formatBytes(table.bytes)}`;
    const lines = [
      `  ${this.#bold(table.table)} ${this.#gray(`→ ${table.sqliteName}  ${size}`)}`,
      ...sorted(table.findings)
        .filter(({ severity }) => verbose || severity !== 'ok')
        .map((finding) => this.finding(finding, 4)),
    ];
    if (!verbose) return lines;
    lines.push(
      `    ${this.#wrap(`identity: ${table.identity}${table.identityAfterSetup === table.identity ? '' : `, after set-up ${table.identityAfterSetup}`}`, 14)}`,
    );
    const rows = table.columns.map((column) => [
      column.name,
      column.type,
      `→ ${column.sqliteName === column.name ? '' : `${column.sqliteName} `}${column.storage}`,
    ]);
    lines.push(...formatTable(rows).map((line) => `    ${line.trimEnd()}`));
    return lines;
  }

  #leftOut({ notMirrored, notReplicated }: DoctorReport): string[] {
    const { verbose } = this.#options;
    const lines: string[] = [];
    const limit = verbose ? Number.POSITIVE_INFINITY : MAX_TABLES_SHOWN;
    for (const { table, reason } of notMirrored.slice(0, limit))
      lines.push(`  ${this.#wrap(`${table}: ${reason}`, 4)}`);
    if (notMirrored.length > limit)
      lines.push(`  and ${notMirrored.length - limit} more (--verbose shows them)`);
    const others = Object.entries(notReplicated).filter(([, count]) => count > 0);
    if (others.length > 0)
      lines.push(
        `  ${others.map(([kind, count]) => `${formatCount(count)} ${count === 1 ? kind.slice(0, -1) : kind}`).join(' and ')}`,
      );
    return lines.length === 0 ? [] : [[this.#bold('Not mirrored'), ...lines].join('\n')];
  }

  #verdict(report: DoctorReport): string {
    const all = [...report.server.findings, ...report.tables.flatMap(({ findings }) => findings)];
    const count = (severity: Severity): number =>
      all.filter((finding) => finding.severity === severity).length;
    const counts = (['problem', 'warning', 'note'] as const)
      .map((severity) => ({ severity, number: count(severity) }))
      .filter(({ number }) => number > 0)
      .map(({ severity, number }) =>
        this.#paint(STYLES[severity], `${number} ${severity}${number === 1 ? '' : 's'}`),
      );
    const verdict =
      report.severity === 'problem'
        ? this.#paint('red', 'Replication will not work like this')
        : this.#paint('green', 'Nothing stands in the way of replication');
    return counts.length === 0 ? `${verdict}.` : `${verdict}: ${counts.join(', ')}.`;
  }

  finding(finding: Finding, indent: number): string {
    const at = indent + LABEL_COLUMNS;
    const lines = [`${' '.repeat(indent)}${this.#label(finding.severity)}${this.#wrap(finding.says, at)}`];
    if (finding.advice !== undefined)
      lines.push(`${' '.repeat(at)}${this.#gray(this.#wrap(`→ ${finding.advice}`, at + 2))}`);
    return lines.join('\n');
  }

  #label(severity: Severity): string {
    return this.#paint(STYLES[severity], severity) + ' '.repeat(LABEL_COLUMNS - severity.length);
  }

  #wrap(text: string, indent = 2): string {
    return wrap(text, this.#options.columns, indent);
  }

  #bold(text: string): string {
    return this.#paint('bold', text);
  }

  #gray(text: string): string {
    return this.#paint('gray', text);
  }

  #paint(style: Style, text: string): string {
    return paint(this.#options.colour, style, text);
  }
}

function rank(severity: Severity): number {
  return ['ok', 'note', 'warning', 'problem'].indexOf(severity);
}

/** The worst first, otherwise as they came. */
function sorted(findings: readonly Finding[]): Finding[] {
  return [...findings].sort((left, right) => rank(right.severity) - rank(left.severity));
}
