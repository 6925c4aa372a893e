import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { HttpLink } from '../../src/replica/http-link.ts';
import { ReplicaKeeper } from '../../src/replica/replica-keeper.ts';
import { keeperEvents } from './keeper-events.ts';

const dir = mkdtempSync(join(tmpdir(), 'rivulet-keeper-'));
afterAll(() => rmSync(dir, { recursive: true }));

test('nobody waits for a file to stand still that is kept no more', async () => {
  const keeper = new ReplicaKeeper({
    file: join(dir, 'app.db'),
    // Nobody listens there: the first file never comes.
    link: new HttpLink({ url: 'http://127.0.0.1:1' }),
    id: 'app',
    name: 'app',
    localScript: null,
    events: keeperEvents(),
  });
  const stop = new AbortController();
  const running = keeper.run(stop.signal);
  const before = keeper.standStill(async () => 'stood still').catch((error: unknown) => error);
  stop.abort();
  await running;
  const after = keeper.standStill(async () => 'stood still').catch((error: unknown) => error);
  expect([await before, await after]).toEqual([
    expect.objectContaining({ code: 'CLOSED' }),
    expect.objectContaining({ code: 'CLOSED' }),
  ]);
});
