import type { IncomingMessage } from 'node:http';
import { isIP } from 'node:net';
import type { RequestHandler } from 'express';
import { RivuletError } from '../errors.ts';

const HOST = /^(?:\[([^\]]*)\]|([^:]*))(?::\d*)?$/;
const LOCALHOST = /^(?:.+\.)?localhost\.?$/i;

/**
 * Whether a Host header is one that no page of somebody else's can have made a browser send: localhost, which means
 * this machine everywhere, or an IP address, which no name server can point elsewhere.
 */
export function isOwnHost(host: string): boolean {
  const [, ipv6, name = ''] = HOST.exec(host) ?? [];
  return ipv6 === undefined ? isIP(name) === 4 || LOCALHOST.test(name) : isIP(ipv6) === 6;
}

/**
 * Where there is no token, loopback is what keeps others out; but a browser on this machine comes from loopback as
 * well, with requests of whatever page is open in it. One whose name has been pointed here could even read the
 * answers (DNS rebinding), and names itself in Host. One that cannot read them still sends, and names itself in Origin.
 */
export function foreignRequest({ headers: { host, origin } }: IncomingMessage): RivuletError | null {
  // Browsers always send one.
  if (host !== undefined && !isOwnHost(host)) {
    return new RivuletError('FOREIGN_REQUEST', `there is no token, and the request is for the host ${host}`, {
      hint: 'reach this process at localhost or by its IP address, or start it with a --token-file or RIVULET_TOKEN',
    });
  }
  if (origin !== undefined && URL.parse(origin)?.host !== host) {
    return new RivuletError('FOREIGN_REQUEST', `there is no token, and the request comes from ${origin}`, {
      hint: 'pages of other sites get no answer: ask from a program',
    });
  }
  return null;
}

/** Lets everybody through where a token is set: no page has it. */
export function refuseForeign(token: string | undefined): RequestHandler {
  return (request, _response, next) => {
    const refusal = token === undefined ? foreignRequest(request) : null;
    if (refusal === null) next();
    else next(refusal);
  };
}
