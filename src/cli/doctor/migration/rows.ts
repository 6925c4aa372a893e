import type {
  CopyStmt,
  DeleteStmt,
  InsertStmt,
  MergeStmt,
  Node,
  TruncateStmt,
  UpdateStmt,
} from 'libpg-query';
import type { ModelTable } from './catalog-state.ts';
import { collect, type Step } from './step.ts';

/** Everything in a statement that writes rows, also inside WITH. */
export function writeRows(node: Node, step: Step): void {
  for (const each of collect(node, 'InsertStmt') as InsertStmt[]) insert(each, step);
  for (const each of collect(node, 'UpdateStmt') as UpdateStmt[])
    change(each, each.whereClause === undefined && each.fromClause === undefined, 'update', step);
  for (const each of collect(node, 'DeleteStmt') as DeleteStmt[])
    change(each, each.whereClause === undefined && each.usingClause === undefined, 'delete', step);
  for (const each of collect(node, 'MergeStmt') as MergeStmt[]) change(each, false, 'update', step);
}

export function copyRows(statement: CopyStmt, rows: number, step: Step): void {
  if (statement.is_from !== true) {
    step.add('none', 'reads only');
    return;
  }
  const table = step.find(statement.relation);
  if (table === null) return;
  const isCounted = statement.filename === undefined && statement.is_program !== true;
  addRows(table, isCounted ? rows : null, step);
  report(table, isCounted ? rows : null, step);
}

function insert(statement: InsertStmt, step: Step): void {
  const table = step.find(statement.relation);
  if (table === null) return;
  const select =
    statement.selectStmt !== undefined && 'SelectStmt' in statement.selectStmt
      ? statement.selectStmt.SelectStmt
      : undefined;
  const rows = statement.selectStmt === undefined ? 1 : (select?.valuesLists?.length ?? null);
  addRows(table, rows, step);
  report(table, rows, step);
}

function change(
  statement: Pick<UpdateStmt, 'relation'>,
  isWhole: boolean,
  verb: 'update' | 'delete',
  step: Step,
): void {
  const { model } = step;
  const table = step.find(statement.relation);
  if (table === null) return;
  if (model.mirrorOf(table) !== null && !model.hasUsableIdentity(table)) {
    step.add(
      'refused',
      `Postgres refuses the ${verb.toUpperCase()}: published, and without a usable replica identity`,
      table,
    );
    return;
  }
  const rows = isWhole ? model.rowsOf(table) : null;
  if (verb === 'delete') {
    for (const member of model.family(table, false))
      if (member.kind === 'table') member.rows = isWhole ? 0 : member.rows;
  }
  report(table, rows, step);
}

/** Of rows that came in several ways none is all. */
const SENT_IN_PARTS = -1;

export function addRows(table: ModelTable, rows: number | null, { model }: Step): void {
  const mirror = model.mirrorOf(table)?.id ?? 0;
  table.sentAs = table.sentAs === null || table.sentAs === mirror ? mirror : SENT_IN_PARTS;
  table.rows = rows === null || table.rows === null ? null : table.rows + rows;
}

function report(table: ModelTable, rows: number | null, step: Step): void {
  const mirror = step.model.mirrorOf(table);
  if (mirror === null) {
    step.add(
      'none',
      table.kind === 'table' || table.kind === 'partitioned'
        ? 'is not mirrored'
        : `what it does to the tables below the ${table.kind} is streamed`,
      table,
    );
    return;
  }
  step.add('rows', 'gets its rows by the stream', mirror, rows);
}

/** https://www.postgresql.org/docs/current/sql-truncate.html */
export function truncate(statement: TruncateStmt, step: Step): void {
  const { model } = step;
  for (const node of statement.relations ?? []) {
    if (!('RangeVar' in node)) continue;
    const table = step.find(node.RangeVar);
    if (table === null) continue;
    const members = node.RangeVar.inh === true ? model.family(table) : [table];
    step.lock(...members);
    for (const member of members) {
      if (member.kind !== 'table') continue;
      // A table of this very transaction is emptied where it is.
      if (member.madeIn !== model.transaction) member.file = model.newId();
      member.rows = 0;
    }
    const mirror = model.mirrorOf(table);
    if (mirror === null) step.add('none', 'is not mirrored', table);
    else if (mirror === table) step.add('live', 'is emptied in the replicas', table);
    else
      step.addUnsent(
        mirror,
        'TRUNCATE of a single partition is not sent, and is noticed within about five seconds',
      );
  }
  if (statement.behavior === 'DROP_CASCADE')
    step.add('opaque', 'tables with foreign keys to them are emptied too');
}
