import type { Database } from 'better-sqlite3';
import type { RowBound, RowMove, ScalarMapping } from '../change/relation.ts';
import { shareLeftOut } from './left-out.ts';
import { quoteName } from './naming.ts';
import type { TableLayout } from './table-layout.ts';
import { type SqliteValue, valueOfBase64 } from './tuple.ts';

/** Years that are written with four digits, whose text is in order; the others are at neither end of any range. */
const ORDINARY_YEAR = '[0-9][0-9][0-9][0-9]-*';
const BEFORE_CHRIST = '*BC';
const TIMES: ReadonlySet<unknown> = new Set<ScalarMapping>(['date', 'timestamp', 'timestamptz']);

/** Makes rows of one table another's, or takes them away, as a schema change did in Postgres. */
export function moveRows(
  db: Database,
  { within, columns }: RowMove,
  { from, to }: { readonly from: TableLayout; readonly to: TableLayout | null },
): void {
  const values: SqliteValue[] = [];
  const conditions = (within ?? []).flatMap((bound) => boundConditions(bound, from, values));
  const where = conditions.length === 0 ? '' : ` WHERE ${conditions.join(' AND ')}`;
  const source = quoteName(from.sqliteName);
  if (to !== null) {
    const here = columns.map(([, attnum]) => columnName(to, attnum)).join(', ');
    const there = columns.map(([attnum]) => columnName(from, attnum)).join(', ');
    db.prepare(
      `INSERT INTO ${quoteName(to.sqliteName)} (${here}) SELECT ${there} FROM ${source}${where}`,
    ).run(...values);
    shareLeftOut(db, from.relation.oid, to.relation.oid);
  }
  // Of what is dropped as a whole nothing needs to be deleted.
  if (within !== null) db.prepare(`DELETE FROM ${source}${where}`).run(...values);
}

function boundConditions(bound: RowBound, layout: TableLayout, values: SqliteValue[]): string[] {
  const name = columnName(layout, bound.attnum);
  if ('in' in bound) {
    const listed = bound.in.filter((value) => value !== null);
    for (const value of listed) values.push(valueOfBase64(value));
    const alternatives = [
      ...(listed.length === 0 ? [] : [`${name} IN (${listed.map(() => '?').join(', ')})`]),
      ...(bound.in.includes(null) ? [`${name} IS NULL`] : []),
    ];
    return [`(${alternatives.join(' OR ')})`];
  }
  const conditions: string[] = [`${name} IS NOT NULL`];
  for (const [end, operator] of [
    [bound.from, '>='],
    [bound.to, '<'],
  ] as const) {
    if (end === null) continue;
    conditions.push(`${name} ${operator} ?`);
    values.push(valueOfBase64(end));
  }
  const { mapping } = layout.relation.columns.find(({ attnum }) => attnum === bound.attnum)!;
  if (TIMES.has(mapping)) {
    conditions.push(`${name} GLOB '${ORDINARY_YEAR}'`, `${name} NOT GLOB '${BEFORE_CHRIST}'`);
  }
  return conditions;
}

function columnName({ relation, columnNames }: TableLayout, attnum: number): string {
  return quoteName(columnNames[relation.columns.findIndex((column) => column.attnum === attnum)]!);
}
