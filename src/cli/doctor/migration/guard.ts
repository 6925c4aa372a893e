import type { Node } from 'libpg-query';
import { calledFunctions, collect, type Step } from './step.ts';
import { stringOf } from './types.ts';

/** Settings without which there is no logical replication. */
const VITAL_SETTINGS = new Set(['wal_level', 'max_replication_slots', 'max_wal_senders']);

/** What a statement of any kind may do to Rivulet itself: its slot, its schema, the server's settings. */
export function guard(node: Node, step: Step): void {
  const { slot } = step.model.catalog;
  for (const call of collect(node, 'FuncCall') as { funcname?: Node[]; args?: Node[] }[]) {
    const name = stringOf(call.funcname?.at(-1) ?? { String: { sval: '' } });
    const argument = call.args?.[0] === undefined ? '' : stringOf(call.args[0]);
    if (name === 'pg_drop_replication_slot' && (argument === slot || argument === ''))
      step.add(
        'rebuild',
        `the slot ${argument || 'in question'}, if it is Rivulet's, is what Postgres keeps changes by: every replica starts from a new copy`,
      );
    else if (
      [
        'pg_replication_slot_advance',
        'pg_logical_slot_get_changes',
        'pg_logical_slot_get_binary_changes',
      ].includes(name) &&
      argument === slot
    )
      step.add(
        'rebuild',
        `moves the slot ${slot} past changes that the replicator has not read: every replica starts from a new copy`,
      );
  }
  if (!('SelectStmt' in node) && writtenSchemas(node).has('rivulet'))
    step.add('dangerous', "the schema rivulet is Rivulet's own: use `rivulet setup` and `rivulet teardown`");
  if ('AlterSystemStmt' in node) {
    const { name = '', args } = node.AlterSystemStmt.setstmt ?? {};
    const value = args?.[0] === undefined ? 'its default' : stringOf(args[0]) || 'another value';
    if (VITAL_SETTINGS.has(name) && !(name === 'wal_level' && value === 'logical'))
      step.add(
        'dangerous',
        `${name} = ${value}: look that logical replication still works after the restart`,
      );
  }
  if ('DropdbStmt' in node)
    step.add(
      'dangerous',
      `the database ${node.DropdbStmt.dbname ?? ''} goes with its slot and all its tables`,
    );
  if ('AlterRoleStmt' in node) {
    const isWithout = (node.AlterRoleStmt.options ?? []).some(
      (option) =>
        'DefElem' in option &&
        option.DefElem.defname === 'isreplication' &&
        option.DefElem.arg !== undefined &&
        'Boolean' in option.DefElem.arg &&
        option.DefElem.arg.Boolean.boolval !== true,
    );
    if (isWithout) step.add('dangerous', "if it is the replicator's user, it may not replicate any more");
  }
  if ('GrantStmt' in node && node.GrantStmt.is_grant !== true)
    step.add(
      'none',
      "no change of rows; but new copies and rows read again need SELECT for the replicator's user",
    );
}

function writtenSchemas(node: Node): Set<string> {
  const named = (collect(node, 'RangeVar') as { schemaname?: string }[]).map(({ schemaname }) => schemaname);
  const targets = (collect(node, 'relation') as { schemaname?: string }[]).map(
    ({ schemaname }) => schemaname,
  );
  return new Set([...named, ...targets].filter((schema) => schema !== undefined));
}

/** Whether a query calls functions that the migration, or somebody before it, wrote. */
export function callsUserFunctions(node: Node, step: Step): string[] {
  return calledFunctions(node).filter((name) => step.model.state.functions.has(name));
}
