import type { AlterObjectSchemaStmt, DropStmt, Node, RangeVar, RenameStmt } from 'libpg-query';
import { dropColumn } from './alter-table.ts';
import type { ModelTable } from './catalog-state.ts';
import { qualified } from './create.ts';
import type { Step } from './step.ts';
import { stringOf, typeKey } from './types.ts';

export function drop(statement: DropStmt, step: Step): void {
  const missingOk = statement.missing_ok === true;
  const isCascade = statement.behavior === 'DROP_CASCADE';
  for (const object of statement.objects ?? []) {
    const names = namesOf(object);
    switch (statement.removeType) {
      case 'OBJECT_TABLE':
      case 'OBJECT_FOREIGN_TABLE':
      case 'OBJECT_VIEW':
      case 'OBJECT_MATVIEW':
      case 'OBJECT_SEQUENCE': {
        const table = step.find(rangeVar(names), missingOk);
        if (table !== null) dropTable(table, step);
        break;
      }
      case 'OBJECT_INDEX': {
        const found = step.model.findIndex(names.at(-2) ?? null, names.at(-1)!);
        if (found === null) break;
        step.change(found.table);
        found.table.indexes = found.table.indexes.filter((index) => index !== found.index);
        break;
      }
      case 'OBJECT_SCHEMA':
        dropSchema(names[0]!, step);
        break;
      case 'OBJECT_TYPE':
      case 'OBJECT_DOMAIN':
        dropType('TypeName' in object ? (object.TypeName.names ?? []) : [object], isCascade, step);
        break;
      case 'OBJECT_PUBLICATION':
        dropPublication(names[0]!, step);
        break;
      case 'OBJECT_EVENT_TRIGGER':
        if (/^_rivulet_/.test(names[0]!)) {
          step.model.state.isAnnounced = false;
          step.add(
            'dangerous',
            `the event trigger ${names[0]} announces schema changes: without it they are noticed late`,
          );
        }
        break;
      case 'OBJECT_EXTENSION':
        step.add('opaque', `what the extension ${names[0]} made goes with it`);
        break;
      default:
        break;
    }
  }
}

function dropTable(table: ModelTable, step: Step): void {
  const { model } = step;
  const members = model.family(table);
  step.change(...members);
  if (table.partitionOf !== null) step.because(table, 'a partition goes, with its rows');
  for (const member of members) model.state.tables.delete(member.id);
}

function dropSchema(name: string, step: Step): void {
  if (name === 'rivulet') {
    step.model.state.isAnnounced = false;
    step.add(
      'dangerous',
      'the schema rivulet holds what follows schema changes and what teardown puts back; use `rivulet teardown` to take it away',
    );
    return;
  }
  const { state } = step.model;
  state.schemas.delete(name);
  for (const table of [...state.tables.values()]) if (table.schema === name) dropTable(table, step);
  for (const key of [...state.types.keys()]) if (key.startsWith(`${name}.`)) dropType([], true, step, key);
}

/** CASCADE takes the columns of that type with it. */
function dropType(
  names: readonly Node[],
  isCascade: boolean,
  step: Step,
  key = qualified(names, step),
): void {
  const { model } = step;
  if (isCascade) {
    for (const table of model.tablesWithType(key)) {
      step.change(table);
      for (const column of table.columns) if (typeKey(column.type) === key) dropColumn(table, column.name);
    }
  }
  model.state.types.delete(key);
}

function dropPublication(name: string, step: Step): void {
  if (name !== step.model.state.publication?.name) return;
  step.model.state.publication = null;
  step.model.state.known.clear();
  step.add(
    'rebuild',
    `the publication ${name} is what replicas follow: one that set-up made is made anew, one of your own is waited for`,
  );
}

