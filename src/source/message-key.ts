import type pg from 'pg';
import { canCall } from './own-functions.ts';

/**
 * What stands in the messages of this database's hooks, and of its replicators. Null where nobody can be told. See
 * sql/001_tables.sql.
 */
export async function readMessageKey(client: pg.ClientBase): Promise<string | null> {
  if (!(await canCall(client, 'read_message_key'))) return null;
  const { rows } = await client.query<{ key: string | null }>('select rivulet.read_message_key() as key');
  return rows[0]!.key;
}
