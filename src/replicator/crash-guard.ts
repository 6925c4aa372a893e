import type pg from 'pg';
import { RivuletError } from '../errors.ts';
import { formatLsn, type Lsn } from '../lsn.ts';

/** One crash may have any reason, two as well. */
const MOST_CRASHES = 3;

/**
 * A change that the server crashes on when it decodes it would take everybody's connections down again and again, as
 * often as the stream is tried. Postgres up to 18 has one: rows of a partition whose DETACH CONCURRENTLY is pending, in a
 * publication FOR ALL TABLES (see docs/postgres.md). Only a new slot leads past it.
 */
export class CrashGuard {
  #position: Lsn | null = null;
  /** Changes when a server recovers from a crash, because it forgets its statistics then. */
  #statisticsSince: string | null = null;
  #crashes = 0;
  #hasBegun = false;

  /** The server is about to decode: what it crashes on before has nothing to do with that. */
  begun(): void {
    this.#hasBegun = true;
  }

  /** Before each attempt to stream from here: throws POSITION_GAP if that has made the server crash too often. */
  async check(client: pg.ClientBase, position: Lsn): Promise<void> {
    const { rows } = await client.query('select stats_reset::text as since from pg_stat_bgwriter');
    const since = rows[0].since as string | null;
    const hasCrashed = this.#hasBegun && since !== this.#statisticsSince;
    this.#hasBegun = false;
    if (position !== this.#position) this.#crashes = 0;
    else if (hasCrashed) this.#crashes++;
    this.#statisticsSince = since;
    this.#position = position;
    if (this.#crashes < MOST_CRASHES) return;
    this.#crashes = 0;
    throw new RivuletError(
      'POSITION_GAP',
      `the server has crashed ${MOST_CRASHES} times in a row when it was to send what follows ${formatLsn(position)}`,
    );
  }
}
