import { ConfigError } from '../../errors.ts';
import type { RequestReads } from '../read-your-writes.ts';
import { ReadYourWrites, type ReadYourWritesOptions } from '../read-your-writes.ts';

export const TOKEN_HEADER = 'rivulet-token';
/** Says of an answer that it was not read from a fresh file: `stale`, or `postgres`. */
export const READ_HEADER = 'rivulet-read';
export const DEFAULT_TOKEN_COOKIE = 'rivulet_token';

/** How long a browser keeps a token: far longer than any replica is behind. */
const DEFAULT_COOKIE_MAX_AGE_MS = 24 * 60 * 60 * 1000;

/** Reading methods wait by themselves; in others the handler calls ready() or read() where it reads. */
const READING_METHODS = new Set(['GET', 'HEAD']);

export interface CookieOptions {
  /** Default: `rivulet_token`, which the proxy knows too. */
  readonly name?: string | undefined;
  /** Default: `/`. */
  readonly path?: string | undefined;
  readonly domain?: string | undefined;
  /** Default: as the request came, where the framework knows; otherwise false. */
  readonly secure?: boolean | undefined;
  /** Default: `Lax`. */
  readonly sameSite?: 'Strict' | 'Lax' | 'None' | undefined;
  /** Default: a day. */
  readonly maxAgeMs?: number | undefined;
}

export interface MiddlewareOptions extends ReadYourWritesOptions {
  /** False: tokens travel in the header `rivulet-token` only. */
  readonly cookie?: CookieOptions | false | undefined;
  /** Requests that nothing is to be done about: assets, health checks. Gets the path, with its query. */
  readonly skip?: ((path: string, method: string) => boolean) | undefined;
}

/** What came in, in the words of any framework. */
export interface IncomingHeaders {
  readonly method: string;
  readonly path: string;
  readonly isSecure: boolean;
  readonly header: (name: string) => string | undefined;
}

/** The part of the adapters that is the same for all: from headers to a request's reads, and back. */
export class TokenHeaders {
  readonly core: ReadYourWrites;
  readonly #options: MiddlewareOptions;
  readonly #cookie: CookieOptions | null;
  readonly #cookieName: string;

  constructor(options: MiddlewareOptions) {
    checkCookie(options.cookie);
    this.core = new ReadYourWrites(options);
    this.#options = options;
    this.#cookie = options.cookie === false ? null : (options.cookie ?? {});
    this.#cookieName = this.#cookie?.name ?? DEFAULT_TOKEN_COOKIE;
  }

  /** Null: this request is to be left alone. Throws TOKEN_MALFORMED or TOKEN_FORGED for a bad header. */
  begin(incoming: IncomingHeaders, signal: AbortSignal): RequestReads | null {
    if (this.#options.skip?.(incoming.path, incoming.method) === true) return null;
    return this.core.begin({
      header: incoming.header(TOKEN_HEADER),
      cookie: this.#cookie === null ? null : cookieValue(incoming.header('cookie'), this.#cookieName),
      signal,
    });
  }

  waits(incoming: IncomingHeaders): boolean {
    return READING_METHODS.has(incoming.method);
  }

  /** Names and values of what the answer is to carry. */
  outgoing(incoming: IncomingHeaders, request: RequestReads, token: string | null): [string, string][] {
    const headers: [string, string][] = [];
    const from = request.readiness?.from ?? 'replica';
    if (from !== 'replica') headers.push([READ_HEADER, from]);
    if (token === null) return headers;
    headers.push([TOKEN_HEADER, token]);
    const known = cookieValue(incoming.header('cookie'), this.#cookieName);
    if (this.#cookie !== null && token !== known)
      headers.push(['set-cookie', cookieLine(token, incoming.isSecure, this.#cookie)]);
    return headers;
  }
}

/** https://www.rfc-editor.org/rfc/rfc6265#section-4.1.1 */
const COOKIE_NAME = /^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/;
const COOKIE_PATH = /^\/[\x20-\x3a\x3c-\x7e]*$/;
const COOKIE_DOMAIN = /^[0-9A-Za-z._-]+$/;
const SAME_SITE = /^(Strict|Lax|None)$/i;
/** Max-Age counts seconds, and 0 takes the cookie away. */
const LEAST_COOKIE_AGE_MS = 1000;

/** Throws CONFIG for what no browser would keep, or no server send: found at the start, not with the first write. */
function checkCookie(cookie: MiddlewareOptions['cookie']): void {
  if (cookie === undefined || cookie === null || cookie === false) return;
  if (typeof cookie !== 'object')
    throw new ConfigError('cookie must be false, or an object such as { name, path, domain }');
  const { name, path, domain, sameSite, maxAgeMs } = cookie;
  const check = (option: string, value: unknown, pattern: RegExp, allowed: string): void => {
    if (value === undefined || (typeof value === 'string' && pattern.test(value))) return;
    throw new ConfigError(`cookie.${option} must be ${allowed}`);
  };
  check('name', name, COOKIE_NAME, "letters, digits, and of other characters !#$%&'*+.^_`|~-");
  check('path', path, COOKIE_PATH, 'a path that begins with /, without ; and control characters');
  check('domain', domain, COOKIE_DOMAIN, "the name of a domain, such as 'example.org'");
  check('sameSite', sameSite, SAME_SITE, "'Strict', 'Lax' or 'None'");
  if (maxAgeMs !== undefined && !(Number.isFinite(maxAgeMs) && maxAgeMs >= LEAST_COOKIE_AGE_MS))
    throw new ConfigError(`cookie.maxAgeMs must be a number of milliseconds from ${LEAST_COOKIE_AGE_MS}`);
}

/** What a Set-Cookie header says. */
export function cookieLine(token: string, isSecure: boolean, options: CookieOptions): string {
  const {
    name = DEFAULT_TOKEN_COOKIE,
    path = '/',
    domain,
    secure = isSecure,
    sameSite = 'Lax',
    maxAgeMs = DEFAULT_COOKIE_MAX_AGE_MS,
  } = options;
  return [
    `${name}=${token}`,
    `Path=${path}`,
    `Max-Age=${Math.floor(maxAgeMs / 1000)}`,
    'HttpOnly',
    `SameSite=${sameSite}`,
    ...(domain === undefined ? [] : [`Domain=${domain}`]),
    ...(secure ? ['Secure'] : []),
  ].join('; ');
}

/** https://www.rfc-editor.org/rfc/rfc6265#section-5.4: the first of a name counts. */
export function cookieValue(header: string | undefined, name: string): string | null {
  if (header === undefined || !header.includes(name)) return null;
  for (const pair of header.split(';')) {
    const at = pair.indexOf('=');
    if (at > 0 && pair.slice(0, at).trim() === name) return pair.slice(at + 1).trim();
  }
  return null;
}
