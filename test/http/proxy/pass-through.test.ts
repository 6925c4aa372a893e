import { once } from 'node:events';
import { Agent, type IncomingMessage, request, type ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import { expect, test } from 'vitest';
import { waitUntil } from '../../helpers/wait-until.ts';
import { RawConnection, send, startProxy, TestApp } from './test-proxy.ts';

async function collect(stream: AsyncIterable<Buffer>): Promise<string> {
  const chunks: Buffer[] = [];
  for await (const chunk of stream) chunks.push(chunk);
  return Buffer.concat(chunks).toString();
}

test('method, path, headers and body arrive as they were sent, connection headers apart', async () => {
  let seen: IncomingMessage | null = null;
  let body = '';
  await using app = await TestApp.start(async (incoming, response) => {
    seen = incoming;
    body = await collect(incoming);
    response.end();
  });
  await using proxy = await startProxy({ target: app.url });
  using raw = new RawConnection(proxy.url);
  raw.socket.write(
    'PROPFIND /a%20b/../c?x=1&&y=%zz HTTP/1.1\r\nHoSt: example.org:99\r\nX-Twice: 1\r\nx-twice: 2\r\n' +
      'X-Forwarded-For: 10.1.1.1\r\nX-Forwarded-Proto: https\r\nRivulet-Read: forged\r\n' +
      'Connection: keep-alive, X-Private\r\nX-Private: of this connection\r\nKeep-Alive: timeout=9\r\nTE: trailers, gzip\r\n' +
      'Accept-Language: \xe4\r\nContent-Length: 4\r\n\r\nbody',
    'latin1',
  );
  await waitUntil('the answer', () => raw.received.includes('\r\n\r\n'));
  expect(seen!.method).toBe('PROPFIND');
  expect(seen!.url).toBe('/a%20b/../c?x=1&&y=%zz');
  expect(body).toBe('body');
  const { rawHeaders } = seen!;
  const lines = rawHeaders.flatMap((name, index) =>
    index % 2 === 0 ? [`${name}: ${rawHeaders[index + 1]}`] : [],
  );
  expect(lines).toEqual([
    'HoSt: example.org:99',
    'X-Twice: 1',
    'x-twice: 2',
    'Accept-Language: \xe4',
    'Content-Length: 4',
    'X-Forwarded-For: 10.1.1.1, 127.0.0.1',
    'X-Forwarded-Proto: https',
    'X-Forwarded-Host: example.org:99',
    'Connection: keep-alive',
    'TE: trailers',
  ]);
});

test("the app's answer arrives as it was sent: status, reason, repeated headers, no Date that it did not send", async () => {
  await using app = await TestApp.start((_, response) => {
    response.sendDate = false;
    response.writeHead(299, 'Quite Fine', [
      ['Set-Cookie', 'a=1'],
      ['set-cookie', 'b=2'],
      ['X-Odd', '\xfc'],
      ['Content-Length', '2'],
    ]);
    // Node writes the head as UTF-8 where a text follows it.
    response.end(Buffer.from('ok'));
  });
  await using proxy = await startProxy({ target: app.url, ignorePaths: ['*'] });
  using raw = new RawConnection(proxy.url);
  raw.socket.write('GET / HTTP/1.1\r\nHost: x\r\n\r\n');
  await waitUntil('the answer', () => raw.received.endsWith('ok'));
  const lines = raw.received.split('\r\n');
  expect(lines[0]).toBe('HTTP/1.1 299 Quite Fine');
  expect(lines.slice(1, 5)).toEqual([
    'Set-Cookie: a=1',
    'set-cookie: b=2',
    'X-Odd: \xfc',
    'Content-Length: 2',
  ]);
  expect(raw.received).not.toMatch(/^date:/im);
  expect(raw.received).not.toContain('rivulet');
});

test.each([
  ['HEAD', 200, { 'content-length': '12345' }],
  ['GET', 304, { etag: '"x"', 'content-length': '12345' }],
  ['GET', 204, { 'x-a': 'b' }],
])('%s with %i has no body, and keeps its headers and its connection', async (method, status, headers) => {
  await using app = await TestApp.start((_, response) => {
    response.writeHead(status, headers as Record<string, string>).end();
  });
  await using proxy = await startProxy({ target: app.url });
  const agent = new Agent({ keepAlive: true, maxSockets: 1 });
  const first = await send(proxy.url, { method, agent });
  expect(first).toMatchObject({ status, headers, body: '' });
  expect(first.headers['transfer-encoding']).toBeUndefined();
  expect(await send(proxy.url, { method, agent })).toMatchObject({ status, headers });
  expect(app.connections).toBe(1);
  agent.destroy();
});

test('nothing is held back: heads and chunks arrive when they are sent, in both directions', async () => {
  const { promise: met, resolve: meet } = Promise.withResolvers<[IncomingMessage, ServerResponse]>();
  await using app = await TestApp.start((incoming, response) => meet([incoming, response]));
  await using proxy = await startProxy({ target: app.url });
  const outgoing = request(proxy.url, { method: 'POST', agent: false });
  outgoing.flushHeaders();
  // The app has the head before there is a body, and may answer it.
  const [incoming, response] = await met;
  response.writeHead(200, { 'content-type': 'text/event-stream' });
  response.flushHeaders();
  const [answer] = (await once(outgoing, 'response')) as [IncomingMessage];
  for (const text of ['one', 'two']) {
    outgoing.write(`to app ${text}`);
    expect(String((await once(incoming, 'data'))[0])).toBe(`to app ${text}`);
    response.write(`to client ${text}`);
    expect(String((await once(answer, 'data'))[0])).toBe(`to client ${text}`);
  }
  outgoing.end();
  await once(incoming, 'end');
  response.end();
  await once(answer, 'end');
});

test.each(['download', 'upload'])('a slow reader slows the writer down: %s', async (direction) => {
  const limit = 128 * 2 ** 20;
  let bytes = 0;
  const fill = (writer: NodeJS.WritableStream): void => {
    const chunk = Buffer.alloc(64 * 1024);
    const more = (): void => {
      while (bytes < limit) {
        bytes += chunk.length;
        if (!writer.write(chunk)) return;
      }
    };
    writer.on('drain', more);
    more();
  };
  await using app = await TestApp.start((incoming, response) => {
    incoming.pause();
    if (direction === 'download') fill(response);
  });
  await using proxy = await startProxy({ target: app.url });
  const outgoing = request(proxy.url, { method: 'PUT', agent: false });
  outgoing.on('error', () => undefined);
  outgoing.on('response', (response) => response.pause());
  if (direction === 'upload') fill(outgoing);
  else outgoing.end();
  let before = -1;
  await waitUntil(
    'the writer to be stuck',
    () => {
      const isStuck = bytes > 0 && bytes === before;
      before = bytes;
      return isStuck;
    },
    { intervalMs: 250 },
  );
  // Socket buffers of two connections, and no more.
  expect(bytes).toBeLessThan(32 * 2 ** 20);
  outgoing.destroy();
  // A socket that nobody reads does not hear of its end.
  app.server.closeAllConnections();
});

test.each(['GET', 'POST', 'DELETE'])(
  '%s: the Connection header takes away neither the length of the body nor the host',
  async (method) => {
    const seen: unknown[] = [];
    await using app = await TestApp.start(async (incoming, response) => {
      seen.push([incoming.url, incoming.headers.host, await collect(incoming)]);
      response.end('ok');
    });
    await using proxy = await startProxy({ target: app.url });
    const body = 'GET /admin HTTP/1.1\r\nHost: x\r\n\r\n';
    using raw = new RawConnection(proxy.url);
    raw.socket.write(
      `${method} /public HTTP/1.1\r\nHost: example.org\r\nConnection: Content-Length , HOST,keep-alive\r\n` +
        `Content-Length: ${body.length}\r\n\r\n${body}`,
    );
    await waitUntil('the answer', () => raw.received.includes('ok'));
    expect((await send(`${proxy.url}/next`)).body).toBe('ok');
    expect(seen.slice(0, 1)).toEqual([['/public', 'example.org', body]]);
    expect(seen.slice(1)).toMatchObject([['/next', expect.anything(), '']]);
    expect(app.connections).toBe(1);
  },
);

test('trailers pass in both directions', async () => {
  let seen: NodeJS.Dict<string> = {};
  await using app = await TestApp.start(async (incoming, response) => {
    await collect(incoming);
    seen = incoming.trailers;
    response.writeHead(200, { trailer: 'X-Sum' });
    response.write('body');
    response.addTrailers({ 'X-Sum': 'of the answer' });
    response.end();
  });
  await using proxy = await startProxy({ target: app.url });
  using raw = new RawConnection(proxy.url);
  raw.socket.write(
    'POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n4\r\nbody\r\n0\r\nX-Sum: of the request\r\n\r\n',
  );
  await waitUntil('the end', () => /0\r\nX-Sum: of the answer\r\n\r\n$/.test(raw.received));
  expect(seen).toEqual({ 'x-sum': 'of the request' });
  expect(raw.received).toMatch(/^Trailer: X-Sum/im);
});

test('Expect: 100-continue is for the app to answer', async () => {
  await using app = await TestApp.start();
  app.server.on('checkContinue', async (incoming: IncomingMessage, response: ServerResponse) => {
    if (incoming.url === '/no') {
      response.writeHead(413, { connection: 'close' }).end('too large');
      return;
    }
    response.writeContinue();
    response.end(`got ${await collect(incoming)}`);
  });
  await using proxy = await startProxy({ target: app.url });
  using refused = new RawConnection(proxy.url);
  refused.socket.write('PUT /no HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n');
  await waitUntil('the refusal', () => refused.received.includes('too large'));
  expect(refused.received).toMatch(/^HTTP\/1.1 413/);
  using accepted = new RawConnection(proxy.url);
  accepted.socket.write('PUT / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n');
  await waitUntil('the go-ahead', () => accepted.received === 'HTTP/1.1 100 Continue\r\n\r\n');
  accepted.socket.write('body');
  await waitUntil('the answer', () => accepted.received.includes('got body'));
});

test('early hints pass; a hint that Node cannot write, and an HTTP/1.0 client, do no harm', async () => {
  await using app = await TestApp.start((incoming, response) => {
    if (incoming.url === '/odd')
      response.socket!.write('HTTP/1.1 103 Early Hints\r\nX-Other: y\r\nLink: nonsense\r\n\r\n');
    else response.writeEarlyHints({ link: '</style.css>; rel=preload; as=style' });
    response.end('ok');
  });
  await using proxy = await startProxy({ target: app.url });
  using raw = new RawConnection(proxy.url);
  raw.socket.write('GET / HTTP/1.1\r\nHost: x\r\n\r\n');
  await waitUntil(
    'the answer',
    () => raw.received.includes('\r\n\r\nok') || raw.received.includes('\r\nok\r\n'),
  );
  expect(raw.received).toMatch(
    /^HTTP\/1.1 103 Early Hints\r\nLink: <\/style.css>; rel=preload; as=style\r\n/,
  );
  expect((await send(`${proxy.url}/odd`)).body).toBe('ok');
  using old = new RawConnection(proxy.url);
  old.socket.write('GET / HTTP/1.0\r\n\r\n');
  await waitUntil('the end', () => old.isEnded);
  // No interim answer, no chunks; the connection's end is the body's.
  expect(old.received).toMatch(/^HTTP\/1.1 200 OK\r\n/);
  expect(old.received).not.toMatch(/chunked/i);
  expect(old.received).toMatch(/\r\n\r\nok$/);
});

test('a client that goes away is gone for the app as well', async () => {
  const events: string[] = [];
  await using app = await TestApp.start((incoming, response) => {
    events.push('request');
    incoming.resume();
    incoming.on('aborted', () => events.push('upload broke off'));
    response.on('close', () => events.push('closed'));
    if (incoming.url === '/answering') response.write('first');
  });
  await using proxy = await startProxy({ target: app.url });
  for (const path of ['/silent', '/answering']) {
    events.length = 0;
    const outgoing = request(`${proxy.url}${path}`, { agent: false });
    outgoing.on('error', () => undefined).end();
    if (path === '/silent') await waitUntil('the request', () => events.includes('request'));
    else await once(outgoing, 'response');
    outgoing.destroy();
    await waitUntil('the end at the app', () => events.includes('closed'));
  }
  events.length = 0;
  const upload = request(`${proxy.url}/upload`, { method: 'POST', agent: false });
  upload.on('error', () => undefined).write('part');
  await waitUntil('the upload', () => events.includes('request'));
  upload.destroy();
  await waitUntil('the break at the app', () => events.includes('upload broke off'));
});

test('an app that breaks off breaks off for the client as well; before its answer that is 502', async () => {
  await using app = await TestApp.start((incoming, response) => {
    if (incoming.url === '/at-once') {
      incoming.socket.destroy();
      return;
    }
    response.writeHead(200, incoming.url === '/length' ? { 'content-length': '100' } : {});
    response.write('part', () => incoming.socket.destroy());
  });
  await using proxy = await startProxy({ target: app.url });
  for (const path of ['/chunked', '/length'])
    await expect(send(`${proxy.url}${path}`)).rejects.toMatchObject({ code: 'ECONNRESET' });
  for (const method of ['GET', 'POST']) {
    const answer = await send(`${proxy.url}/at-once`, { method });
    expect(answer.status).toBe(502);
    expect(JSON.parse(answer.body)).toMatchObject({ code: 'APP_UNREACHABLE', hint: expect.any(String) });
  }
});

test('an app that is not there is 502, and is found when it comes back', async () => {
  let url = '';
  {
    await using gone = await TestApp.start();
    ({ url } = gone);
  }
  await using proxy = await startProxy({ target: url });
  const answer = await send(proxy.url);
  expect(answer.status).toBe(502);
  expect(JSON.parse(answer.body)).toMatchObject({
    code: 'APP_UNREACHABLE',
    message: expect.stringContaining('ECONNREFUSED'),
  });
});

test('connections to the app are kept, and one that it has closed meanwhile costs no answer', async () => {
  let last: Socket | null = null;
  let closing: Socket | null = null;
  await using app = await TestApp.start((incoming, response) => {
    // As an app does whose idle time is over just when the next request is on its way.
    if (incoming.socket === closing) incoming.socket.resetAndDestroy();
    last = incoming.socket;
    response.end('ok');
  });
  await using proxy = await startProxy({ target: app.url });
  for (let index = 0; index < 20; index++) expect((await send(proxy.url)).body).toBe('ok');
  expect(app.connections).toBe(1);
  closing = last;
  expect((await send(proxy.url)).body).toBe('ok');
  expect(app.connections).toBe(2);
});

test('requests that are sent in one go are answered in order', async () => {
  await using app = await TestApp.start((incoming, response) => {
    setTimeout(() => response.end(`answer to ${incoming.url};`), incoming.url === '/1' ? 30 : 0);
  });
  await using proxy = await startProxy({ target: app.url });
  using raw = new RawConnection(proxy.url);
  raw.socket.write([1, 2, 3].map((number) => `GET /${number} HTTP/1.1\r\nHost: x\r\n\r\n`).join(''));
  await waitUntil('all answers', () => raw.received.includes('answer to /3'));
  expect(raw.received.match(/answer to \/\d/g)).toEqual(['answer to /1', 'answer to /2', 'answer to /3']);
});

test('what cannot be passed on is refused, and the proxy goes on', async () => {
  await using app = await TestApp.start((incoming, response) => {
    if (incoming.url === '/odd')
      incoming.socket.end('HTTP/1.1 200 O\x01K\r\nX: a\r\nContent-Length: 0\r\n\r\n', 'latin1');
    else response.end('ok');
  });
  await using proxy = await startProxy({ target: app.url });
  expect((await send(`${proxy.url}/odd`)).status).toBe(502);
  using raw = new RawConnection(proxy.url);
  raw.socket.write('nonsense\r\n\r\n');
  await waitUntil('the refusal', () => raw.isEnded);
  expect(raw.received).toMatch(/^HTTP\/1.1 400/);
  expect((await send(proxy.url)).body).toBe('ok');
});

test('close() lets what is under way end, takes nothing new, and cuts what does not end', async () => {
  const { promise: met, resolve: meet } = Promise.withResolvers<ServerResponse>();
  await using app = await TestApp.start((_, response) => meet(response));
  const proxy = await startProxy({ target: app.url });
  const agent = new Agent({ keepAlive: true });
  const answer = send(proxy.url, { agent });
  const response = await met;
  const closed = proxy.close();
  await expect(send(proxy.url)).rejects.toMatchObject({ code: 'ECONNREFUSED' });
  response.end('to its end');
  expect((await answer).body).toBe('to its end');
  await closed;
  await proxy.close();
  agent.destroy();
});
