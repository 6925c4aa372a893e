import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import Database from 'better-sqlite3';
import { expect, test } from 'vitest';
import { run } from '../../src/cli/run.ts';
import { formatLsn } from '../../src/lsn.ts';
import { restore } from '../../src/snapshot/restore.ts';
import { STORE_FORMAT_VERSION } from '../../src/store/manifest.ts';
import { openStore } from '../../src/store/open-store.ts';
import { fakeProcess } from '../cli/fake-process.ts';
import { temporaryDirectory } from '../fanout/test-replicator.ts';
import { at } from './store-fixture.ts';

const FIXTURES = new URL('../fixtures/', import.meta.url);
const VERSIONS = readdirSync(FIXTURES).map((name) => Number(/^store-v(\d+)$/.exec(name)![1]));

test('there is a sample of every format', () => {
  expect(VERSIONS.sort()).toEqual(Array.from({ length: STORE_FORMAT_VERSION }, (_, index) => index + 1));
});

test.each(VERSIONS)('a store of format %i can be restored from', async (version) => {
  using directory = temporaryDirectory();
  const { href } = new URL(`store-v${version}`, FIXTURES);
  await using store = await openStore({ url: href });
  for (const transactions of [1, 2, 4]) {
    const file = join(directory.path, `${transactions}.db`);
    const report = await restore({
      store,
      file,
      target: { lsn: at(transactions) },
      signal: new AbortController().signal,
      onProgress: () => undefined,
      onWarning: (message) => expect(message).toBe(''),
    });
    expect(report).toMatchObject({ epoch: 'e1', position: at(transactions) });
    const db = new Database(file, { readonly: true });
    expect(db.prepare('select count(*) from items').pluck().get()).toBe(2 * transactions);
    db.close();
    const host = fakeProcess();
    expect(await run(['status', '--file', file, '--json'], host), host.stderr.text).toBe(0);
    expect(JSON.parse(host.stdout.text)).toMatchObject({ file: { position: formatLsn(at(transactions)) } });
  }
});
