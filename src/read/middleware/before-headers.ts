import type { ServerResponse } from 'node:http';

/** What sends headers, or makes them be sent. */
const SENDING = ['writeHead', 'write', 'end', 'flushHeaders'] as const;

/**
 * Has headers added to a response before its first byte goes out. `now` gives them if they are known, or
 * undefined; then what the handler sends is kept back, in order, until `later` has them.
 */
export function beforeHeaders(
  response: ServerResponse,
  now: () => readonly [string, string][] | undefined,
  later: () => Promise<readonly [string, string][]>,
): void {
  type Send = (...args: unknown[]) => unknown;
  const target = response as unknown as Record<(typeof SENDING)[number], Send>;
  const originals = Object.fromEntries(SENDING.map((name) => [name, target[name]])) as Record<string, Send>;
  let held: { readonly name: string; readonly args: unknown[] }[] | null = null;

  function release(headers: readonly [string, string][]): void {
    for (const name of SENDING) target[name] = originals[name]!;
    if (response.headersSent) return;
    for (const [name, value] of headers) {
      if (name === 'set-cookie') response.appendHeader(name, value);
      else if (!response.hasHeader(name)) response.setHeader(name, value);
    }
  }

  for (const name of SENDING) {
    target[name] = (...args) => {
      if (held === null) {
        const headers = now();
        if (headers !== undefined) {
          release(headers);
          return originals[name]!.apply(response, name === 'writeHead' ? withCookies(response, args) : args);
        }
        held = [];
        void later()
          .then((known) => {
            release(known);
            for (const { name, args } of held!)
              originals[name]!.apply(response, name === 'writeHead' ? withCookies(response, args) : args);
          })
          .catch((error: unknown) => {
            // The handler has returned: what it sent wrongly cannot be told to it any more.
            process.emitWarning(`an answer could not be sent: ${String(error)}`, { type: 'RivuletWarning' });
            response.destroy();
          });
      }
      held.push({ name, args });
      // As a stream that is full: a drain follows once it is written.
      return name === 'write' ? false : response;
    };
  }
}

/** Cookies that are given to writeHead() would take the place of those that were set before. */
function withCookies(response: ServerResponse, args: unknown[]): unknown[] {
  const headers = args.at(-1);
  if (typeof headers !== 'object' || headers === null || !response.hasHeader('set-cookie')) return args;
  const pairs: [string, unknown][] = Array.isArray(headers)
    ? Array.from({ length: headers.length / 2 }, (_, at) => [headers[2 * at], headers[2 * at + 1]])
    : Object.entries(headers);
  const isCookie = ([name]: [string, unknown]): boolean => name.toLowerCase() === 'set-cookie';
  for (const [, value] of pairs.filter(isCookie)) response.appendHeader('set-cookie', value as string);
  return [...args.slice(0, -1), Object.fromEntries(pairs.filter((pair) => !isCookie(pair)))];
}
