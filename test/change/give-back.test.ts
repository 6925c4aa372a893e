import { once } from 'node:events';
import { createServer, get, type IncomingMessage } from 'node:http';
import type { AddressInfo } from 'node:net';
import { expect, test } from 'vitest';
import { giveBack } from '../../src/change/give-back.ts';

test('memory is gone for all that lies in it, but small pieces and what Node keeps for many are left alone', () => {
  const large = Buffer.allocUnsafeSlow(100_000);
  const part = large.subarray(10, 20);
  giveBack(large);
  expect([large.length, part.length]).toEqual([0, 0]);
  const [small, pooled] = [Buffer.allocUnsafeSlow(1000), Buffer.allocUnsafe(100)];
  giveBack(small);
  giveBack(pooled);
  expect([small.length, pooled.length]).toEqual([1000, 100]);
});

// Given back while the parser of HTTP is still in it, memory that it reads would be gone.
test('a piece of a body has memory of its own, apart from what the socket brought', async () => {
  const body = Buffer.alloc(600_000, 'body');
  const server = createServer((_request, response) => {
    response.setHeader('content-length', body.length);
    for (let at = 0; at < body.length; at += 30_000) response.write(body.subarray(at, at + 30_000));
    response.end();
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  try {
    const { port } = server.address() as AddressInfo;
    const brought: Buffer[] = [];
    const response = await new Promise<IncomingMessage>((resolve, reject) =>
      get({ host: '127.0.0.1', port }, resolve)
        .on('socket', (socket) => socket.on('data', (chunk: Buffer) => brought.push(chunk)))
        .on('error', reject),
    );
    const parts: Buffer[] = [];
    response.on('data', (part: Buffer) => parts.push(part));
    await once(response, 'end');
    expect(Buffer.concat(parts).equals(body)).toBe(true);
    expect(brought.length).toBeGreaterThan(0);
    for (const part of parts) {
      expect(part.buffer.byteLength).toBe(part.length);
      expect(brought.every((chunk) => chunk.buffer !== part.buffer)).toBe(true);
    }
  } finally {
    server.close();
  }
});
