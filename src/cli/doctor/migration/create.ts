import type {
  CreateDomainStmt,
  CreateStmt,
  CreateTableAsStmt,
  IndexStmt,
  IntoClause,
  Node,
  TableLikeClause,
  ViewStmt,
} from 'libpg-query';
import { addConstraint, constraintsOf, newColumn } from './alter-table.ts';
import type { ModelTable } from './catalog-state.ts';
import { partitionKey, partitionValues } from './partition.ts';
import { addRows } from './rows.ts';
import type { Step } from './step.ts';
import { stringOf, typeKey } from './types.ts';

export function createTable(statement: CreateStmt, step: Step): void {
  const { model } = step;
  const { relation } = statement;
  const schema = relation?.schemaname ?? model.creationSchema();
  const name = relation?.relname ?? '';
  const existing = model.lookUp(schema, name);
  if (existing !== null) {
    step.add(statement.if_not_exists === true ? 'none' : 'refused', 'is there already', existing);
    return;
  }
  const persistence =
    schema === 'pg_temp' || relation?.relpersistence === 't'
      ? 't'
      : relation?.relpersistence === 'u'
        ? 'u'
        : 'p';
  const parents = (statement.inhRelations ?? []).flatMap((node) => {
    const parent = 'RangeVar' in node ? step.find(node.RangeVar) : null;
    return parent === null ? [] : [parent];
  });
  const isPartition = statement.partbound !== undefined;
  const table = model.add({
    schema,
    name,
    kind: statement.partspec === undefined ? 'table' : 'partitioned',
    persistence,
    partitionOf: isPartition ? (parents[0]?.id ?? null) : null,
    partitionValues: partitionValues(statement.partbound),
    partitionKey: partitionKey(statement),
    inherits: isPartition ? [] : parents.map(({ id }) => id),
    // Of a typed table only the type knows them.
    hasKnownColumns: statement.ofTypename === undefined,
  });
  for (const parent of parents) {
    table.columns.push(...parent.columns.map((column) => ({ ...column, missing: 'no' as const })));
    if (!parent.hasKnownColumns) table.hasKnownColumns = false;
    if (isPartition && parent.key !== null) table.key = { ...parent.key, name: `${name}_pkey` };
  }
  for (const node of statement.tableElts ?? []) addElement(node, table, step);
  step.change(table, ...(isPartition ? parents : []));
  describeNew(table, step);
}

function addElement(node: Node, table: ModelTable, step: Step): void {
  if ('ColumnDef' in node) {
    const { column } = newColumn(node.ColumnDef, step);
    // A column of a parent's that is named again is the parent's.
    if (!table.columns.some((each) => each.name === column.name)) table.columns.push(column);
    for (const constraint of constraintsOf(node.ColumnDef))
      addConstraint(table, constraint, [column.name], step);
  } else if ('Constraint' in node) addConstraint(table, node.Constraint, [], step);
  else if ('TableLikeClause' in node) copyFrom(node.TableLikeClause, table, step);
}

/** Bits of TableLikeClause.options, from src/include/nodes/parsenodes.h. */
const LIKE_GENERATED = 1 << 3;
const LIKE_INDEXES = 1 << 5;

function copyFrom(clause: TableLikeClause, table: ModelTable, step: Step): void {
  const source = step.find(clause.relation);
  if (source === null) return;
  const options = clause.options ?? 0;
  if (!source.hasKnownColumns) table.hasKnownColumns = false;
  for (const column of source.columns) {
    const generated = (options & LIKE_GENERATED) === 0 ? '' : column.generated;
    table.columns.push({ ...column, attnum: step.model.newId(), generated, missing: 'no' as const });
  }
  if ((options & LIKE_INDEXES) === 0) return;
  if (source.key !== null) table.key = { ...source.key, name: `${table.name}_pkey` };
  table.indexes.push(
    ...source.indexes.map((index) => ({
      ...index,
      id: step.model.newId(),
      name: `${table.name}_${index.name}`,
    })),
  );
}

/** CREATE TABLE AS, SELECT INTO, CREATE MATERIALIZED VIEW. */
export function createTableAs(into: IntoClause | undefined, step: Step, statement?: CreateTableAsStmt): void {
  const { model } = step;
  const relation = into?.rel;
  const schema = relation?.schemaname ?? model.creationSchema();
  const name = relation?.relname ?? '';
  const existing = model.lookUp(schema, name);
  if (existing !== null) {
    step.add(statement?.if_not_exists === true ? 'none' : 'refused', 'is there already', existing);
    return;
  }
  const isView = statement?.objtype === 'OBJECT_MATVIEW';
  const table = model.add({
    schema,
    name,
    kind: isView ? 'materialized view' : 'table',
    persistence: relation?.relpersistence === 't' ? 't' : relation?.relpersistence === 'u' ? 'u' : 'p',
    hasKnownColumns: false,
    rows: into?.skipData === true ? 0 : null,
  });
  if (isView) {
    step.add('none', 'materialized views are not mirrored', table);
    return;
  }
  if (into?.skipData !== true) addRows(table, null, step);
  step.change(table);
  describeNew(table, step);
  if (into?.skipData === true || model.mirrorOf(table) === null) return;
  if (model.state.publication?.isKept === true)
    step.addUnsent(table, 'its rows are there before the publication names it');
  else step.add('rows', 'gets its rows by the stream', table, null);
}

