import type { AlterTableCmd, AlterTableStmt, ColumnDef, Constraint, Node } from 'libpg-query';
import type { ModelColumn, ModelTable } from './catalog-state.ts';
import { partitionValues } from './partition.ts';
import { calledFunctions, type Step } from './step.ts';
import { rewriteReason } from './type-change.ts';
import { builtin, describeType, mappingOf, SERIALS, typeKey } from './types.ts';

/** ALTER TABLE, one subcommand after the other. https://www.postgresql.org/docs/current/sql-altertable.html */
export function alterTable(statement: AlterTableStmt, step: Step): void {
  const { relation } = statement;
  if (statement.objtype === 'OBJECT_TYPE') {
    alterComposite(statement, step);
    return;
  }
  if (statement.objtype === 'OBJECT_INDEX') {
    // Storage parameters, partitions of indexes: nothing that SQLite has.
    step.add('none', 'indexes keep their columns');
    return;
  }
  const table = step.find(relation, statement.missing_ok);
  if (table === null) return;
  if (table.kind !== 'table' && table.kind !== 'partitioned') {
    step.add('none', `a ${table.kind} is not mirrored`, table);
    return;
  }
  const members = relation?.inh === true ? step.model.family(table) : [table];
  step.change(...members);
  for (const node of statement.cmds ?? []) {
    if ('AlterTableCmd' in node) alterPart(node.AlterTableCmd, table, members, step);
  }
}

function alterPart(
  command: AlterTableCmd,
  table: ModelTable,
  members: readonly ModelTable[],
  step: Step,
): void {
  const name = command.name ?? '';
  switch (command.subtype) {
    case 'AT_AddColumn':
      if (command.def !== undefined && 'ColumnDef' in command.def)
        addColumn(command.def.ColumnDef, command.missing_ok === true, members, step);
      return;
    case 'AT_DropColumn':
      for (const member of members) dropColumn(member, name);
      return;
    case 'AT_AlterColumnType':
      if (command.def !== undefined && 'ColumnDef' in command.def)
        for (const member of members) alterType(member, name, command.def.ColumnDef, step);
      return;
    case 'AT_SetExpression':
      for (const member of members) {
        if (column(member, name)?.generated !== 'v')
          step.rewrite(member, `the column ${name} is computed anew`);
      }
      return;
    case 'AT_DropExpression': {
      dropExpression(members, name, step);
      return;
    }
    case 'AT_SetLogged':
    case 'AT_SetUnLogged': {
      const persistence = command.subtype === 'AT_SetLogged' ? 'p' : 'u';
      if (table.persistence === persistence) return;
      const { publication, isAnnounced } = step.model.state;
      const isNamed = publication?.tables.has(table.id) === true;
      if (persistence === 'u' && isNamed && !(publication.isOurs && isAnnounced)) {
        step.add('refused', 'Postgres refuses it for a table that is named in a publication', table);
        return;
      }
      table.persistence = persistence;
      step.rewrite(table, 'it was not in the WAL before');
      return;
    }
    case 'AT_SetTableSpace':
      // The same rows in another file, and no rewrite to event triggers.
      if (table.kind === 'table') table.file = step.model.newId();
      return;
    case 'AT_SetAccessMethod': {
      step.rewrite(table, 'another access method writes it anew');
      return;
    }
    case 'AT_AddConstraint':
      if (command.def !== undefined && 'Constraint' in command.def)
        for (const member of members) addConstraint(member, command.def.Constraint, [], step);
      return;
    case 'AT_DropConstraint':
      for (const member of members) dropConstraint(member, name);
      return;
    case 'AT_ReplicaIdentity': {
      const definition =
        command.def !== undefined && 'ReplicaIdentityStmt' in command.def
          ? command.def.ReplicaIdentityStmt
          : {};
      table.identity = definition.identity_type ?? 'd';
      table.identityIndex = definition.name ?? null;
      return;
    }
    case 'AT_AttachPartition':
    case 'AT_DetachPartition': {
      movePartition(command, table, step);
      return;
    }
    case 'AT_AddInherit':
    case 'AT_DropInherit': {
      const parent =
        command.def !== undefined && 'RangeVar' in command.def ? step.find(command.def.RangeVar) : null;
      if (parent === null) return;
      const at = table.inherits.indexOf(parent.id);
      if (command.subtype === 'AT_AddInherit') table.inherits.push(parent.id);
      else if (at >= 0) table.inherits.splice(at, 1);
      return;
    }
    case 'AT_EnableRowSecurity':
    case 'AT_ForceRowSecurity':
      step.add(
        'none',
        'rows are then hidden from new copies: give the user BYPASSRLS if it is neither owner nor superuser',
        table,
      );
      return;
    default:
      return;
  }
}

