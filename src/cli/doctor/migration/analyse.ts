import type { Node, TransactionStmt, VariableSetStmt } from 'libpg-query';
import { alterTable } from './alter-table.ts';
import { type Catalog, type ModelTable, newPublication } from './catalog-state.ts';
import {
  createDomain,
  createIndex,
  createTable,
  createTableAs,
  createType,
  createView,
  qualified,
} from './create.ts';
import { drop, rename, setSchema } from './drop-rename.ts';
import { type StatementReport, worstEffect } from './effects.ts';
import { callsUserFunctions, guard } from './guard.ts';
import { Model } from './model.ts';
import { alterPublication } from './publication.ts';
import { parseSearchPath } from './read-catalog.ts';
import { copyRows, truncate, writeRows } from './rows.ts';
import type { FilePart } from './statements.ts';
import { Step } from './step.ts';
import type { Parsed } from './syntax.ts';
import { stringOf } from './types.ts';

const MAX_STATEMENT_CHARACTERS = 160;
export const NOTHING = 'nothing changes in the replicas';

/** Tells of each statement, one after the other, what it does to the replicas; the catalog changes on the way. */
export function analyseMigration(parsed: readonly Parsed[], catalog: Catalog): StatementReport[] {
  return new Analysis(catalog).run(parsed);
}

class Analysis {
  readonly #model: Model;
  /** Tables that the transaction at hand has locked so far. */
  #touched = new Set<number>();
  readonly #reports: StatementReport[] = [];
  /** Where in the reports the transaction and its savepoints begin. */
  readonly #marks: { readonly name: string; readonly at: number }[] = [];

  constructor(catalog: Catalog) {
    this.#model = new Model(catalog);
  }

  run(parsed: readonly Parsed[]): StatementReport[] {
    for (const each of parsed) {
      const step = new Step(this.#model);
      if (each.kind === 'error') step.add('error', each.message);
      else if (each.kind === 'psql') psqlLine(each.part, step);
      else this.#statement(each.node, each.part, step);
      if (step.consequences.length === 0) step.add('none', NOTHING);
      this.#reports.push({
        line: each.kind === 'error' ? each.line : each.part.line,
        statement: oneLine(each.part.text),
        effect: worstEffect(step.consequences.map(({ effect }) => effect)),
        consequences: step.consequences,
      });
    }
    return this.#reports;
  }

  /** What a rollback takes back had no effect; that it would be refused, or is no SQL, stays true. */
  #takeBack(from: number): void {
    for (let index = from; index < this.#reports.length; index++) {
      const report = this.#reports[index]!;
      if (report.effect === 'none' || report.effect === 'refused' || report.effect === 'error') continue;
      this.#reports[index] = {
        ...report,
        effect: 'none',
        consequences: [{ effect: 'none', says: 'is taken back by the ROLLBACK below' }],
      };
    }
  }

  #statement(node: Node, part: FilePart, step: Step): void {
    if ('TransactionStmt' in node) {
      this.#transaction(node.TransactionStmt, step);
      return;
    }
    guard(node, step);
    apply(node, part, step);
    for (const id of step.touched) this.#touched.add(id);
    step.settle(this.#touched);
    if (!this.#model.isInTransaction) this.#touched = new Set();
    this.#model.endStatement();
  }

  #transaction({ kind, savepoint_name: name }: TransactionStmt, step: Step): void {
    const model = this.#model;
    const mark = (at: string): number => this.#marks.push({ name: at, at: this.#reports.length });
    switch (kind) {
      case 'TRANS_STMT_BEGIN':
      case 'TRANS_STMT_START':
        if (model.isInTransaction) return;
        model.begin();
        mark('');
        return;
      case 'TRANS_STMT_SAVEPOINT':
        model.savepoint(name ?? '');
        mark(name ?? '');
        return;
      case 'TRANS_STMT_ROLLBACK_TO':
        if (model.rollback(name ?? ''))
          this.#takeBack(this.#marks.findLast((each) => each.name === name)?.at ?? 0);
        return;
      case 'TRANS_STMT_ROLLBACK':
        if (model.isInTransaction) this.#takeBack(this.#marks[0]?.at ?? 0);
        model.rollback(null);
        this.#end();
        return;
      case 'TRANS_STMT_PREPARE':
        step.add('none', 'nothing of it reaches the replicas before COMMIT PREPARED');
        model.commit();
        this.#end();
        return;
      case 'TRANS_STMT_COMMIT':
        model.commit();
        this.#end();
        return;
      default:
        return;
    }
  }

  #end(): void {
    this.#touched = new Set();
    this.#marks.length = 0;
  }
}

