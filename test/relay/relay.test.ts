import { join } from 'node:path';
import { expect, test } from 'vitest';
import { serveReplicator } from '../../src/http/server.ts';
import { silentLog } from '../../src/log.ts';
import { type Relay, startRelay } from '../../src/relay/relay.ts';
import { openReplica, type Replica } from '../../src/replica/replica.ts';
import { insertItem, makeSnapshot, TestReplicator, temporaryDirectory } from '../fanout/test-replicator.ts';
import { waitUntil } from '../helpers/wait-until.ts';

const count = (replica: Replica): number =>
  replica.db.prepare('SELECT count(*) FROM items').pluck().get() as number;

async function relayOf(url: string, dataDir: string): Promise<Relay> {
  return startRelay({ replicator: url, dataDir, log: silentLog() });
}

function serve(relay: Relay): ReturnType<typeof serveReplicator> {
  return serveReplicator({
    replicator: relay,
    listen: { host: '127.0.0.1', port: 0 },
    token: undefined,
    log: silentLog(),
  });
}

test('a replica starts from a relay, follows it, and reaches through it to whoever is asked to hasten', async () => {
  using dir = temporaryDirectory();
  await using replicator = await TestReplicator.start({ dir: dir.path });
  for (let id = 1; id <= 50; id++) replicator.commit(insertItem(id));
  await using relay = await relayOf(replicator.url, join(dir.path, 'relay'));
  await relay.ready;
  await using server = await serve(relay);
  await using replica = await openReplica({ file: join(dir.path, 'app.db'), replicator: server.url });
  await waitUntil('all', () => count(replica) === 50);
  replicator.onHasten = () => replicator.advance(0x9000n);
  await replica.waitFor(0x9000n, { timeoutMs: 5000 });
  expect(replicator.hastened).toBeGreaterThan(0);
  await waitUntil('the replicator to know of it', () => replicator.publisher.followers().length === 2);
});

test('a relay that was away for too long begins anew, and so do those that follow it', async () => {
  using dir = temporaryDirectory();
  await using replicator = await TestReplicator.start({ dir: dir.path });
  const dataDir = join(dir.path, 'relay');
  replicator.commit(insertItem(1));
  {
    await using relay = await relayOf(replicator.url, dataDir);
    await waitUntil('it to follow', () => relay.position === replicator.log.position);
  }
  const last = replicator.commit(insertItem(2));
  replicator.commit(insertItem(3));
  await replicator.log.prune({ maxAgeMs: -1, maxBytes: 0, keepFrom: last });
  replicator.snapshotPosition = last;
  makeSnapshot(replicator.snapshotPath, 'e1', last);
  expect(replicator.log.oldestPosition).toBe(last);
  await using relay = await relayOf(replicator.url, dataDir);
  await waitUntil('the new beginning', () => relay.status().log.oldestPosition === '0/1200');
  await waitUntil('it to follow again', () => relay.position === replicator.log.position);
});

test('what a restarted relay has is served before its replicator is there', async () => {
  using dir = temporaryDirectory();
  const dataDir = join(dir.path, 'relay');
  let url: string;
  {
    await using replicator = await TestReplicator.start({ dir: dir.path });
    url = replicator.url;
    replicator.commit(insertItem(1));
    await using relay = await relayOf(url, dataDir);
    await waitUntil('it to follow', () => relay.position === replicator.log.position);
  }
  await using relay = await relayOf(url, dataDir);
  await relay.ready;
  await using server = await serve(relay);
  await using replica = await openReplica({ file: join(dir.path, 'app.db'), replicator: server.url });
  expect(count(replica)).toBe(1);
  expect((await fetch(`${server.url}/healthz`)).status).toBe(503);
});

test("refuses a replicator's directory, and another database than the one it has served", async () => {
  using dir = temporaryDirectory();
  await using replicator = await TestReplicator.start({ dir: dir.path });
  await using wrong = await relayOf(replicator.url, dir.path);
  await expect(wrong.ready).rejects.toMatchObject({ code: 'FILE_UNUSABLE' });

  const dataDir = join(dir.path, 'relay');
  {
    await using relay = await relayOf(replicator.url, dataDir);
    await relay.ready;
  }
  using elsewhere = temporaryDirectory();
  await using other = await TestReplicator.start({ dir: elsewhere.path, epoch: 'e9', database: 'another' });
  await using relay = await relayOf(other.url, dataDir);
  await waitUntil('it to say so', () => relay.state === 'failed');
  expect(relay.status().reasons[0]).toMatch(/another database/);
  expect(relay.status().epoch).toBe('e1');
});