function column(table: ModelTable, name: string): ModelColumn | undefined {
  return table.columns.find((each) => each.name === name);
}

function addColumn(
  definition: ColumnDef,
  missingOk: boolean,
  members: readonly ModelTable[],
  step: Step,
): void {
  const name = definition.colname ?? '';
  for (const member of members) {
    if (member.hasKnownColumns && column(member, name) !== undefined) {
      if (member === members[0])
        step.add(missingOk ? 'none' : 'refused', `the column ${name} is there already`, member);
      continue;
    }
    const added = newColumn(definition, step);
    member.columns.push(added.column);
    if (added.rewrites !== null) step.rewrite(member, added.rewrites);
    else if (added.hasDefault && added.column.generated === '') {
      // The hooks read it as an array's text, whose delimiter is a comma for all types but box.
      added.column.missing = added.column.type.name === 'box' ? 'untold' : 'told';
      step.because(
        member,
        `older rows take the default of ${name} from the catalog, in a form that cannot be read there`,
      );
    }
    for (const constraint of constraintsOf(definition)) addConstraint(member, constraint, [name], step);
  }
}

/** A column as ADD COLUMN and CREATE TABLE define it. */
export function newColumn(
  definition: ColumnDef,
  step: Step,
): { column: ModelColumn; hasDefault: boolean; rewrites: string | null } {
  const { model } = step;
  const constraints = constraintsOf(definition);
  const named = model.resolveType(definition.typeName) ?? builtin('text');
  const serial = named.isArray ? undefined : SERIALS[named.name];
  const type = serial === undefined ? named : builtin(serial);
  const name = definition.colname ?? '';
  const generated = constraints.find(({ contype }) => contype === 'CONSTR_GENERATED');
  const isIdentity = constraints.some(({ contype }) => contype === 'CONSTR_IDENTITY');
  const expression = constraints.find(({ contype }) => contype === 'CONSTR_DEFAULT')?.raw_expr;
  const userType = type.isArray ? undefined : model.state.types.get(typeKey(type));
  const made: ModelColumn = {
    attnum: model.newId(),
    name,
    type,
    generated: generated === undefined ? '' : generated.generated_kind === 'v' ? 'v' : 's',
    missing: 'no',
  };
  const isVolatile =
    serial !== undefined ||
    isIdentity ||
    (expression !== undefined &&
      calledFunctions(expression).some(
        (each) => model.state.functions.get(each) ?? model.catalog.isVolatile(each),
      ));
  const rewrites =
    made.generated === 's'
      ? `the generated column ${name} is computed for every row`
      : isVolatile
        ? `every row gets a value of its own for ${name}`
        : userType?.hasConstraints === true && made.generated === ''
          ? `the constraints of the domain of ${name} are checked by a rewrite`
          : null;
  const hasDefault = expression === undefined ? userType?.hasDefault === true : !isNull(expression);
  return { column: made, hasDefault, rewrites };
}

export function constraintsOf(definition: ColumnDef): Constraint[] {
  return (definition.constraints ?? []).flatMap((node) => ('Constraint' in node ? [node.Constraint] : []));
}

function isNull(node: Node): boolean {
  if ('TypeCast' in node) return node.TypeCast.arg !== undefined && isNull(node.TypeCast.arg);
  return 'A_Const' in node && (node.A_Const as { isnull?: boolean }).isnull === true;
}

export function dropColumn(table: ModelTable, name: string): void {
  table.columns = table.columns.filter((each) => each.name !== name);
  if (table.key?.columns.includes(name) === true) table.key = null;
  table.indexes = table.indexes.filter(({ columns }) => !columns.includes(name));
}

