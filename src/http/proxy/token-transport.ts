import type { IncomingHttpHeaders, IncomingMessage } from 'node:http';
import { RivuletError } from '../../errors.ts';
import {
  cookieLine,
  cookieValue,
  DEFAULT_TOKEN_COOKIE,
  TOKEN_HEADER,
} from '../../read/middleware/token-headers.ts';
import { UNKNOWN_TOKEN } from '../../read/read-your-writes.ts';
import { decodeToken, encodeToken, laterToken, type Position, seenLsn, type TokenKeys } from '../../token.ts';

/** What a client must see; `unknown` after a write whose token could not be taken: everything until now. */
export type WantedPosition = Position | typeof UNKNOWN_TOKEN;

/** Tokens of requests and responses: which cookie, which header, which keys. */
export class TokenTransport {
  readonly #cookie: string;
  readonly #keys: TokenKeys | undefined;
  /** The newest token, since many responses carry the same one. */
  #encoded: { readonly position: Position; readonly text: string } | null = null;

  constructor(options: { readonly cookie?: string | undefined; readonly keys?: TokenKeys | undefined } = {}) {
    this.#cookie = options.cookie ?? DEFAULT_TOKEN_COOKIE;
    this.#keys = options.keys;
  }

  /**
   * What the client carries; null for nothing. A cookie that is no token of ours is as good as none: whoever has
   * it can do nothing about it. Throws TOKEN_MALFORMED or TOKEN_FORGED for such a header, which a program sets.
   */
  ofRequest(headers: IncomingHttpHeaders): WantedPosition | null {
    const header = headers[TOKEN_HEADER] as string | undefined;
    const cookie = cookieValue(headers.cookie, this.#cookie);
    if (header === UNKNOWN_TOKEN || cookie === UNKNOWN_TOKEN) return UNKNOWN_TOKEN;
    const fromHeader = header === undefined ? null : decodeToken(header, this.#keys);
    const fromCookie = cookie === null ? null : this.#decode(cookie, this.#keys);
    if (fromHeader === null || fromCookie === null) return fromHeader ?? fromCookie;
    return laterToken(fromHeader, fromCookie) ?? fromHeader;
  }

  /** The token that the app has set itself, as header or cookie; signed or not, the app is trusted. */
  ofApp({ headers }: IncomingMessage): WantedPosition | null {
    const header = headers[TOKEN_HEADER];
    if (header !== undefined) return this.#ofApp(String(header));
    for (const line of headers['set-cookie'] ?? []) {
      const value = cookieValue(line.split(';', 1)[0], this.#cookie);
      if (value !== null) return this.#ofApp(value);
    }
    return null;
  }

  /** Header lines, names and values in turn, that give the client a token. */
  headers(token: WantedPosition, isSecure: boolean): string[] {
    const text = token === UNKNOWN_TOKEN ? token : this.#encode(token);
    return ['Set-Cookie', cookieLine(text, isSecure, { name: this.#cookie }), 'Rivulet-Token', text];
  }

  /** Header lines that take the cookie away. */
  removal(): string[] {
    return ['Set-Cookie', `${this.#cookie}=; Path=/; Max-Age=0`];
  }

  #encode(position: Position): string {
    const last = this.#encoded;
    if (last !== null && isSame(last.position, position)) return last.text;
    const text = encodeToken(position, this.#keys);
    this.#encoded = { position, text };
    return text;
  }

  #ofApp(text: string): WantedPosition | null {
    return text === UNKNOWN_TOKEN ? UNKNOWN_TOKEN : this.#decode(text, undefined);
  }

  #decode(text: string, keys: TokenKeys | undefined): Position | null {
    try {
      return decodeToken(text, keys);
    } catch (error) {
      if (error instanceof RivuletError) return null;
      throw error;
    }
  }
}

function isSame(a: Position, b: Position): boolean {
  return a.epoch === b.epoch && a.lsn === b.lsn && seenLsn(a) === seenLsn(b);
}
