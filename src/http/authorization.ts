import { createHash, timingSafeEqual } from 'node:crypto';
import type { RequestHandler } from 'express';
import { RivuletError } from '../errors.ts';

const BEARER = /^Bearer +(\S+) *$/i;

function digest(text: string): Buffer {
  return createHash('sha256').update(text).digest();
}

/** Whether an Authorization header carries the token; takes the same time however much of it is right. */
export function isAuthorized(header: string | undefined, token: string): boolean {
  const given = BEARER.exec(header ?? '')?.[1];
  return given !== undefined && timingSafeEqual(digest(given), digest(token));
}

/** Lets through whoever carries the token; everybody where none is set, which is possible on loopback only (and see refuseForeign()). */
export function requireToken(token: string | undefined): RequestHandler {
  return (request, response, next) => {
    if (token === undefined || isAuthorized(request.headers.authorization, token)) {
      next();
      return;
    }
    response.setHeader('www-authenticate', 'Bearer');
    next(
      new RivuletError('UNAUTHORIZED', 'a bearer token is needed, and it must be the right one', {
        hint: 'give the --token-file or RIVULET_TOKEN that the process at this address was started with',
      }),
    );
  };
}
