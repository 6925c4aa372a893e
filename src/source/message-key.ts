import type pg from 'pg';

/**
 * What stands in the messages of this database's hooks, and of its replicators. Null where nobody can be told: set-up
 * could not make the schema rivulet, or is older than this program. See sql/001_tables.sql.
 */
export async function readMessageKey(client: pg.ClientBase): Promise<string | null> {
  const { rows } = await client.query(
    `select exists (select from pg_proc p join pg_namespace n on n.oid = p.pronamespace
                     where n.nspname = 'rivulet' and p.proname = 'read_message_key'
                       and has_schema_privilege(n.oid, 'usage') and has_function_privilege(p.oid, 'execute')) as known`,
  );
  if (!rows[0].known) return null;
  const { rows: keys } = await client.query<{ key: string | null }>(
    'select rivulet.read_message_key() as key',
  );
  return keys[0]!.key;
}
