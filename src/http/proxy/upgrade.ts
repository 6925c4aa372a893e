import { type ClientRequest, type IncomingMessage, ServerResponse, STATUS_CODES } from 'node:http';
import type { Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import { ConfigError, type RivuletError } from '../../errors.ts';
import type { AppConnection } from './app-connection.ts';
import { answerRefused, pathOf, requestRefused } from './exchange.ts';
import { hasBody, requestHeaders, responseHeaders } from './headers.ts';

export interface UpgradeOptions {
  readonly app: AppConnection;
  readonly onFailure: (error: RivuletError, response: ServerResponse) => void;
}

/**
 * A request that wants another protocol (a WebSocket, mostly): once the app has agreed, bytes go both ways until
 * either side ends. Where it has not, its ordinary answer is passed on and both connections end.
 *
 * What follows the head is the other protocol's, so a body before it is refused. As of Node 24.9 mayUpgrade() has
 * made an ordinary request of such a one.
 *
 * Resolves when it is over.
 */
export function upgrade(
  request: IncomingMessage,
  socket: Duplex,
  head: Buffer,
  { app, onFailure }: UpgradeOptions,
): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  socket.on('error', () => undefined);
  socket.on('close', resolve);
  const response = new ServerResponse(request);
  response.shouldKeepAlive = false;
  response.sendDate = false;
  response.assignSocket(socket as Socket);
  response.on('finish', () => {
    response.detachSocket(socket as Socket);
    socket.end();
  });
  if (!mayUpgrade(request)) {
    onFailure(new ConfigError('a request for an upgrade cannot have a body'), response);
    return promise;
  }
  let outgoing: ClientRequest;
  try {
    outgoing = app.begin(
      request.method ?? 'GET',
      pathOf(request),
      requestHeaders(request, { isUpgrade: true, targetHost: app.target.host, more: [] }),
      { isUpgrade: true },
    );
  } catch (cause) {
    onFailure(requestRefused(cause), response);
    return promise;
  }
  socket.on('close', () => outgoing.destroy());
  outgoing.on('upgrade', (incoming, appSocket, appHead) => {
    response.detachSocket(socket as Socket);
    const { rawHeaders, statusCode = 101, statusMessage = STATUS_CODES[statusCode] } = incoming;
    let text = `HTTP/1.1 ${statusCode} ${statusMessage}\r\n`;
    for (let index = 0; index < rawHeaders.length; index += 2)
      text += `${rawHeaders[index]}: ${rawHeaders[index + 1]}\r\n`;
    socket.write(`${text}\r\n`, 'latin1');
    appSocket.unshift(appHead);
    socket.unshift(head);
    join(socket, appSocket);
  });
  outgoing.on('response', (incoming) => {
    incoming.on('error', () => socket.destroy());
    const headers = responseHeaders(incoming, { replaced: new Set(), more: [], isChunked: false });
    try {
      response.writeHead(incoming.statusCode!, incoming.statusMessage, [...headers, 'Connection', 'close']);
    } catch (cause) {
      incoming.destroy();
      onFailure(answerRefused(cause), response);
      return;
    }
    incoming.pipe(response);
  });
  outgoing.on('error', (cause) => {
    if (!response.headersSent && !socket.destroyed) onFailure(app.unreachable(cause), response);
  });
  outgoing.end();
  return promise;
}

/** Whether a request that asks for another protocol may be given it; otherwise it is one like any other. */
export function mayUpgrade(request: IncomingMessage): boolean {
  return !hasBody(request);
}

function join(client: Duplex, app: Duplex): void {
  for (const [from, to] of [
    [client, app],
    [app, client],
  ] as const) {
    from.on('error', () => undefined);
    from.on('close', () => {
      // What came before a clean end is still on its way to the other side, and the end behind it.
      if (from.readableEnded && !to.writableFinished) to.once('finish', () => to.destroy());
      else to.destroy();
    });
    from.pipe(to);
  }
}
