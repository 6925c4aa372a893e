import { join } from 'node:path';
import { expect, test } from 'vitest';
import { HttpReplica } from '../../src/http/proxy/http-replica.ts';
import { serveReplica } from '../../src/http/server.ts';
import { silentLog } from '../../src/log.ts';
import { ReadYourWrites } from '../../src/read/read-your-writes.ts';
import { openReader } from '../../src/read/reader.ts';
import { openReplica } from '../../src/replica/replica.ts';
import { decodeToken } from '../../src/token.ts';
import { ITEMS, START, TestReplicator, temporaryDirectory } from '../fanout/test-replicator.ts';
import { testRelation } from '../helpers/frames.ts';
import { TcpProxy } from '../helpers/tcp-proxy.ts';
import { waitUntil } from '../helpers/wait-until.ts';

const OTHERS = testRelation({
  oid: 501,
  name: 'others',
  columns: [{ name: 'id', mapping: 'int', key: 1 }],
});

test('who was shown newer rows beside a table that is read again is not shown older ones on the next node', async () => {
  using dir = temporaryDirectory();
  await using replicator = await TestReplicator.start({ dir: dir.path });
  await using wire = await TcpProxy.start({ port: Number(new URL(replicator.url).port) });
  const file = join(dir.path, 'late.db');
  await using early = await openReplica({ file: join(dir.path, 'early.db'), replicator: replicator.url });
  await using late = await openReplica({ file, replicator: wire.through(replicator.url) });
  await using server = await serveReplica({
    replica: late,
    listen: { host: '127.0.0.1', port: 0 },
    token: undefined,
    log: silentLog(),
  });
  await using asked = new HttpReplica({ url: server.url });
  using reader = openReader({ file });
  replicator.commit({ schema: { changed: [OTHERS], dropped: [], reloading: [ITEMS] } });
  await waitUntil('both to hold the position', () =>
    [early, late].every((replica) => replica.status().reloading.length > 0),
  );
  const held = early.position;

  for (const connection of wire.connections) connection.stall('to client');
  replicator.commit({ insert: OTHERS.oid, row: [1] });
  const count = (replica: typeof early): unknown =>
    replica.db.prepare('SELECT count(*) FROM others').pluck().get();
  await waitUntil('the row to be shown', () => count(early) === 1);
  const session = new ReadYourWrites({ replica: early }).begin({});
  await session.ready();
  const token = decodeToken((await session.outgoing())!);
  expect(token).toEqual({ epoch: 'e1', lsn: held, seen: START + 0x200n });

  expect([count(late), late.position]).toEqual([0, held]);
  let isEarly = true;
  const signal = new AbortController().signal;
  const waits = Promise.all(
    [
      late.waitFor(token, { timeoutMs: 10_000 }),
      reader.waitFor(token, { timeoutMs: 10_000 }),
      asked.wait(token, { timeoutMs: 10_000, signal }).then((outcome) => expect(outcome).toBe('reached')),
    ].map((wait) => wait.then(() => expect([isEarly, count(late)]).toEqual([false, 1]))),
  );
  await waitUntil('the proxy to know where the file is', () => asked.hasReached({ epoch: 'e1', lsn: held }));
  expect(asked.hasReached(token)).toBe(false);
  expect(late.waiting).toBeGreaterThan(0);
  isEarly = false;
  for (const connection of wire.connections) connection.resume('to client');
  await waits;
  // Of the table that is read again nobody has seen more.
  expect(late.position).toBe(held);
});
