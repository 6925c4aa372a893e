import type pg from 'pg';
import { RivuletError } from '../errors.ts';
import { judgeContent, judgePublication, readPublication } from '../source/publication.ts';
import type { SchemaTracker } from '../source/schema-tracker.ts';

/** https://www.postgresql.org/docs/current/errcodes-appendix.html */
const UNDEFINED_OBJECT = '42704';

/**
 * Whether the stream has all changes of the publication's tables: see judgePublication(). Here between the connections;
 * within one the hooks' messages tell, and SchemaWatch.
 */
export class PublicationGuard {
  readonly #publication: string;
  /** Makes the publication again as it was, or throws. */
  readonly #makeAgain: () => Promise<void>;
  /** The stream came to a place where it was gone, or left something out; what the catalog says now is another matter. */
  #hasMissed = false;

  constructor(publication: string, makeAgain: () => Promise<void>) {
    this.#publication = publication;
    this.#makeAgain = makeAgain;
  }

  /** Another history begins: what this one lacks does not matter any more. */
  epochBegins(): void {
    this.#hasMissed = false;
  }

  streamFailed(error: unknown): void {
    if (!(error instanceof RivuletError)) return;
    // The server's word, in whatever language, while the slot was read; of a slot that is gone it has the same code.
    const { code } = (error.cause ?? {}) as { readonly code?: unknown };
    if (error.code === 'PUBLICATION' || (code === UNDEFINED_OBJECT && error.code !== 'SLOT_LOST'))
      this.#hasMissed = true;
  }

  /**
   * Throws where the stream lacks changes, or would. What can be mended by a new copy is one (POSITION_GAP); what has to
   * be mended first is not: the replicas keep what they have until then.
   */
  async check(
    client: pg.ClientBase,
    { publication: followed, relations }: Pick<SchemaTracker, 'publication' | 'relations'>,
  ): Promise<void> {
    const now = await readPublication(client, this.#publication);
    if (now === null) await this.#makeAgain();
    const bereft = judgeContent(this.#publication, relations, now);
    if (bereft !== null) {
      this.#hasMissed = true;
      throw bereft;
    }
    // Of what else was done to it the stream tells.
    const known = followed === null ? null : { ...followed, alteredBy: null };
    const gap = judgePublication(this.#publication, known, now);
    if (gap !== null && now !== null) throw gap;
    if (gap === null && !this.#hasMissed) return;
    throw new RivuletError(
      'POSITION_GAP',
      `the publication ${this.#publication} was not as it is for a while`,
    );
  }
}
