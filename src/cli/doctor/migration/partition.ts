import type { CreateStmt, Node, PartitionCmd } from 'libpg-query';
import { stringOf } from './types.ts';

/**
 * What stands behind PARTITION OF or ATTACH PARTITION, as Postgres prints it; null: it is not plain. Dates have to be written
 * as Postgres prints them, too.
 */
export function partitionValues(bound: PartitionCmd['bound']): string | null {
  const print = (nodes: readonly Node[] = []): string | null => {
    const items = nodes.map(constant);
    return items.includes(null) ? null : items.join(', ');
  };
  if (bound?.strategy === 'r') {
    const [from, to] = [print(bound.lowerdatums), print(bound.upperdatums)];
    return from === null || to === null ? null : `FOR VALUES FROM (${from}) TO (${to})`;
  }
  const listed = bound?.strategy === 'l' ? print(bound.listdatums) : null;
  return listed === null ? null : `FOR VALUES IN (${listed})`;
}

/** The one column that the partitions go by; null: there is no such column. */
export function partitionKey({ partspec }: CreateStmt): string | null {
  const [only, ...others] = partspec?.partParams ?? [];
  if (only === undefined || others.length > 0 || !('PartitionElem' in only)) return null;
  const { name, collation, opclass } = only.PartitionElem;
  return collation === undefined && opclass === undefined ? (name ?? null) : null;
}

function constant(node: Node): string | null {
  if ('ColumnRef' in node) {
    const name = stringOf(node.ColumnRef.fields?.[0] ?? { String: {} }).toUpperCase();
    return name === 'MINVALUE' || name === 'MAXVALUE' ? name : null;
  }
  if (!('A_Const' in node)) return null;
  const { ival, sval, boolval, isnull } = node.A_Const;
  if (isnull === true) return 'NULL';
  if (ival !== undefined) return `'${ival.ival ?? 0}'`;
  if (boolval !== undefined) return String(boolval.boolval ?? false);
  return sval === undefined ? null : `'${(sval.sval ?? '').replaceAll("'", "''")}'`;
}
