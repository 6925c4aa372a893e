import { cpus, loadavg, totalmem } from 'node:os';
import type { PostgresMajor, Target, Unit } from './bench-case.ts';
import { SERVER_SETTINGS } from './bench-server.ts';
import type { ProcessUsage } from './process-usage.ts';
import type { CaseSummary, Summary } from './summary.ts';

/** Where and how the numbers were made. */
export interface Surroundings {
  readonly cpu: string;
  readonly cores: number;
  readonly memoryGb: number;
  /** Before the first case: well above 0, somebody else was at work. */
  readonly loadBefore: number;
  readonly node: string;
  readonly postgresMajor: PostgresMajor;
  readonly serverSettings: Readonly<Record<string, string>>;
  readonly runs: number;
  readonly isShort: boolean;
}

export function surroundings(options: {
  readonly postgresMajor: PostgresMajor;
  readonly runs: number;
  readonly isShort: boolean;
}): Surroundings {
  const all = cpus();
  return {
    cpu: all[0]?.model ?? 'unknown',
    cores: all.length,
    memoryGb: Math.round(totalmem() / 1024 ** 3),
    loadBefore: loadavg()[0] ?? 0,
    node: process.versions.node,
    serverSettings: SERVER_SETTINGS,
    postgresMajor: options.postgresMajor,
    runs: options.runs,
    isShort: options.isShort,
  };
}

/** Load average of a machine on which others work too. */
const BUSY_LOAD = 0.7;

const HEADINGS = ['', 'median', 'spread', 'of limit', 'target', 'CPU s (peak MB)'] as const;

export function textReport(cases: readonly CaseSummary[], where: Surroundings): string {
  const parts = cases.map(({ name, title, rows }) => {
    const cells = [[...HEADINGS], ...rows.map((row) => rowCells(row))];
    const widths = HEADINGS.map((_, column) => Math.max(...cells.map((line) => line[column]!.length)));
    const lines = cells.map((line) =>
      line
        .map((cell, column) =>
          column === 0 || column === 5 ? cell.padEnd(widths[column]!) : cell.padStart(widths[column]!),
        )
        .join('  ')
        .trimEnd(),
    );
    return [`${name}: ${title}`, ...lines, ...notes(rows)].join('\n');
  });
  return [...parts, describe(where)].join('\n\n');
}

/** For README: one table, limits in plain type, ours in bold. */
export function markdownReport(cases: readonly CaseSummary[], where: Surroundings): string {
  const line = (cells: readonly string[]): string => `| ${cells.join(' | ')} |`;
  const table = [line(['case', ...HEADINGS]), line(Array(HEADINGS.length + 1).fill('---'))];
  for (const { title, rows } of cases) {
    rows.forEach((row, index) => {
      const [metric, value, ...rest] = rowCells(row);
      const isOurs = row.target !== null;
      table.push(line([index === 0 ? title : '', metric!, isOurs ? `**${value}**` : value!, ...rest]));
    });
  }
  return `${table.join('\n')}\n\n${describe(where)}`;
}

function rowCells(row: Summary): string[] {
  return [
    row.metric,
    format(row.median, row.unit),
    row.values.length < 2 ? '' : `±${(row.spread * 50).toFixed(0)} %`,
    row.ofLimit === null ? '' : row.ofLimit.toFixed(2),
    row.target === null
      ? ''
      : `${describeTarget(row.target, row.unit)} ${row.isReached === true ? 'yes' : 'NO'}`,
    row.usage.map(describeUsage).join(', '),
  ];
}

function format(value: number, unit: Unit): string {
  const isRate = unit.endsWith('/s');
  return `${isRate ? Math.round(value).toLocaleString('en-US') : value.toFixed(2)} ${unit}`;
}

function describeTarget(target: Target, unit: Unit): string {
  return 'atMost' in target ? `≤ ${target.atMost} ${unit}` : `≥ ${target.ofLimit.toFixed(2)}`;
}

function describeUsage({ name, cpuSeconds, peakRssBytes }: ProcessUsage): string {
  const memory = peakRssBytes === null ? '' : ` (${Math.round(peakRssBytes / 1024 ** 2)})`;
  return `${name} ${cpuSeconds.toFixed(2)}${memory}`;
}

function notes(rows: readonly Summary[]): string[] {
  return rows.filter((row) => row.note !== null).map((row) => `  ${row.metric}: ${row.note}`);
}

function describe(where: Surroundings): string {
  const settings = Object.entries(where.serverSettings).map(([name, value]) => `${name} ${value}`);
  return [
    `Median of ${where.runs}, half the distance of the extremes beside it. ${where.cores} × ${where.cpu}, ${where.memoryGb} GB, Node ${where.node}, `,
    `PostgreSQL ${where.postgresMajor} over TCP loopback with fsync and synchronous_commit on, ${settings.join(', ')}.`,
    where.loadBefore > BUSY_LOAD
      ? ` The machine was busy before (load ${where.loadBefore.toFixed(1)}): the times are off.`
      : '',
    where.isShort ? ' Short run: the times mean nothing.' : '',
  ].join('');
}
