/**
 * Writes the sample of the present store format to test/fixtures, once when it has got a new version:
 *
 *   node test/snapshot/make-sample-store.ts
 */
import { cpSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { STORE_FORMAT_VERSION } from '../../src/store/manifest.ts';
import { at, headAt, StoreFixture, tx } from './store-fixture.ts';

const target = fileURLToPath(new URL(`../fixtures/store-v${STORE_FORMAT_VERSION}`, import.meta.url));
await using fixture = await StoreFixture.open();
const segments = fixture.segments();
await fixture.snapshot();
for (let index = 1; index <= 4; index++) {
  fixture.apply(tx(index, 2));
  await segments.append(tx(index, 2));
  await segments.seal(null);
  if (index === 2) await fixture.snapshot();
}
await segments.seal(headAt(at(5)));
rmSync(target, { recursive: true, force: true });
cpSync(join(fixture.directory.path, 'store'), target, { recursive: true });
for (const own of ['.aside', '.lock']) rmSync(join(target, own), { recursive: true, force: true });