function apply(node: Node, part: FilePart, step: Step): void {
  const { model } = step;
  if ('AlterTableStmt' in node) alterTable(node.AlterTableStmt, step);
  else if ('CreateStmt' in node) createTable(node.CreateStmt, step);
  else if ('CreateTableAsStmt' in node)
    createTableAs(node.CreateTableAsStmt.into, step, node.CreateTableAsStmt);
  else if ('ViewStmt' in node) createView(node.ViewStmt, step);
  else if ('IndexStmt' in node) createIndex(node.IndexStmt, step);
  else if ('DropStmt' in node) drop(node.DropStmt, step);
  else if ('RenameStmt' in node) rename(node.RenameStmt, step);
  else if ('AlterObjectSchemaStmt' in node) setSchema(node.AlterObjectSchemaStmt, step);
  else if ('AlterPublicationStmt' in node) alterPublication(node.AlterPublicationStmt, step);
  else if ('TruncateStmt' in node) truncate(node.TruncateStmt, step);
  else if ('CopyStmt' in node) copyRows(node.CopyStmt, part.copyRows, step);
  else if ('InsertStmt' in node || 'UpdateStmt' in node || 'DeleteStmt' in node || 'MergeStmt' in node)
    writeRows(node, step);
  else if ('SelectStmt' in node) select(node, step);
  else if ('VariableSetStmt' in node) setVariable(node.VariableSetStmt, step);
  else if ('CreateSchemaStmt' in node) {
    model.state.schemas.add(node.CreateSchemaStmt.schemaname ?? '');
    const path = model.state.searchPath;
    model.state.searchPath = [node.CreateSchemaStmt.schemaname ?? '', ...path];
    for (const element of node.CreateSchemaStmt.schemaElts ?? []) apply(element, part, step);
    model.state.searchPath = path;
  } else if ('CreateDomainStmt' in node) createDomain(node.CreateDomainStmt, step);
  else if ('CreateEnumStmt' in node) createType(node.CreateEnumStmt.typeName, 'enum', step);
  else if ('CreateRangeStmt' in node) createType(node.CreateRangeStmt.typeName, 'other', step);
  else if ('CompositeTypeStmt' in node) {
    const { schemaname, relname = '' } = node.CompositeTypeStmt.typevar ?? {};
    const names = [...(schemaname === undefined ? [] : [schemaname]), relname];
    createType(
      names.map((sval) => ({ String: { sval } })),
      'other',
      step,
      node.CompositeTypeStmt.coldeflist,
    );
  } else if ('AlterEnumStmt' in node) alterEnum(node, step);
  else if ('AlterDomainStmt' in node) alterDomain(node, step);
  else if ('CreatePublicationStmt' in node) createPublication(node, step);
  else if ('AlterEventTrigStmt' in node) alterEventTrigger(node, step);
  else if ('VacuumStmt' in node || 'ClusterStmt' in node) rewriteInPlace(node, step);
  else if ('AlterTableMoveAllStmt' in node)
    step.add('opaque', 'every table that moves to another tablespace is read again');
  else if ('CreateFunctionStmt' in node) createFunction(node, step);
  else if ('DoStmt' in node)
    step.add('opaque', 'a DO block cannot be looked into: what it runs is followed like any other statement');
  else if ('CallStmt' in node)
    step.add(
      'opaque',
      'a procedure cannot be looked into: what it runs is followed like any other statement',
    );
  else if ('ExecuteStmt' in node) step.add('opaque', 'what was prepared cannot be looked into');
  else if ('CreateExtensionStmt' in node)
    step.add(
      'opaque',
      `tables that the extension ${node.CreateExtensionStmt.extname} makes appear in the replicas`,
    );
  else if ('AlterExtensionStmt' in node)
    step.add('opaque', 'what the update of the extension does is followed like any other statement');
  else if ('DropOwnedStmt' in node || 'ReassignOwnedStmt' in node)
    step.add('opaque', 'which objects these are, only the server knows');
}

function psqlLine(part: FilePart, step: Step): void {
  const isInclude = /^\\(i|ir|include|include_relative)\b/.test(part.text);
  step.add(
    isInclude ? 'opaque' : 'none',
    isInclude
      ? 'a command of psql, which is ignored: look at that file by itself'
      : 'a command of psql, which is ignored here',
  );
}

function select(node: Extract<Node, { SelectStmt: unknown }>, step: Step): void {
  if (node.SelectStmt.intoClause !== undefined) createTableAs(node.SelectStmt.intoClause, step);
  writeRows(node, step);
  const called = callsUserFunctions(node, step);
  if (called.length > 0) step.add('opaque', `calls ${called.join(', ')}, which cannot be looked into`);
}

function setVariable(statement: VariableSetStmt, step: Step): void {
  const { state } = step.model;
  const values = (statement.args ?? []).map(stringOf);
  if (statement.name === 'search_path') state.searchPath = parseSearchPath(values.join(','), 'public');
  if (statement.name === 'timezone') state.timeZone = values[0] ?? 'UTC';
  if (statement.name === 'event_triggers' && values[0] !== 'on' && values[0] !== 'true') {
    state.isAnnounced = false;
    step.add('dangerous', 'without event triggers schema changes are noticed late');
  }
}

