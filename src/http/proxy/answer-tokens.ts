import type { IncomingMessage } from 'node:http';
import type { RivuletError } from '../../errors.ts';
import { READ_HEADER, TOKEN_HEADER } from '../../read/middleware/token-headers.ts';
import { UNKNOWN_TOKEN } from '../../read/read-your-writes.ts';
import { contains, laterToken, type Position } from '../../token.ts';
import type { Addition } from './exchange.ts';
import type { LocalReplica } from './local-replica.ts';
import type { ProxyMetrics } from './proxy-metrics.ts';
import type { TokenSource } from './token-source.ts';
import type { TokenTransport, WantedPosition } from './token-transport.ts';

/** What one request is about. */
export interface Exchanged {
  /** What the client has brought, or after a wait the position that stands for it; null for nothing. */
  given: WantedPosition | null;
  /** Whether the client has yet to hear of the position that stands for what it brought. */
  isTranslated: boolean;
  /** Why the app's answer may be older than that, if so. */
  stale: RivuletError | null;
  readonly isRead: boolean;
  readonly isWrite: boolean;
  readonly isSecure: boolean;
}

/** As the middleware says it; to the app as well, which may then read from Postgres. */
export const STALE: readonly string[] = ['Rivulet-Read', 'stale'];

const REPLACED_BY_TOKEN: ReadonlySet<string> = new Set([TOKEN_HEADER]);
const REPLACED_BY_STALE: ReadonlySet<string> = new Set([READ_HEADER]);
const REPLACED_BY_BOTH: ReadonlySet<string> = new Set([TOKEN_HEADER, READ_HEADER]);

export interface AnswerTokensOptions {
  readonly tokens: TokenTransport;
  readonly replica: LocalReplica;
  readonly source: TokenSource | null;
  readonly metrics: ProxyMetrics;
  /** One and the same `what` is not said all the time. */
  readonly warn: (what: string, message: string) => void;
}

/** What an answer of the app carries on its way back: the token of what was written, or of what was shown. */
export class AnswerTokens {
  readonly #options: AnswerTokensOptions;

  constructor(options: AnswerTokensOptions) {
    this.#options = options;
  }

  /** The token that this response gives its client. */
  decorate(about: Exchanged, incoming: IncomingMessage): Addition | null | Promise<Addition | null> {
    const { source, tokens, replica } = this.#options;
    const fromApp = tokens.ofApp(incoming);
    if (fromApp !== null) return this.#addition(about, laterOf(about.given, fromApp), true);
    if (about.isWrite) {
      if (source !== null) return this.#takeToken(about, source);
      this.#options.warn(
        'no-token',
        'an answer to a write had no token, and there is no --postgres to take one from',
      );
      return this.#addition(about, null, false);
    }
    // What a shared cache keeps must not carry one client's token.
    if (!about.isRead || isPublic(incoming)) return this.#addition(about, null, false);
    const shown = replica.position();
    if (!(shown instanceof Promise)) return this.#addition(about, shown, false);
    return shown.then(
      (position) => this.#addition(about, position, false),
      () => this.#addition(about, null, false),
    );
  }

  async #takeToken(about: Exchanged, source: TokenSource): Promise<Addition | null> {
    try {
      const token = await source.take();
      this.#options.metrics.tokens++;
      return this.#addition(about, token, true);
    } catch (error) {
      this.#options.metrics.tokenFailures++;
      this.#options.warn('token', `no token could be taken after a write: ${(error as Error).message}`);
      return this.#addition(about, UNKNOWN_TOKEN, true);
    }
  }

  /** `isWrite`: the token was taken after all that the client has written until now. */
  #addition(about: Exchanged, token: WantedPosition | null, isWrite: boolean): Addition | null {
    const { stale } = about;
    const headers: string[] = stale === null ? [] : [...STALE];
    const next = token === null || isWrite ? token : this.#shownOf(about, token as Position);
    if (next !== null) headers.push(...this.#options.tokens.headers(next, about.isSecure));
    if (headers.length === 0) return null;
    const replaced =
      next === null ? REPLACED_BY_STALE : stale === null ? REPLACED_BY_TOKEN : REPLACED_BY_BOTH;
    return { headers, replaced };
  }

  /** What a reader carries on: the later of what it had and what it was shown; null if that is what it has. */
  #shownOf({ given, isTranslated }: Exchanged, shown: Position): Position | null {
    if (given === null) return shown;
    if (given !== UNKNOWN_TOKEN) {
      const both = laterToken(given, shown);
      if (both !== null) return isTranslated || !contains(given, shown) ? both : null;
    }
    // Where Postgres can be asked, it will say what is unknown, and the replica has yet to come to the given one's
    // history.
    return this.#options.source === null ? shown : null;
  }
}

/** An answer that the app has kept, or a careless app, may bring a token from before the client's. */
function laterOf(given: WantedPosition | null, fromApp: WantedPosition): WantedPosition {
  if (given === null || given === UNKNOWN_TOKEN || fromApp === UNKNOWN_TOKEN) return fromApp;
  return laterToken(given, fromApp) ?? fromApp;
}

function isPublic({ headers }: IncomingMessage): boolean {
  return /\b(public|s-maxage)\b/i.test(headers['cache-control'] ?? '');
}
