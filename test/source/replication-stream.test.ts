import { once } from 'node:events';
import { type AddressInfo, createServer, type Server, type Socket } from 'node:net';
import { expect, test } from 'vitest';
import { ReplicationStream } from '../../src/source/replication-stream.ts';
import { waitUntil } from '../helpers/wait-until.ts';

/** https://www.postgresql.org/docs/current/protocol-message-formats.html */
function message(type: string, body: Buffer): Buffer {
  const length = Buffer.alloc(4);
  length.writeInt32BE(body.length + 4);
  return Buffer.concat([Buffer.from(type), length, body]);
}

function streamFrom(server: Server): ReplicationStream {
  return new ReplicationStream({
    url: `postgres://nobody@127.0.0.1:${(server.address() as AddressInfo).port}/none`,
    slot: 'rivulet',
    publication: 'rivulet',
    from: 0n,
    onBegun: async () => undefined,
    onMessage: () => true,
    onKeepalive: () => undefined,
    onChunk: () => undefined,
    durablePosition: () => 0n,
  });
}

test.each(['before it is connected', 'while the server is silent'])(
  'a stream ends when it is stopped %s',
  async (when) => {
    const sockets: Socket[] = [];
    const server = createServer((socket) => sockets.push(socket.on('error', () => undefined)));
    await once(server.listen(0, '127.0.0.1'), 'listening');
    const stop = new AbortController();
    const running = streamFrom(server).run(stop.signal);
    if (when !== 'before it is connected') await waitUntil('the connection', () => sockets.length > 0);
    stop.abort();
    await running;
    for (const socket of sockets) socket.destroy();
    server.close();
    await once(server, 'close');
  },
  // Well before its attempt to connect would end by itself.
  5_000,
);

test('a backend that is terminated as it says welcome ends the stream, not the process', async () => {
  const authenticationOk = message('R', Buffer.alloc(4));
  const readyForQuery = message('Z', Buffer.from('I'));
  const terminated = message('E', Buffer.from('SFATAL\0VFATAL\0C57P01\0Mterminating connection\0\0'));
  const server = createServer((socket) => {
    socket.on('error', () => undefined);
    socket.once('data', () => socket.end(Buffer.concat([authenticationOk, readyForQuery, terminated])));
  });
  await once(server.listen(0, '127.0.0.1'), 'listening');
  const stream = streamFrom(server);
  try {
    await expect(stream.run(new AbortController().signal)).rejects.toMatchObject({
      code: 'POSTGRES_UNREACHABLE',
    });
  } finally {
    server.close();
    await once(server, 'close');
  }
});
