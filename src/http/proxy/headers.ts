import type { IncomingMessage } from 'node:http';
import { READ_HEADER } from '../../read/middleware/token-headers.ts';

/** Names and values in turn, as they stand on the wire: order, case and repetitions are kept. */
export type RawHeaders = readonly string[];

/**
 * Headers that are about one connection, not about the message: each side of a proxy has its own.
 * https://www.rfc-editor.org/rfc/rfc9110#section-7.6.1
 */
const HOP_BY_HOP = new Set([
  'connection',
  'keep-alive',
  'proxy-authenticate',
  'proxy-authorization',
  'proxy-connection',
  'te',
  'trailer',
  'transfer-encoding',
  'upgrade',
]);

/**
 * Never of one connection, whatever the Connection header says: they say where the message ends and whom it is for.
 * A body whose length got lost on the way would be read as requests of its own.
 */
const OF_THE_MESSAGE = new Set(['content-length', 'host']);

/** What the app is sent in place of these is worked out here. */
const FORWARDED = new Set(['x-forwarded-for', 'x-forwarded-host', 'x-forwarded-proto']);

/** The request's headers as the app gets them, `more` behind them. */
export function requestHeaders(
  request: IncomingMessage,
  options: { readonly isUpgrade: boolean; readonly targetHost: string; readonly more: RawHeaders },
): string[] {
  const { headers } = request;
  // That a read is late only the proxy says to the app.
  const headersOut = endToEnd(request, (name) => FORWARDED.has(name) || name === READ_HEADER);
  const client = request.socket.remoteAddress ?? 'unknown';
  const before = headers['x-forwarded-for'];
  headersOut.push('X-Forwarded-For', before === undefined ? client : `${String(before)}, ${client}`);
  headersOut.push('X-Forwarded-Proto', first(headers['x-forwarded-proto']) ?? 'http');
  const host = first(headers['x-forwarded-host']) ?? headers.host;
  if (host !== undefined) headersOut.push('X-Forwarded-Host', host);
  // An HTTP/1.0 client need not name one; the app is spoken to in HTTP/1.1.
  if (headers.host === undefined) headersOut.push('Host', options.targetHost);
  if (options.isUpgrade) headersOut.push('Connection', 'Upgrade', 'Upgrade', headers.upgrade ?? '');
  else headersOut.push('Connection', 'keep-alive');
  if (/\btrailers\b/i.test(String(headers.te ?? ''))) headersOut.push('TE', 'trailers');
  if (headers['transfer-encoding'] !== undefined) {
    headersOut.push('Transfer-Encoding', 'chunked');
    if (headers.trailer !== undefined) headersOut.push('Trailer', String(headers.trailer));
  } else if (headers['content-length'] === undefined && !NO_BODY_EXPECTED.has(request.method ?? '')) {
    // Node would begin a chunked body of its own.
    headersOut.push('Content-Length', '0');
  }
  headersOut.push(...options.more);
  return headersOut;
}

/** Whether the request announces a body; one that announces none has none. */
export function hasBody({ headers }: IncomingMessage): boolean {
  return headers['transfer-encoding'] !== undefined || Number(headers['content-length'] ?? 0) > 0;
}

/** Node's client sends no body with these unless a header announces one. */
const NO_BODY_EXPECTED = new Set(['GET', 'HEAD', 'DELETE', 'OPTIONS', 'TRACE', 'CONNECT']);

/** The response's headers as the client gets them: without those in `replaced` (lower case), `more` behind them. */
export function responseHeaders(
  incoming: IncomingMessage,
  options: { readonly replaced: ReadonlySet<string>; readonly more: RawHeaders; readonly isChunked: boolean },
): string[] {
  const headers = endToEnd(incoming, (name) => options.replaced.has(name));
  const { trailer } = incoming.headers;
  // Node refuses to announce trailers where there will be no chunked body to carry them.
  if (options.isChunked && trailer !== undefined) headers.push('Trailer', trailer);
  headers.push(...options.more);
  return headers;
}

/** The trailers in pairs, as addTrailers() takes them. */
export function trailers({ rawTrailers }: IncomingMessage): [string, string][] {
  const pairs: [string, string][] = [];
  for (let index = 0; index < rawTrailers.length; index += 2)
    pairs.push([rawTrailers[index]!, rawTrailers[index + 1]!]);
  return pairs;
}

function endToEnd({ rawHeaders, headers }: IncomingMessage, isDropped: (name: string) => boolean): string[] {
  const named = connectionOptions(headers.connection);
  const kept: string[] = [];
  for (let index = 0; index < rawHeaders.length; index += 2) {
    const name = rawHeaders[index]!.toLowerCase();
    if (HOP_BY_HOP.has(name) || named?.has(name) === true || isDropped(name)) continue;
    kept.push(rawHeaders[index]!, rawHeaders[index + 1]!);
  }
  return kept;
}

/** Headers that the Connection header names are of this connection as well. */
function connectionOptions(connection: string | undefined): ReadonlySet<string> | null {
  if (connection === undefined || /^(keep-alive|close|upgrade)$/i.test(connection)) return null;
  const named = connection.split(',').map((option) => option.trim().toLowerCase());
  return new Set(named.filter((name) => !OF_THE_MESSAGE.has(name)));
}

function first(value: string | readonly string[] | undefined): string | undefined {
  return typeof value === 'string' || value === undefined ? value : value[0];
}
