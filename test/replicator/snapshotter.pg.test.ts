import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { pathToFileURL } from 'node:url';
import { expect, test } from 'vitest';
import type { Manifest } from '../../src/store/manifest.ts';
import { openStore } from '../../src/store/open-store.ts';
import { readManifest } from '../../src/store/read-manifest.ts';
import { asTyped, TestCluster } from '../helpers/cluster.ts';
import { type RivuletProcess, rivulet, runRivulet } from '../helpers/processes.ts';
import { stopUnlocked } from '../helpers/stop-unlocked.ts';
import { checkStore } from '../helpers/store-check.ts';
import { createTpcb, startTpcbLoad } from '../helpers/tpcb.ts';
import { waitUntil } from '../helpers/wait-until.ts';

async function clusterWithStore(environment: Readonly<Record<string, string>> = {}) {
  const cluster = await TestCluster.start();
  const url = pathToFileURL(join(cluster.dir, 'store')).href;
  const store = await openStore({ url });
  // Whoever reads a directory that is not there hears of it, and the replicator makes it when it comes to it.
  await store.prepareWriting();
  await createTpcb(cluster.postgres.url, 1, 2_000);
  await cluster.startReplicator({
    RIVULET_STORE: url,
    RIVULET_SEGMENT_AGE: '100ms',
    RIVULET_SNAPSHOTS: 'elsewhere',
    RIVULET_SNAPSHOT_INTERVAL: '100ms',
    ...environment,
  });
  return {
    cluster,
    url,
    store,
    snapshotter: (data = 'snapshotter'): RivuletProcess =>
      rivulet(
        [
          'snapshotter',
          '--replicator',
          cluster.replicatorUrl,
          '--data',
          asTyped(join(cluster.dir, data)),
        ].concat([
          ...['--store', url, '--listen', '127.0.0.1:0', '--snapshot-interval', '300ms'],
          ...['--snapshot-keep-count', '2', '--snapshot-keep-age', '1s'],
        ]),
      ),
    manifest: async (): Promise<Manifest> => (await readManifest(store))!.manifest,
    async [Symbol.asyncDispose]() {
      await store.close();
      await cluster[Symbol.asyncDispose]();
    },
  };
}

test('a snapshotter of its own takes the snapshots, killed at any moment or not', async () => {
  await using system = await clusterWithStore();
  const { cluster, store, snapshotter, manifest } = system;
  const load = startTpcbLoad({
    url: cluster.postgres.url,
    scale: 1,
    accountsPerBranch: 2_000,
    clients: 2,
    rate: 200,
  });
  await using _load = load;
  await waitUntil('segments', async () => ((await readManifest(store))?.manifest.segments.length ?? 0) > 1);
  expect((await manifest()).snapshots).toEqual([]);
  const seen = new Set<string>();
  for (let kill = 0; kill < 4; kill++) {
    await using process = snapshotter();
    await process.ready;
    const before = (await manifest()).snapshots.at(-1)?.position ?? 0n;
    if (kill % 2 === 0)
      await waitUntil(
        'a snapshot',
        async () => ((await manifest()).snapshots.at(-1)?.position ?? 0n) > before,
      );
    await delay(Math.random() * 500);
    await process.kill('SIGKILL');
    expect(await checkStore(store, seen)).toEqual([]);
  }
  await using process = snapshotter();
  const address = await process.ready;
  await load.stop();
  // The one that is asked for, also where the replicator is asked, and says who takes them.
  const now = await runRivulet(['snapshot', 'now', '--json', '--replicator', address]);
  expect([now.code, now.stderr]).toEqual([0, '']);
  const refused = await runRivulet(['snapshot', 'now', '--replicator', cluster.replicatorUrl]);
  expect(refused.stderr).toMatch(/leaves the snapshots to another process/);
  expect(await (await fetch(`${address}/healthz`)).json()).toMatchObject({ healthy: true });
  expect(await (await fetch(`${address}/metrics`)).text()).toMatch(/rivulet_snapshot_age_ms \d/);
  const shown = await runRivulet(['status', '--replicator', address]);
  expect([shown.code, shown.stderr]).toEqual([0, '']);
  expect(shown.stdout).toMatch(/Snapshotter[\s\S]*state +live\n[\s\S]*snapshot +at [0-9A-F]+\/[0-9A-F]+, /);
  const asJson = JSON.parse((await runRivulet(['status', '--json', '--replicator', address])).stdout);
  expect(asJson).toMatchObject({ snapshotter: { isHealthy: true, store: system.url } });
  const { snapshots, writer } = await manifest();
  expect(writer.generation).toBe(1);
  // All are of positions that the segments lead on from, and old ones are taken out.
  expect(snapshots.length).toBeGreaterThan(0);
  expect(snapshots.length).toBeLessThan(6);
  await cluster.startReplica('one', { RIVULET_STORE: system.url });
  expect(cluster.replicas.get('one')!.stderr).toMatch(/taken from file/);
  expect(await cluster.differences()).toEqual([]);
  expect(await process.kill('SIGTERM')).toBe(0);
}, 90_000);

/** Its exit code, once it has ended by itself. */
async function codeOf(process: RivuletProcess): Promise<number | string> {
  await waitUntil('a snapshotter to end', () => process.hasEnded).catch((error: Error) => {
    throw new Error(`${error.message}\n${process.stderr}`);
  });
  return process.exited;
}

test('of two snapshotters the one that was started last takes the snapshots, and the other one ends', async () => {
  await using system = await clusterWithStore();
  const { cluster, store, snapshotter, manifest } = system;
  await using stale = snapshotter('stale');
  await waitUntil('a snapshot', async () => (await readManifest(store))?.manifest.snapshots.at(-1));
  await stopUnlocked(stale, join(cluster.dir, 'store'));
  await using next = snapshotter('next');
  await next.ready;
  await waitUntil('the next one', async () => (await manifest()).snapshotter?.generation === 2);
  await cluster.postgres.sql('update pgbench_accounts set abalance = 1');
  await waitUntil('another snapshot', async () => (await manifest()).snapshots.length > 1);
  await stale.kill('SIGCONT');
  expect(await codeOf(stale)).toBe(1);
  expect(stale.stderr).toMatch(/another snapshotter takes the snapshots/);
  expect(await checkStore(store)).toEqual([]);
  // A replicator that takes them itself ends the other one, too.
  await cluster.replicator!.kill('SIGTERM');
  await cluster.startReplicator({ RIVULET_STORE: system.url });
  expect(await codeOf(next)).toBe(1);
  expect(next.stderr).toMatch(/the replicator takes the snapshots itself/);
  await using late = snapshotter('next');
  await waitUntil('the reason', () => /start it with --snapshots elsewhere/.test(late.stderr));
  expect(late.stdout).toBe('');
  const { snapshotter: nobody } = await manifest();
  expect(nobody).toBeNull();
}, 90_000);

test('a snapshotter with another store than the replicator says so, and is not ready', async () => {
  await using system = await clusterWithStore();
  const { cluster } = system;
  const url = pathToFileURL(join(cluster.dir, 'other-store')).href;
  await using lost = rivulet([
    ...['snapshotter', '--replicator', cluster.replicatorUrl, '--data', join(cluster.dir, 'lost')],
    ...['--store', url],
  ]);
  const said =
    /"level":40.*"hint":"give the --store that the replicator was started with".*there is nothing in/;
  await waitUntil('the reason', () => said.test(lost.stderr));
  expect(lost.stderr).not.toContain('--snapshots elsewhere');
  expect(lost.stdout).toBe('');
  expect(await lost.kill('SIGTERM')).toBe(0);
}, 60_000);