/** Views are only known so that nobody takes them for missing tables. */
export function createView(statement: ViewStmt, step: Step): void {
  const { schemaname, relname = '', relpersistence } = statement.view ?? {};
  const schema = schemaname ?? step.model.creationSchema();
  if (step.model.lookUp(schema, relname) !== null) return;
  step.model.add({ schema, name: relname, kind: 'view', persistence: relpersistence === 't' ? 't' : 'p' });
}

function describeNew(table: ModelTable, step: Step): void {
  const { model } = step;
  if (model.mirrorOf(table) !== null) return;
  if (table.persistence === 't') step.add('none', 'temporary tables are not mirrored', table);
  else if (table.persistence === 'u')
    step.add('none', 'unlogged tables are not mirrored: they are not in the WAL', table);
  else if (table.schema === 'rivulet') step.add('dangerous', "the schema rivulet is Rivulet's own", table);
  else
    step.add(
      'unseen',
      'is not mirrored: the publication names its tables one by one (`rivulet setup --tables …` adds it)',
      table,
    );
}

export function createIndex(statement: IndexStmt, step: Step): void {
  const table = step.find(statement.relation);
  if (table === null) return;
  step.change(table);
  const elements = (statement.indexParams ?? []).flatMap((node) =>
    'IndexElem' in node ? [node.IndexElem] : [],
  );
  const columns = elements.flatMap(({ name }) => (name === undefined ? [] : [name]));
  const method = statement.accessMethod ?? 'btree';
  const reason =
    method !== 'btree'
      ? method
      : statement.whereClause !== undefined
        ? 'partial'
        : columns.length < elements.length
          ? 'of an expression'
          : null;
  table.indexes.push({
    id: step.model.newId(),
    name: statement.idxname ?? `${table.name}_${columns.join('_')}_idx`,
    columns,
    isUnique: statement.unique === true,
    isExpressible: reason === null,
  });
  if (reason !== null && step.model.mirrorOf(table) !== null)
    step.add('none', `the index is not made in SQLite: ${reason}`, table);
}

export function createDomain(statement: CreateDomainStmt, step: Step): void {
  const base = step.model.resolveType(statement.typeName);
  if (base === null) return;
  const constraints = (statement.constraints ?? []).flatMap((node) =>
    'Constraint' in node ? [node.Constraint] : [],
  );
  const inherited = step.model.state.types.get(typeKey(base));
  const has = (...kinds: readonly string[]): boolean =>
    constraints.some(({ contype }) => kinds.includes(contype ?? ''));
  step.model.state.types.set(qualified(statement.domainname, step), {
    kind: 'domain',
    base,
    hasConstraints: has('CONSTR_NOTNULL', 'CONSTR_CHECK') || inherited?.hasConstraints === true,
    hasDefault: has('CONSTR_DEFAULT') || inherited?.hasDefault === true,
    parts: [],
    attributes: [],
  });
}

/** CREATE TYPE of every kind: to the replicas all of them are text. */
export function createType(
  names: readonly Node[] | undefined,
  kind: 'enum' | 'other',
  step: Step,
  attributes: readonly Node[] = [],
): void {
  const types = attributes.flatMap((node) => {
    const type = 'ColumnDef' in node ? step.model.resolveType(node.ColumnDef.typeName) : null;
    return type === null ? [] : [type];
  });
  step.model.state.types.set(qualified(names, step), {
    kind,
    base: null,
    hasConstraints: false,
    hasDefault: false,
    // Which one changes does not matter, as long as something does.
    parts: kind === 'enum' || types.length > 0 ? [`part ${step.model.newId()}`] : [],
    attributes: types,
  });
}

/** `schema.name` of a type, as the model keeps it. */
export function qualified(names: readonly Node[] | undefined, step: Step): string {
  const parts = (names ?? []).map(stringOf);
  const name = parts.at(-1) ?? '';
  const { state } = step.model;
  const known = state.searchPath.find((schema) => state.types.has(typeKey({ schema, name })));
  return typeKey({ schema: parts.length > 1 ? parts.at(-2)! : (known ?? step.model.creationSchema()), name });
}
