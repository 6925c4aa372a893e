import type { Duplex } from 'node:stream';
import { expect, test } from 'vitest';
import { waitUntil } from '../../helpers/wait-until.ts';
import { RawConnection, startProxy, TestApp } from './test-proxy.ts';

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

test('close() ends open sockets', async () => {
  await using app = await upgradingApp((socket) => socket.resume());
  const proxy = await startProxy({ target: app.url });
  using raw = new RawConnection(proxy.url);
  raw.socket.write(HANDSHAKE);
  await waitUntil('the handshake', () => raw.received === AGREED);
  await proxy.close();
  await waitUntil('the end', () => raw.isEnded);
});
