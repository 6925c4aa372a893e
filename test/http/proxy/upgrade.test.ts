import type { ServerResponse } from 'node:http';
import type { Duplex } from 'node:stream';
import { expect, test } from 'vitest';
import type { RivuletError } from '../../../src/errors.ts';
import { AppConnection } from '../../../src/http/proxy/app-connection.ts';
import { upgrade } from '../../../src/http/proxy/upgrade.ts';
import { waitUntil } from '../../helpers/wait-until.ts';
import { RawConnection, send, startProxy, TestApp } from './test-proxy.ts';

const HANDSHAKE =
  'GET /socket?x=1 HTTP/1.1\r\nHost: example.org\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n' +
  'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n';
const AGREED =
  'HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n';

/** An app that agrees to an upgrade and then hands its socket over. */
async function upgradingApp(onSocket: (socket: Duplex, head: Buffer) => void): Promise<TestApp> {
  const app = await TestApp.start();
  app.server.on('upgrade', (request, socket, head) => {
    expect(request.headers).toMatchObject({
      connection: 'Upgrade',
      upgrade: 'websocket',
      host: 'example.org',
      'sec-websocket-version': '13',
      'x-forwarded-for': '127.0.0.1',
    });
    expect(request.url).toBe('/socket?x=1');
    socket.on('error', () => undefined);
    socket.on('end', () => socket.end());
    socket.write(AGREED);
    onSocket(socket, head);
  });
  return app;
}

test('bytes go both ways, those sent with the handshake too, until one side ends', async () => {
  await using app = await upgradingApp((socket, head) => {
    socket.write('hello ');
    socket.unshift(head);
    socket.pipe(socket);
  });
  await using proxy = await startProxy({ target: app.url });
  using raw = new RawConnection(proxy.url);
  raw.socket.write(`${HANDSHAKE}early `);
  await waitUntil('the early bytes back', () => raw.received === `${AGREED}hello early `);
  const large = 'x'.repeat(3_000_000);
  raw.socket.write(large);
  await waitUntil('all of them back', () => raw.received.length === AGREED.length + 12 + large.length);
  raw.socket.end('last words');
  await waitUntil('the end', () => raw.isEnded);
  expect(raw.received.endsWith('last words')).toBe(true);
});

test('what the app sends before it ends arrives; what breaks on one side breaks on the other', async () => {
  const sockets: Duplex[] = [];
  let closed = 0;
  await using app = await upgradingApp((socket) => {
    sockets.push(socket);
    socket.on('close', () => closed++);
    socket.resume();
  });
  await using proxy = await startProxy({ target: app.url });
  using ended = new RawConnection(proxy.url);
  ended.socket.write(HANDSHAKE);
  await waitUntil('the handshake', () => ended.received === AGREED);
  // A client that takes its time: the last bytes are still on their way when the app has long gone.
  ended.socket.on('data', () => {
    ended.socket.pause();
    setTimeout(() => ended.socket.resume(), 1);
  });
  sockets[0]!.end(Buffer.alloc(8_000_000, 'y'));
  await waitUntil('the end', () => ended.isEnded);
  expect(ended.received.length).toBe(AGREED.length + 8_000_000);
  using cut = new RawConnection(proxy.url);
  cut.socket.write(HANDSHAKE);
  await waitUntil('the next one', () => cut.received === AGREED);
  const before = closed;
  cut.socket.resetAndDestroy();
  await waitUntil('the end at the app', () => closed > before);
  using dropped = new RawConnection(proxy.url);
  dropped.socket.write(HANDSHAKE);
  await waitUntil('the last one', () => dropped.received === AGREED);
  sockets.at(-1)!.destroy();
  await waitUntil('the end', () => dropped.isEnded);
});

test('where the app does not agree, its own answer is passed on; where it is not there, that is 502', async () => {
  let url = '';
  {
    await using app = await TestApp.start((request, response) => {
      response.writeHead(401, { 'x-why': 'who are you' }).end(`no upgrade for ${request.url}`);
    });
    ({ url } = app);
    await using proxy = await startProxy({ target: url });
    using raw = new RawConnection(proxy.url);
    raw.socket.write(HANDSHAKE);
    await waitUntil('the end', () => raw.isEnded);
    expect(raw.received).toMatch(/^HTTP\/1.1 401 Unauthorized\r\nx-why: who are you\r\n/);
    expect(raw.received).toMatch(/no upgrade for \/socket\?x=1/);
  }
  await using proxy = await startProxy({ target: url });
  using raw = new RawConnection(proxy.url);
  raw.socket.write(HANDSHAKE);
  await waitUntil('the end', () => raw.isEnded);
  expect(raw.received).toMatch(/^HTTP\/1.1 502 Bad Gateway\r\n(?:.*\r\n)*.*APP_UNREACHABLE/);
});

