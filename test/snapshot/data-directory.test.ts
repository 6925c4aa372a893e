import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { expect, test } from 'vitest';
import { silentLog } from '../../src/log.ts';
import { makeDataDirectory } from '../../src/snapshot/data-directory.ts';
import { Snapshotter } from '../../src/snapshot/snapshotter.ts';
import { temporaryDirectory } from '../fanout/test-replicator.ts';

test('a data directory that cannot be used is named, by a snapshotter as well', async () => {
  using directory = temporaryDirectory();
  const file = join(directory.path, 'file');
  writeFileSync(file, '');
  const unusable = {
    code: 'FILE_UNUSABLE',
    message: expect.stringContaining(`the data directory ${file} cannot be used: `),
    hint: 'name a directory of its own with --data, where this user may write',
  };
  expect(() => makeDataDirectory(file)).toThrow(expect.objectContaining(unusable));
  const snapshotter = new Snapshotter({
    replicator: { url: 'http://127.0.0.1:9' },
    location: { url: pathToFileURL(join(directory.path, 'store')).href },
    dataDir: file,
    log: silentLog(),
  });
  await expect(snapshotter.run(new AbortController().signal)).rejects.toMatchObject(unusable);
});
