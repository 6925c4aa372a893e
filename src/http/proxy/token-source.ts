import { decodeToken, type Position } from '../../token.ts';
import { SharedCall } from './shared-call.ts';

/** Answers of writes that come together share a query; more than two at a time bring nothing. */
export const TOKEN_CONNECTIONS = 2;

/** Asks Postgres how far everything is that has been committed by now. */
export class TokenSource {
  readonly #shared: SharedCall<Position>;

  /** `query` gives what rivulet.token() says now; it is called at most TOKEN_CONNECTIONS times at once. */
  constructor(query: () => Promise<string>) {
    this.#shared = new SharedCall(async () => decodeToken(await query()), TOKEN_CONNECTIONS);
  }

  /** A position that contains every transaction whose COMMIT had returned when this was called. */
  take(): Promise<Position> {
    return this.#shared.run();
  }
}
