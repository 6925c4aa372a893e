import { RivuletError } from '../errors.ts';
import { formatLsn, type Lsn } from '../lsn.ts';

/** In a row: some seconds. */
const MOST_FAILURES = 5;

/**
 * What makes the server fail by what it is to send, and not by how it is at the moment: data that cannot be made text of
 * (a character that UTF-8 has none for), a row filter that fails, and what it says itself should not be.
 * https://www.postgresql.org/docs/current/errcodes-appendix.html
 */
const BY_CONTENT = /^(22|XX)/;

/**
 * A change that the server fails on when it decodes it comes again with each attempt, and is decoded as the catalog was
 * then: nothing that is done to the row, the filter or the publication afterwards helps. Only a new slot leads past it.
 */
export class PoisonGuard {
  #position: Lsn | null = null;
  #sqlstate: unknown = null;
  #failures = 0;

  /** What the stream's failure at this position means: the same error, or POSITION_GAP if that was the last of too many. */
  judge(error: unknown, position: Lsn | null): unknown {
    const sqlstate = error instanceof RivuletError ? error.facts.sqlstate : undefined;
    const isSame = sqlstate !== undefined && sqlstate === this.#sqlstate && position === this.#position;
    this.#failures = isSame ? this.#failures + 1 : 1;
    this.#sqlstate = sqlstate;
    this.#position = position;
    if (!BY_CONTENT.test(String(sqlstate)) || this.#failures < MOST_FAILURES || position === null)
      return error;
    this.#failures = 0;
    return new RivuletError(
      'POSITION_GAP',
      `the server has failed ${MOST_FAILURES} times in a row to send what follows ${formatLsn(position)}: ${(error as Error).message}`,
      { cause: error },
    );
  }
}
