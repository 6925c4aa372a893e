import { randomBytes } from 'node:crypto';
import { describe, expect, test } from 'vitest';
import type { ListedObject, ObjectStore } from '../../src/store/object-store.ts';

export interface StoreUnderTest extends AsyncDisposable {
  /** Another handle on the same, empty place each time it is called. */
  open(): Promise<ObjectStore>;
}

/** What every object store must do. */
export function objectStoreContract(name: string, make: () => Promise<StoreUnderTest>): void {
  async function opened(): Promise<{ store: ObjectStore; other: ObjectStore } & AsyncDisposable> {
    const place = await make();
    const store = await place.open();
    const other = await place.open();
    await store.prepareWriting();
    await other.prepareWriting();
    return {
      store,
      other,
      async [Symbol.asyncDispose]() {
        await store.close();
        await other.close();
        await place[Symbol.asyncDispose]();
      },
    };
  }

  async function listed(store: ObjectStore, prefix: string): Promise<ListedObject[]> {
    const found: ListedObject[] = [];
    for await (const each of store.list(prefix)) found.push(each);
    return found.sort((a, b) => (a.key < b.key ? -1 : 1));
  }

  describe(name, () => {
    test('gives back what was put, through another handle too', async () => {
      await using place = await opened();
      const { store, other } = place;
      const bytes = randomBytes(100_000);
      await store.put('chunks/ab/abcd', bytes);
      expect(await other.get('chunks/ab/abcd')).toEqual(bytes);
      expect(await other.head('chunks/ab/abcd')).toEqual({ bytes: bytes.length });
      await store.put('empty', Buffer.alloc(0));
      expect(await other.get('empty')).toEqual(Buffer.alloc(0));
      // Putting it again is no error.
      await other.put('chunks/ab/abcd', bytes);
      expect(await store.get('chunks/ab/abcd')).toEqual(bytes);
    });

    test('says null of what is not there', async () => {
      await using place = await opened();
      const { store } = place;
      expect(await store.get('nothing/here')).toBeNull();
      expect(await store.head('nothing/here')).toBeNull();
      expect(await store.read('nothing')).toBeNull();
      await store.delete(['nothing/here', 'nothing']);
    });

    test('a large object arrives whole', async () => {
      await using place = await opened();
      const { store, other } = place;
      const bytes = randomBytes(21 * 1024 * 1024 + 7);
      await store.put('segments/large', bytes);
      expect((await other.get('segments/large'))!.equals(bytes)).toBe(true);
    });

    test('swap replaces only what was read', async () => {
      await using place = await opened();
      const { store, other } = place;
      const first = (await store.swap('manifest.json', Buffer.from('one'), null))!;
      expect(first).toEqual(expect.any(String));
      expect(await other.swap('manifest.json', Buffer.from('two'), null)).toBeNull();
      expect(await other.read('manifest.json')).toEqual({ bytes: Buffer.from('one'), version: first });
      const second = (await other.swap('manifest.json', Buffer.from('two'), first))!;
      expect(await store.swap('manifest.json', Buffer.from('three'), first)).toBeNull();
      expect(await store.read('manifest.json')).toEqual({ bytes: Buffer.from('two'), version: second });
    });

    test('deletes what it is told, and lists the rest by prefix', async () => {
      await using place = await opened();
      const { store, other } = place;
      await Promise.all(
        ['chunks/aa/1', 'chunks/ab/2', 'segments/3'].map((key) => store.put(key, Buffer.from(key))),
      );
      await store.delete(['chunks/aa/1', 'chunks/none']);
      expect((await listed(other, 'chunks/')).map(({ key, bytes }) => [key, bytes])).toEqual([
        ['chunks/ab/2', 11],
      ]);
      const [object] = await listed(other, 'segments/');
      expect(Math.abs(Date.now() - object!.modifiedAtMs)).toBeLessThan(60_000);
      expect(await other.get('chunks/aa/1')).toBeNull();
    });

    test('no key leads out of the store', async () => {
      await using place = await opened();
      const { store } = place;
      for (const key of ['../x', '/etc/passwd', 'a/../../x', '.lock', 'a//b', 'a b', ''])
        await expect(store.get(key)).rejects.toMatchObject({ code: 'CONFIG' });
    });
  });
}

/** For stores whose swap is atomic: of many writers at once, exactly one wins each round. */
export function atomicSwapContract(name: string, make: () => Promise<StoreUnderTest>): void {
  test(`${name}: of many writers at once exactly one wins`, async () => {
    await using place = await make();
    const stores = await Promise.all(Array.from({ length: 4 }, () => place.open()));
    for (const store of stores) await store.prepareWriting();
    expect(stores.every(({ hasAtomicSwap }) => hasAtomicSwap)).toBe(true);
    let version: string | null = null;
    for (let round = 0; round < 10; round++) {
      const versions: (string | null)[] = await Promise.all(
        stores.map((store, index) => store.swap('manifest.json', Buffer.from(`${round} ${index}`), version)),
      );
      const winners = versions.filter((each) => each !== null);
      expect(winners).toHaveLength(1);
      version = winners[0]!;
    }
    for (const store of stores) await store.close();
  });
}
