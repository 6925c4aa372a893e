import type pg from 'pg';
import type { SourceIdentity } from './catalog.ts';

/**
 * Writes into the database which epoch its replicas are of, for the tokens that rivulet.token() gives; changes
 * nothing where it stands there already. False where the function for it is missing: set-up could not make the
 * schema rivulet, or is older than this program.
 */
export async function enterEpoch(
  client: pg.ClientBase,
  options: { readonly publication: string; readonly epoch: string; readonly identity: SourceIdentity },
): Promise<boolean> {
  const { publication, epoch, identity } = options;
  const { rows } = await client.query(
    `select exists (select from pg_proc p join pg_namespace n on n.oid = p.pronamespace
                     where n.nspname = 'rivulet' and p.proname = 'enter_epoch'
                       and has_schema_privilege(n.oid, 'usage') and has_function_privilege(p.oid, 'execute')) as known`,
  );
  if (!rows[0].known) return false;
  await client.query('select rivulet.enter_epoch($1, $2, $3::bigint, $4::int)', [
    publication,
    epoch,
    identity.systemIdentifier,
    identity.timeline,
  ]);
  return true;
}

/** For teardown: tokens for this publication end here. */
export async function forgetEpoch(client: pg.ClientBase, publication: string): Promise<void> {
  const { rows } = await client.query(`select to_regclass('rivulet.epoch') is not null as exists`);
  if (rows[0].exists) await client.query('delete from rivulet.epoch where publication = $1', [publication]);
}

/** Whether `select rivulet_token()` works with a plain search_path. */
export async function hasShortTokenName(client: pg.ClientBase): Promise<boolean> {
  const { rows } = await client.query(
    `select exists (select from pg_depend
                     where classid = 'pg_proc'::regclass and objid = to_regprocedure('public.rivulet_token()')
                       and refclassid = 'pg_proc'::regclass and refobjid = to_regprocedure('rivulet.token(name)')) as exists`,
  );
  return rows[0].exists;
}
