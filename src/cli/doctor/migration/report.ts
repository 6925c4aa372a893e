import { formatCount, paint, type Style } from '../../format.ts';
import type { PageOptions } from '../report.ts';
import { wrap } from '../wrap.ts';
import { NOTHING } from './analyse.ts';
import type { Consequence, Effect } from './effects.ts';
import type { MigrationReport } from './migration.ts';

/** How an effect is called and coloured on the page. */
const LABELS: Readonly<Record<Effect, readonly [label: string, style: Style]>> = {
  none: ['no effect', 'gray'],
  live: ['live', 'green'],
  rows: ['live, rows', 'green'],
  opaque: ['cannot tell', 'cyan'],
  backfill: ['backfill', 'yellow'],
  leaves: ['leaves', 'yellow'],
  unseen: ['not seen', 'red'],
  refused: ['refused', 'red'],
  rebuild: ['rebuild', 'red'],
  dangerous: ['dangerous', 'red'],
  error: ['no SQL', 'red'],
};
const LABEL_COLUMNS = 'cannot tell'.length + 2;

/** The report for a person: a line per statement, what it does below it. */
export function formatMigrationReport(report: MigrationReport, options: PageOptions): string {
  const lines: string[] = [];
  if (!report.isConnected)
    lines.push(
      say(
        options,
        'Without --postgres only tables that the file itself makes are known; of others the worst is assumed.',
        0,
      ),
      '',
    );
  else if (!report.isAnnounced)
    lines.push(
      say(
        options,
        'This server announces no schema changes: replicas notice them with the next row of the table or within about a second.',
        0,
      ),
      '',
    );
  const width = `${Math.max(0, ...report.statements.map(({ line }) => line))}`.length;
  const shown = report.statements.filter(
    ({ effect, consequences }) => options.verbose || effect !== 'none' || hasWord(consequences),
  );
  for (const { line, statement, effect, consequences } of shown) {
    const [text, style] = LABELS[effect];
    const head = `${`${line}`.padStart(width)}  ${paint(options.colour, style, text)}${' '.repeat(LABEL_COLUMNS - text.length)}`;
    const at = width + 2 + LABEL_COLUMNS;
    lines.push(head + (options.columns === null ? statement : cut(statement, options.columns - at)));
    for (const each of consequences) {
      if (each.effect === 'none' && !hasWord([each])) continue;
      lines.push(' '.repeat(at) + paint(options.colour, 'gray', say(options, consequenceText(each), at + 2)));
    }
  }
  const hidden = report.statements.length - shown.length;
  if (hidden > 0)
    lines.push(
      `${' '.repeat(width + 2)}${paint(options.colour, 'gray', `${hidden} other ${hidden === 1 ? 'statement' : 'statements'} without effect on the replicas (--verbose shows them)`)}`,
    );
  return [...lines, '', verdict(report, options)].join('\n').trimStart();
}

function hasWord(consequences: readonly Consequence[]): boolean {
  return consequences.some(({ says }) => says !== NOTHING);
}

function consequenceText({ table, says, rows, why }: Consequence): string {
  const subject = table === undefined ? '' : `${table} `;
  const count =
    rows === undefined
      ? ''
      : rows === null
        ? ' (an unknown number of rows)'
        : rows === 1
          ? ' (1 row)'
          : ` (about ${formatCount(rows)} rows)`;
  return `${subject}${says}${count}${why === undefined ? '' : `: ${why}`}`;
}

function verdict(report: MigrationReport, options: PageOptions): string {
  const { statements, backfill } = report;
  const count = `${formatCount(statements.length)} ${statements.length === 1 ? 'statement' : 'statements'}`;
  if (report.isBad) {
    const bad = statements.filter(({ effect }) => LABELS[effect][1] === 'red').map(({ line }) => line);
    return paint(
      options.colour,
      'red',
      say(options, `Of ${count}, replicas cannot follow all: look at line ${bad.join(', ')}.`, 0),
    );
  }
  const rows = `${backfill.isComplete ? 'about' : 'more than'} ${formatCount(backfill.rows)} rows`;
  const reads =
    backfill.tables === 0
      ? ''
      : `; ${backfill.tables} ${backfill.tables === 1 ? 'table is' : 'tables are'} read again, ${rows}`;
  return paint(options.colour, 'green', say(options, `The replicas follow all of ${count}${reads}.`, 0));
}

function say(options: PageOptions, text: string, indent: number): string {
  return wrap(text, options.columns, indent);
}

function cut(text: string, columns: number): string {
  return text.length > columns ? `${text.slice(0, Math.max(10, columns - 1))}…` : text;
}
