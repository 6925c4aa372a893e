import type { PrintedDifference } from '../verify/printed-difference.ts';
import type { TableReport, TableVerdict, VerifyProgress, VerifyReport } from '../verify/verifier.ts';
import { formatCount, formatDuration, formatTable, paint, progressBar, type Style } from './format.ts';

const MAX_EQUAL_SHOWN = 30;
const MAX_NOT_MIRRORED_SHOWN = 20;

const STYLES: Record<TableVerdict, Style> = {
  equal: 'green',
  different: 'red',
  incomplete: 'red',
  missing: 'red',
  extra: 'red',
  'columns differ': 'red',
  'not compared': 'yellow',
};

/** One line about a comparison under way. */
export function verifyProgressText(progress: VerifyProgress): string {
  const { tablesDone, tablesTotal, rows, doneBytes, totalBytes, elapsedMs } = progress;
  if (progress.phase === 'snapshot' && totalBytes === 0)
    return 'verifying: waiting for the file to reach the position of a snapshot of Postgres';
  if (progress.phase === 'mending') return `verifying: mending rows, ${formatDuration(elapsedMs)} so far`;
  // Sizes are estimates, and the file may be read more slowly than Postgres.
  const share = Math.min(tablesDone < tablesTotal ? 0.99 : 1, totalBytes === 0 ? 1 : doneBytes / totalBytes);
  const left = doneBytes === 0 ? null : (elapsedMs * (totalBytes - doneBytes)) / doneBytes;
  const rate = elapsedMs === 0 ? 0 : (rows / elapsedMs) * 1000;
  const eta = left === null || share >= 0.99 ? '' : `, about ${formatDuration(left)} left`;
  const table = progress.table === null ? '' : `  ${progress.table}`;
  return `verifying ${progressBar(share)}  tables ${tablesDone}/${tablesTotal}, ${formatCount(rows)} rows, ${formatCount(rate)}/s${eta}${table}`;
}

/** The result as a table for a person. */
export function formatVerifyReport(report: VerifyReport, { colour }: { readonly colour: boolean }): string {
  const say = (style: Style, text: string): string => paint(colour, style, text);
  const { tables } = report;
  const before = new Map(report.repair?.found.map((table) => [table.table, table]));
  const equal = tables.filter(({ verdict, table }) => verdict === 'equal' && !before.has(table));
  const others = tables.filter((each) => !equal.includes(each));
  const shown = [...others, ...equal.slice(0, MAX_EQUAL_SHOWN)];
  const header = ['table', 'rows', 'in the file', 'at', 'result'].map((cell) => say('gray', cell));
  const lines = formatTable(
    [
      header,
      ...shown.map((table) => [
        table.table,
        count(table.rows.postgres),
        count(table.rows.file),
        table.position ?? '–',
        say(STYLES[table.verdict], verdictText(table)) + mendedText(before.get(table.table)),
      ]),
    ],
    [1, 2],
  );
  if (equal.length > MAX_EQUAL_SHOWN)
    lines.push(say('gray', `and ${equal.length - MAX_EQUAL_SHOWN} more, equal`));
  for (const table of others) lines.push('', ...differenceLines(before.get(table.table) ?? table, say));
  if (report.notMirrored.length > 0) {
    lines.push('', say('bold', 'Not mirrored, so not in the file'));
    for (const { table, reason } of report.notMirrored.slice(0, MAX_NOT_MIRRORED_SHOWN))
      lines.push(`  ${table}: ${reason}`);
    if (report.notMirrored.length > MAX_NOT_MIRRORED_SHOWN)
      lines.push(`  and ${report.notMirrored.length - MAX_NOT_MIRRORED_SHOWN} more`);
  }
  lines.push('', summary(report, say));
  return lines.join('\n');
}

function count(rows: number | null): string {
  return rows === null ? '–' : formatCount(rows);
}

function mendedText(before: TableReport | undefined): string {
  return before === undefined ? '' : `, was: ${verdictText(before)}`;
}

function verdictText({ verdict, different, missing, extra, leftOut }: TableReport): string {
  if (verdict === 'incomplete')
    return `equal but for ${formatCount(leftOut.length)} ${leftOut.length === 1 ? 'value' : 'values'} longer than SQLite takes`;
  if (verdict !== 'different') return verdict;
  const parts = [
    ...(different > 0 ? [`${formatCount(different)} different`] : []),
    ...(missing > 0 ? [`${formatCount(missing)} missing`] : []),
    ...(extra > 0 ? [`${formatCount(extra)} extra`] : []),
  ];
  return parts.join(', ');
}

function differenceLines(table: TableReport, say: (style: Style, text: string) => string): string[] {
  const lines = [say('bold', table.table), ...table.notes.map((note) => `  ${note}`)];
  for (const difference of table.differences) lines.push(...rowLines(difference, say));
  const listed = table.differences.reduce((sum, each) => sum + each.count, 0);
  const left = table.different + table.missing + table.extra - listed;
  if (left > 0) lines.push(`  and ${formatCount(left)} more`);
  return lines;
}

function rowLines(
  { kind, key, columns, count: times }: PrintedDifference,
  say: (style: Style, text: string) => string,
): string[] {
  const row = Object.entries(key)
    .map(([name, value]) => `${name} = ${value}`)
    .join(', ');
  const what = { different: '', missing: 'is not in the file: ', extra: 'is only in the file: ' }[kind];
  const often = times === 1 ? '' : ` (${formatCount(times)} times)`;
  return [
    `  ${what === '' ? '' : say('yellow', what)}${row}${often}`,
    ...columns.flatMap(({ column, postgres, file }) => [
      `    ${column}`,
      `      Postgres  ${say('green', postgres)}`,
      `      file      ${say('red', file)}`,
    ]),
  ];
}

function summary(report: VerifyReport, say: (style: Style, text: string) => string): string {
  const { rows, elapsedMs, rounds, tables, equal, complete } = report;
  const rate = elapsedMs === 0 ? 0 : (rows / elapsedMs) * 1000;
  const facts = `${formatCount(rows)} rows of ${formatCount(tables.length)} ${tables.length === 1 ? 'table' : 'tables'} in ${formatDuration(elapsedMs)} (${formatCount(rate)} rows/s, ${rounds} ${rounds === 1 ? 'snapshot' : 'snapshots'})`;
  const mended = report.repair?.mended ?? 0;
  const repaired =
    report.repair === null ? '' : `${formatCount(mended)} ${mended === 1 ? 'row was' : 'rows were'} mended. `;
  if (equal) return `${repaired}${say('green', 'Equal.')} ${facts}`;
  if (!complete) return `${repaired}${say('yellow', 'Not all of it could be compared.')} ${facts}`;
  const wrong = tables.filter(({ verdict }) => verdict !== 'equal').length;
  return `${repaired}${say('red', `Different: ${formatCount(wrong)} of ${formatCount(tables.length)} tables.`)} ${facts}`;
}
