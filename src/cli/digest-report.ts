import type { DigestReport } from '../fanout/digest-board.ts';
import { formatCount, formatTable, paint, type Style } from './format.ts';

/** What a comparison of replicas with each other found, for a person. */
export function formatDigestReport(report: DigestReport, { colour }: { readonly colour: boolean }): string {
  const say = (style: Style, text: string): string => paint(colour, style, text);
  const { position, replicas, silent, tables, differing } = report;
  const lines = differing.flatMap(({ table, groups }) => [
    say('bold', table),
    ...formatTable(
      groups.map(({ replicas: names, rows, digest }) => [
        `  ${names.join(', ')}`,
        rows === null ? say('red', 'does not have it') : `${formatCount(rows)} rows`,
        digest === null ? '' : say('gray', digest),
      ]),
    ).map((line) => line.trimEnd()),
    '',
  ]);
  if (silent.length > 0) lines.push(say('yellow', `did not answer in time: ${silent.join(', ')}`), '');
  const facts = `${formatCount(tables)} ${tables === 1 ? 'table' : 'tables'} of ${replicas.join(', ')} at ${position}`;
  if (replicas.length < 2) {
    lines.push(say('yellow', 'Nothing was compared: fewer than two replicas answered.'));
    return lines.join('\n');
  }
  lines.push(
    differing.length === 0
      ? `${say('green', 'Equal.')} ${facts}`
      : `${say('red', `Different: ${formatCount(differing.length)} of`)} ${facts}`,
  );
  return lines.join('\n');
}
