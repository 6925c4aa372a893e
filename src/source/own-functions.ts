import type pg from 'pg';

/**
 * Whether the schema rivulet has a function of that name that this user may call. Not where set-up could not make the
 * schema, or is older than this program.
 */
export async function canCall(client: pg.ClientBase, name: string): Promise<boolean> {
  const { rows } = await client.query<{ known: boolean }>(
    `select exists (select from pg_proc p join pg_namespace n on n.oid = p.pronamespace
                     where n.nspname = 'rivulet' and p.proname = $1
                       and has_schema_privilege(n.oid, 'usage') and has_function_privilege(p.oid, 'execute')) as known`,
    [name],
  );
  return rows[0]!.known;
}
