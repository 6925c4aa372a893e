import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { TestCluster } from '../helpers/cluster.ts';
import { nodeProgram, type RivuletProcess } from '../helpers/processes.ts';
import { TcpProxy } from '../helpers/tcp-proxy.ts';
import { waitUntil } from '../helpers/wait-until.ts';

const APP = fileURLToPath(new URL('../../examples/notes/app.ts', import.meta.url));

let cluster: TestCluster;
let link: TcpProxy;
const apps: RivuletProcess[] = [];

beforeAll(async () => {
  cluster = await TestCluster.start();
  await cluster.startReplicator();
  link = await TcpProxy.start({ port: Number(new URL(cluster.replicatorUrl).port) });
  for (const [name, replicator] of [
    ['one', cluster.replicatorUrl],
    ['two', link.through(cluster.replicatorUrl)],
  ] as const) {
    apps.push(
      nodeProgram(APP, [], {
        DATABASE_URL: cluster.postgres.url,
        REPLICATOR_URL: replicator,
        NOTES_FILE: cluster.file(name),
        PORT: '0',
      }),
    );
    await apps.at(-1)!.ready;
  }
});
afterAll(async () => {
  for (const app of apps) await app[Symbol.asyncDispose]();
  await link?.[Symbol.asyncDispose]();
  await cluster?.[Symbol.asyncDispose]();
});

test('what is saved on one node is in the list of the other, however late its changes come', async () => {
  const [writer, reader] = await Promise.all(apps.map((app) => app.ready));
  for (let number = 1; number <= 20; number++) {
    const isHeldBack = number % 5 === 0;
    if (isHeldBack) for (const each of link.connections) each.stall('to client');
    const saved = await fetch(`${writer}/notes`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ text: `note ${number}` }),
    });
    expect(saved.status).toBe(201);
    const cookie = saved.headers.getSetCookie()[0]!.split(';')[0]!;
    const reading = fetch(`${reader}/notes`, { headers: { cookie } });
    if (isHeldBack) {
      await new Promise((resolve) => setTimeout(resolve, 30));
      for (const each of link.connections) each.resume('to client');
    }
    const notes = (await (await reading).json()) as { text: string }[];
    expect(notes[0]).toMatchObject({ text: `note ${number}` });
  }
});

test('it has a page, says how it is, and ends cleanly', async () => {
  const url = await apps[0]!.ready;
  expect(await (await fetch(url)).text()).toContain('<title>Notes</title>');
  expect(await (await fetch(`${url}/healthz`)).json()).toEqual({ healthy: true, reasons: [] });
  expect(await apps[0]!.kill('SIGTERM')).toBe(0);
  await waitUntil('nobody there', () =>
    fetch(url).then(
      () => false,
      () => true,
    ),
  );
});
