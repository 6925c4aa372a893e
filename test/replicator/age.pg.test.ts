import { expect, test } from 'vitest';
import type { Lsn } from '../../src/lsn.ts';
import { parseLsn } from '../../src/lsn.ts';
import { FollowerClient } from '../../src/replica/follower-client.ts';
import { monotonicMs } from '../../src/replica/freshness.ts';
import { HttpLink } from '../../src/replica/http-link.ts';
import type { ReplicatorStatus } from '../../src/replicator/status.ts';
import { TestCluster } from '../helpers/cluster.ts';
import { waitUntil } from '../helpers/wait-until.ts';

/** What is on its way to a follower counts from its arrival: this process, which writes too, may be late to read. */
const SLACK_MS = 150;

test('in a backlog no age says that the follower has what it has not', async () => {
  await using cluster = await TestCluster.start();
  await cluster.postgres.sql('create table item (id int primary key)');
  const replicator = await cluster.startReplicator();
  const status = async (): Promise<ReplicatorStatus> =>
    (await (await fetch(`${cluster.replicatorUrl}/v1/status`)).json()) as ReplicatorStatus;
  const { epoch, position } = await status();

  const committedAtMs: number[] = [];
  const claims: { readonly asOfMs: number; readonly received: number }[] = [];
  let received = 0;
  let at: Lsn = parseLsn(position!);
  const client = new FollowerClient({
    link: new HttpLink({ url: cluster.replicatorUrl }),
    file: {
      epoch: epoch!,
      get position() {
        return at;
      },
      apply: (frames, commitTimesMs) => {
        received += commitTimesMs.length;
        for (let offset = 0; offset < frames.length; offset += frames.readUInt32LE(offset))
          if (frames[offset + 4] === 3) at = frames.readBigUInt64LE(offset + 16);
      },
      abandonParts: () => undefined,
    },
    id: 'watcher',
    name: 'watcher',
    digests: false,
    positionIntervalMs: 0,
    onConnected: () => undefined,
    onDisconnected: () => undefined,
    onCurrent: (asOfMs) => claims.push({ asOfMs, received }),
    report: () => ({ name: 'watcher', position: at, lagMs: { p50: null, p99: null, last: null } }),
  });
  const stop = new AbortController();
  const following = client.run(stop.signal);
  // Somebody waits all the time: whatever the server says is passed on at once.
  const hastening = setInterval(() => client.hasten(), 5);
  try {
    const writers = await Promise.all([1, 2].map(() => cluster.postgres.client()));
    let isWriting = true;
    let next = 0;
    const writing = writers.map(async (writer) => {
      while (isWriting) {
        await writer.query(`insert into item values (${++next})`);
        committedAtMs.push(monotonicMs());
      }
    });
    await waitUntil('some transactions', () => received > 200);
    const before = committedAtMs.length;
    await replicator.kill('SIGSTOP');
    await waitUntil('a backlog', () => committedAtMs.length > before + 4000, { timeoutMs: 30_000 });
    await replicator.kill('SIGCONT');
    await waitUntil('the backlog to be gone', () => received > before + 4200, { timeoutMs: 30_000 });
    isWriting = false;
    await Promise.all(writing);
    await waitUntil('all', () => received === committedAtMs.length);
    // Now that nothing comes, that is known too.
    const endMs = monotonicMs();
    await waitUntil('the end to be known', () => claims.at(-1)!.asOfMs > endMs);
  } finally {
    clearInterval(hastening);
    stop.abort();
    await following;
  }
  const wrong = claims.filter(
    ({ asOfMs, received: had }) =>
      committedAtMs.filter((committedMs) => committedMs < asOfMs - SLACK_MS).length > had,
  );
  expect(wrong).toEqual([]);
  expect(claims.length).toBeGreaterThan(5);
});