export function rename(statement: RenameStmt, step: Step): void {
  const { model } = step;
  const to = statement.newname ?? '';
  switch (statement.renameType) {
    case 'OBJECT_TABLE':
    case 'OBJECT_VIEW':
    case 'OBJECT_MATVIEW':
    case 'OBJECT_FOREIGN_TABLE':
    case 'OBJECT_SEQUENCE': {
      const index =
        statement.relation === undefined
          ? null
          : model.findIndex(statement.relation.schemaname ?? null, statement.relation.relname ?? '');
      if (index !== null) return;
      const table = step.find(statement.relation, statement.missing_ok);
      if (table === null) return;
      if (statement.renameType === 'OBJECT_TABLE') step.change(table);
      table.name = to;
      return;
    }
    case 'OBJECT_COLUMN': {
      const table = step.find(statement.relation, statement.missing_ok);
      if (table === null) return;
      const members = model.family(table);
      step.change(...members);
      for (const member of members) renameColumn(member, statement.subname ?? '', to);
      return;
    }
    case 'OBJECT_TABCONSTRAINT': {
      const table = step.find(statement.relation, statement.missing_ok);
      if (table === null) return;
      step.change(table);
      if (table.key?.name === statement.subname) table.key = { ...table.key!, name: to };
      renameIndex(table, statement.subname ?? '', to);
      return;
    }
    case 'OBJECT_INDEX': {
      const found = model.findIndex(
        statement.relation?.schemaname ?? null,
        statement.relation?.relname ?? '',
      );
      if (found === null) return;
      step.change(found.table);
      found.index.name = to;
      return;
    }
    case 'OBJECT_SCHEMA': {
      renameSchema(statement.subname ?? '', to, step);
      return;
    }
    case 'OBJECT_TYPE':
    case 'OBJECT_DOMAIN': {
      const names =
        statement.object !== undefined && 'List' in statement.object
          ? statement.object.List.items
          : undefined;
      const from = qualified(names, step);
      moveType(from, `${from.slice(0, from.lastIndexOf('.'))}.${to}`, step);
      return;
    }
    case 'OBJECT_PUBLICATION':
      if (statement.object === undefined || stringOf(statement.object) !== model.state.publication?.name)
        return;
      step.add(
        'rebuild',
        'the publication is found by its name: one that set-up made is made anew, one of your own is waited for',
      );
      return;
    default:
      return;
  }
}

function renameColumn(table: ModelTable, from: string, to: string): void {
  for (const column of table.columns) if (column.name === from) column.name = to;
  const renamed = (names: readonly string[]): string[] => names.map((name) => (name === from ? to : name));
  if (table.key !== null) table.key = { ...table.key, columns: renamed(table.key.columns) };
  table.indexes = table.indexes.map((index) => ({ ...index, columns: renamed(index.columns) }));
}

function renameIndex(table: ModelTable, from: string, to: string): void {
  for (const index of table.indexes) if (index.name === from) index.name = to;
}

function renameSchema(from: string, to: string, step: Step): void {
  const { state } = step.model;
  if (from === 'rivulet') {
    step.add('dangerous', "the schema rivulet is Rivulet's own and is found by its name");
    return;
  }
  step.changeAll();
  state.schemas.delete(from);
  state.schemas.add(to);
  for (const table of state.tables.values()) if (table.schema === from) table.schema = to;
  for (const key of [...state.types.keys()])
    if (key.startsWith(`${from}.`)) moveType(key, `${to}${key.slice(from.length)}`, step);
}

/** A type keeps its OID, so columns of it stay what they are. */
function moveType(from: string, to: string, step: Step): void {
  const { state } = step.model;
  const type = state.types.get(from);
  if (type === undefined) return;
  step.changeAll();
  state.types.delete(from);
  state.types.set(to, type);
  step.model.renameType(from, to);
  const at = to.lastIndexOf('.');
  const [schema, name] = [to.slice(0, at), to.slice(at + 1)];
  for (const table of state.tables.values())
    for (const column of table.columns)
      if (typeKey(column.type) === from) column.type = { ...column.type, schema, name };
}

export function setSchema(statement: AlterObjectSchemaStmt, step: Step): void {
  const schema = statement.newschema ?? '';
  if (statement.objectType === 'OBJECT_TYPE' || statement.objectType === 'OBJECT_DOMAIN') {
    const names =
      statement.object !== undefined && 'List' in statement.object ? statement.object.List.items : undefined;
    const from = qualified(names, step);
    moveType(from, `${schema}.${from.slice(from.lastIndexOf('.') + 1)}`, step);
    return;
  }
  if (statement.relation === undefined) return;
  const table = step.find(statement.relation, statement.missing_ok);
  if (table === null) return;
  if (statement.objectType === 'OBJECT_TABLE') step.change(table);
  table.schema = schema;
  if (step.model.mirrorOf(table) === null && schema === 'rivulet')
    step.add('dangerous', 'tables of the schema rivulet are not mirrored', table);
}

function namesOf(object: Node): string[] {
  if ('List' in object) return (object.List.items ?? []).map(stringOf);
  if ('TypeName' in object) return (object.TypeName.names ?? []).map(stringOf);
  return [stringOf(object)];
}

function rangeVar(names: readonly string[]): RangeVar {
  return names.length > 1 ? { schemaname: names.at(-2)!, relname: names.at(-1)! } : { relname: names[0]! };
}
