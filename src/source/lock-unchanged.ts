import pg from 'pg';
import { type CopyTask, quoteIdentifier } from './copy-plan.ts';

/**
 * What a schema change since the snapshot leads to, or stepping aside for one: an undefined table, column or schema,
 * something else under the name, a lock that was not given in time, a cancelled COPY.
 */
const CHANGED_SINCE = new Set(['42P01', '42703', '3F000', '42809', '55P03', '57014']);

/** Whether an error of reading a table means that it is not what it was. */
export function isChangedSince(error: unknown): boolean {
  return error instanceof pg.DatabaseError && CHANGED_SINCE.has(error.code ?? '');
}

/**
 * Locks a table as any SELECT does, and tells whether its name, file and columns are those that the plan's snapshot
 * saw: only then does that snapshot see its rows. Names are looked up in the present, and what rewrites or empties a
 * table does that to older snapshots, too. https://www.postgresql.org/docs/current/mvcc-caveats.html
 *
 * Throws what isChangedSince() knows if the table cannot be found under its names.
 */
export async function lockUnchanged(client: pg.Client, { relation, heap }: CopyTask): Promise<boolean> {
  const names = relation.columns.map((column) => column.name);
  const list = names.map(quoteIdentifier).join(', ');
  // Nothing is read; the description of the result tells which columns these are now.
  const { fields } = await client.query(`select ${list} from only ${heap.table} limit 0`);
  const { rows } = await client.query<{ oid: string; file: string }>(
    'select to_regclass($1)::oid::text as oid, pg_relation_filenode($2::oid)::text as file',
    [heap.table, heap.oid],
  );
  const { oid, file } = rows[0]!;
  return (
    oid === String(heap.oid) &&
    file === heap.file &&
    fields.every((field, index) => {
      const [attnum, type] = heap.columns[names[index]!] ?? [];
      return field.columnID === attnum && field.dataTypeID === type;
    })
  );
}