test.each([
  ['a reason that Node does not write', 'HTTP/1.1 403 Bad\x7f\r\nContent-Length: 0\r\n\r\n'],
  ['a status that there is not', 'HTTP/1.1 099 Odd\r\nContent-Length: 0\r\n\r\n'],
])('%s is 502, and the proxy goes on', async (_, answer) => {
  await using app = await TestApp.start();
  app.server.on('upgrade', (_request, socket) => socket.end(answer, 'latin1'));
  await using proxy = await startProxy({ target: app.url });
  using raw = new RawConnection(proxy.url);
  raw.socket.write(HANDSHAKE);
  await waitUntil('the end', () => raw.isEnded);
  expect(raw.received).toMatch(/^HTTP\/1.1 502 Bad Gateway\r\n(?:.*\r\n)*.*PROTOCOL/);
  expect((await send(proxy.url)).body).toBe('ok');
});

/** The handshake with a body announced. */
const withLength = (bytes: number): string =>
  HANDSHAKE.replace(/\r\n\r\n$/, `\r\nContent-Length: ${bytes}\r\n\r\n`);

test('a body makes an ordinary request of one for an upgrade, and none is missing from the next', async () => {
  const seen: unknown[] = [];
  await using app = await TestApp.start(async (incoming, response) => {
    let body = '';
    if (incoming.url === '/unread') body = 'unread';
    else for await (const chunk of incoming) body += String(chunk);
    seen.push([incoming.url, incoming.headers.upgrade, body]);
    response.end('ok');
  });
  await using proxy = await startProxy({ target: app.url });
  using whole = new RawConnection(proxy.url);
  whole.socket.write(`${withLength(4)}body`);
  await waitUntil('the answer', () => whole.received.includes('ok'));
  expect(seen).toEqual([['/socket?x=1', undefined, 'body']]);
  // The app answers before a body that does not come.
  using partial = new RawConnection(proxy.url);
  partial.socket.write(withLength(5000).replace('/socket?x=1', '/unread'));
  await waitUntil('the answer', () => partial.received.includes('ok'));
  expect((await send(`${proxy.url}/next`)).body).toBe('ok');
  expect(seen.slice(1)).toEqual([
    ['/unread', undefined, 'unread'],
    ['/next', undefined, ''],
  ]);
});

test('where Node does not ask first, an upgrade with a body is refused; one without one gets no connection of others', async () => {
  const open = new Set<Duplex>();
  await using app = await TestApp.start((_, response) => response.end('no upgrade here'));
  app.server.on('connection', (socket) => {
    open.add(socket);
    socket.on('close', () => open.delete(socket));
  });
  using connection = new AppConnection(app.url);
  await using front = await TestApp.start();
  const failures: unknown[] = [];
  front.server.on('upgrade', (request, socket, head) => {
    const onFailure = (error: RivuletError, response: ServerResponse): void => {
      failures.push(error.httpStatus);
      response.writeHead(error.httpStatus).end();
    };
    void upgrade(request, socket, head, { app: connection, onFailure });
  });
  using refused = new RawConnection(front.url);
  refused.socket.write(withLength(5000));
  await waitUntil('the end', () => refused.isEnded);
  expect(refused.received).toMatch(/^HTTP\/1.1 400 /);
  expect(failures).toEqual([400]);
  expect(app.connections).toBe(0);
  for (const connections of [1, 2]) {
    using plain = new RawConnection(front.url);
    plain.socket.write(HANDSHAKE);
    await waitUntil('the answer', () => plain.received.includes('no upgrade here'));
    expect(app.connections).toBe(connections);
  }
  await waitUntil('the end at the app', () => open.size === 0);
});

test('close() ends open sockets', async () => {
  await using app = await upgradingApp((socket) => socket.resume());
  const proxy = await startProxy({ target: app.url });
  using raw = new RawConnection(proxy.url);
  raw.socket.write(HANDSHAKE);
  await waitUntil('the handshake', () => raw.received === AGREED);
  await proxy.close();
  await waitUntil('the end', () => raw.isEnded);
});
