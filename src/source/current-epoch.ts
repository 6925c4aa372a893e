import type pg from 'pg';
import type { SourceIdentity } from './catalog.ts';
import { canCall } from './own-functions.ts';

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
  if (!(await canCall(client, 'enter_epoch'))) return false;
  await client.query('select rivulet.enter_epoch($1, $2, $3::bigint, $4::int)', [
    publication,
    epoch,
    identity.systemIdentifier,
    identity.timeline,
  ]);
  return true;
}

/** The epoch that a replicator of this publication has begun last; null where nobody knows. */
export async function readEpoch(client: pg.ClientBase, publication: string): Promise<string | null> {
  if (!(await canCall(client, 'read_epoch'))) return null;
  const { rows } = await client.query<{ epoch: string | null }>('select rivulet.read_epoch($1) as epoch', [
    publication,
  ]);
  return rows[0]!.epoch;
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
