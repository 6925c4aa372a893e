import { existsSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import Database from 'better-sqlite3';
import { expect, test } from 'vitest';
import type { ChangeLog } from '../../src/changelog/change-log.ts';
import { silentLog } from '../../src/log.ts';
import { resumeFromStore } from '../../src/replicator/resume.ts';
import { blobKey } from '../../src/store/blob.ts';
import { SOURCE } from '../fanout/test-replicator.ts';
import { at, StoreFixture, tx } from '../snapshot/store-fixture.ts';

/** As a replicator without its disk, from what a fixture has in its store. */
async function resumed(
  fixture: StoreFixture,
  forgotten: number,
): Promise<{ readonly log: ChangeLog | null; readonly transactions: readonly number[] }> {
  const baseFile = join(fixture.directory.path, 'base.db');
  const log = await resumeFromStore({
    location: { url: fixture.url },
    dataDir: fixture.directory.path,
    baseFile,
    identity: { ...SOURCE, serverVersion: 180_000 },
    slot: 'rivulet',
    publication: 'rivulet',
    forgotten: at(forgotten),
    log: silentLog(),
    signal: new AbortController().signal,
  });
  if (!existsSync(baseFile)) return { log, transactions: [] };
  const db = new Database(baseFile, { readonly: true });
  const transactions = db
    .prepare<[], number>('select distinct id / 10000 from items order by 1')
    .pluck()
    .all();
  db.close();
  return { log, transactions };
}

test('segments with a gap are gone on from only with a snapshot behind it', async () => {
  await using fixture = await StoreFixture.open();
  await fixture.snapshot();
  await fixture.archiveWithGap(at(8));
  expect(await resumed(fixture, 8)).toEqual({ log: null, transactions: [] });

  fixture.apply(...Array.from({ length: 7 }, (_, index) => tx(index + 1)));
  const { snapshot } = await fixture.snapshot();
  const whole = await resumed(fixture, 8);
  expect(whole).toMatchObject({ log: { position: at(8) }, transactions: [1, 2, 3, 4, 5, 6, 7, 8] });
  await whole.log!.close();
  rmSync(join(fixture.directory.path, 'base.db'));

  // The one before it does not lead there.
  rmSync(fixture.path(blobKey('lists', snapshot.chunkList.hash)));
  expect(await resumed(fixture, 8)).toEqual({ log: null, transactions: [] });
});