function alterEnum(node: Extract<Node, { AlterEnumStmt: unknown }>, step: Step): void {
  const { oldVal, newVal, typeName } = node.AlterEnumStmt;
  step.changeAll();
  const key = qualified(typeName, step);
  const type = step.model.state.types.get(key);
  if (oldVal === undefined || type === undefined) return;
  step.model.state.types.set(key, {
    ...type,
    parts: [...type.parts.slice(1), `label ${step.model.newId()} ${newVal}`],
  });
  for (const table of step.model.tablesWithType(key))
    step.because(table, `rows with '${oldVal}' say '${newVal}' now`);
}

function alterDomain(node: Extract<Node, { AlterDomainStmt: unknown }>, step: Step): void {
  const { subtype, typeName } = node.AlterDomainStmt;
  step.changeAll();
  const key = qualified(typeName, step);
  const type = step.model.state.types.get(key);
  // C: ADD CONSTRAINT, O: SET NOT NULL, T: SET or DROP DEFAULT
  if (type === undefined) return;
  step.model.state.types.set(key, {
    ...type,
    hasConstraints: type.hasConstraints || subtype === 'C' || subtype === 'O',
    hasDefault: subtype === 'T' ? node.AlterDomainStmt.def !== undefined : type.hasDefault,
  });
}

function createPublication(node: Extract<Node, { CreatePublicationStmt: unknown }>, step: Step): void {
  const { pubname = '', for_all_tables: isAll, pubobjects = [] } = node.CreatePublicationStmt;
  const { state } = step.model;
  if (state.publication !== null) return;
  state.publication = newPublication(pubname, isAll === true);
  alterPublication({ pubname, pubobjects, action: 'AP_AddObjects' }, step);
}

function alterEventTrigger(node: Extract<Node, { AlterEventTrigStmt: unknown }>, step: Step): void {
  const { trigname = '', tgenabled } = node.AlterEventTrigStmt;
  if (!/^_rivulet_/.test(trigname) || tgenabled === 'A' || tgenabled === 'O') return;
  step.model.state.isAnnounced = false;
  step.add(
    'dangerous',
    `the event trigger ${trigname} announces schema changes: without it they are noticed late`,
  );
}

/** VACUUM FULL and CLUSTER: the same rows in another file, and no event trigger. */
function rewriteInPlace(
  node: Extract<Node, { VacuumStmt: unknown } | { ClusterStmt: unknown }>,
  step: Step,
): void {
  const isFull =
    'ClusterStmt' in node ||
    (node.VacuumStmt.options ?? []).some(
      (option) =>
        'DefElem' in option &&
        option.DefElem.defname === 'full' &&
        (option.DefElem.arg === undefined || !['false', 'off', '0'].includes(stringOf(option.DefElem.arg))),
    );
  if (!isFull) return;
  const names =
    'ClusterStmt' in node
      ? [node.ClusterStmt.relation]
      : (node.VacuumStmt.rels ?? []).map((rel) =>
          'VacuumRelation' in rel ? rel.VacuumRelation.relation : undefined,
        );
  const { model } = step;
  const named = names
    .flatMap((name) => (name === undefined ? [] : [step.find(name)]))
    .filter((table) => table !== null);
  const tables = named.length > 0 ? named : [...model.state.tables.values()];
  const roots = new Set<ModelTable>();
  for (const table of tables) {
    for (const member of model.family(table, false)) {
      if (member.kind !== 'table') continue;
      member.file = model.newId();
      const mirror = model.mirrorOf(member);
      if (mirror !== null && mirror !== member) roots.add(mirror);
    }
  }
  for (const root of roots) step.addUnsent(root, 'a partition with a new file looks as after a TRUNCATE');
}

function createFunction(node: Extract<Node, { CreateFunctionStmt: unknown }>, step: Step): void {
  const { funcname, options } = node.CreateFunctionStmt;
  const name = stringOf(funcname?.at(-1) ?? { String: { sval: '' } });
  const volatility = (options ?? []).flatMap((option) =>
    'DefElem' in option && option.DefElem.defname === 'volatility' && option.DefElem.arg !== undefined
      ? [stringOf(option.DefElem.arg)]
      : [],
  )[0];
  step.model.state.functions.set(name, volatility === undefined || volatility === 'volatile');
  step.add(
    'none',
    'functions are not mirrored, and what they do when called is followed like any other statement',
  );
}

function oneLine(text: string): string {
  const line = text.replaceAll(/\s+/g, ' ').trim();
  return line.length > MAX_STATEMENT_CHARACTERS ? `${line.slice(0, MAX_STATEMENT_CHARACTERS - 1)}…` : line;
}