function alterType(table: ModelTable, name: string, definition: ColumnDef, step: Step): void {
  const { model } = step;
  const to = model.resolveType(definition.typeName);
  const found = column(table, name);
  if (to === null) return;
  if (found === undefined) {
    if (table.hasKnownColumns) step.add('refused', `there is no column ${name}`, table);
    else
      step.rewrite(
        table,
        `${name} becomes ${describeType(to)}, from a type that cannot be known without --postgres`,
      );
    return;
  }
  const { state, catalog } = model;
  const from = found.type;
  const reason = rewriteReason(found, to, definition.raw_default ?? null, {
    userTypes: state.types,
    binaryCasts: catalog.binaryCasts,
    isUtc: /^(utc|gmt|etc\/utc|etc\/gmt|zulu|uct|0)$/i.test(state.timeZone),
    resolveType: (node) => ('TypeName' in node ? model.resolveType(node.TypeName) : null),
  });
  found.type = to;
  const text = `${name} turns from ${describeType(from)} into ${describeType(to)}`;
  if (reason !== null) step.rewrite(table, `${text}: ${reason}`);
  else if (JSON.stringify(mappingOf(from, state.types)) !== JSON.stringify(mappingOf(to, state.types)))
    step.because(table, `${text}, which SQLite stores in another form`);
  else step.because(table, `${text}, which prints some of the same bytes differently`);
}

function dropExpression(members: readonly ModelTable[], name: string, step: Step): void {
  for (const member of members) {
    const found = column(member, name);
    if (found === undefined || found.generated === '') continue;
    found.generated = '';
    step.because(member, `the column ${name} had not been sent before`);
  }
}

/** `columns`: of a constraint that stands behind a column. */
export function addConstraint(
  table: ModelTable,
  constraint: Constraint,
  columns: readonly string[],
  step: Step,
): void {
  const keys = (constraint.keys ?? []).flatMap((node) => ('String' in node ? [node.String.sval ?? ''] : []));
  const using = table.indexes.find(({ name }) => name === constraint.indexname);
  const names = using?.columns ?? (keys.length > 0 ? keys : columns);
  if (constraint.contype === 'CONSTR_PRIMARY') {
    const name = constraint.conname ?? using?.name ?? `${table.name}_pkey`;
    table.key = { name, columns: names, isDeferrable: constraint.deferrable === true };
    if (using !== undefined) table.indexes = table.indexes.filter((each) => each !== using);
  } else if (constraint.contype === 'CONSTR_UNIQUE') {
    if (using !== undefined) return;
    const name = constraint.conname ?? `${table.name}_${names.join('_')}_key`;
    table.indexes.push({ id: step.model.newId(), name, columns: names, isUnique: true, isExpressible: true });
  } else if (constraint.contype === 'CONSTR_FOREIGN') {
    const target = constraint.pktable === undefined ? null : step.model.find(constraint.pktable);
    if (target !== null) step.lock(target);
  }
}

function dropConstraint(table: ModelTable, name: string): void {
  if (table.key?.name === name) table.key = null;
  table.indexes = table.indexes.filter((index) => index.name !== name);
}

function movePartition(command: AlterTableCmd, root: ModelTable, step: Step): void {
  const definition =
    command.def !== undefined && 'PartitionCmd' in command.def ? command.def.PartitionCmd : {};
  const partition = step.find(definition.name);
  if (partition === null) return;
  const isAttach = command.subtype === 'AT_AttachPartition';
  step.change(...step.model.family(partition, false));
  if (!isAttach) step.because(root, 'the rows of a partition are not its own any more');
  partition.partitionOf = isAttach ? root.id : null;
  partition.partitionValues = isAttach ? partitionValues(definition.bound) : null;
  step.change(partition);
  step.isConcurrent = definition.concurrent === true;
  step.because(
    root,
    isAttach ? 'a partition brings rows with it' : 'the rows of a partition are not its own any more',
  );
  if (!isAttach) step.because(partition, 'it is a table of its own now');
  const { catalog, state } = step.model;
  if (definition.concurrent === true && state.publication?.allTables === true && catalog.version < 180_000) {
    step.add(
      'dangerous',
      'written to directly before this is through, the partition makes Postgres crash as it is sent: without CONCURRENTLY it does not',
      partition,
    );
  }
}

/** ALTER TYPE of a composite type: values that nobody touched print differently. */
function alterComposite(statement: AlterTableStmt, step: Step): void {
  const { relation } = statement;
  const { model } = step;
  const key = typeKey({
    schema: relation?.schemaname ?? model.creationSchema(),
    name: relation?.relname ?? '',
  });
  const type = model.state.types.get(key);
  step.changeAll();
  if (type === undefined) return;
  model.state.types.set(key, { ...type, parts: [...type.parts, `attribute ${model.newId()}`] });
  for (const table of model.tablesWithType(key))
    step.because(table, `values of ${relation?.relname} print differently`);
}
