import { createHash, randomBytes } from 'node:crypto';
import { type Dirent, mkdirSync, statSync } from 'node:fs';
import { mkdir, open, readdir, readFile, rename, rm, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import Database from 'better-sqlite3';
import { isDiskFull, RivuletError } from '../errors.ts';
import type { ReaderLocation } from './object-reader.ts';
import {
  checkKey,
  type ListedObject,
  type ObjectStore,
  type StoreCallOptions,
  type StoredVersion,
} from './object-store.ts';
import type { StoreLocation } from './open-store.ts';

/** Where objects are written before they get their name; a name without them cannot be a key. */
const ASIDE = '.aside';
const LOCK = '.lock';

/** A swap takes milliseconds; whoever holds the lock for longer is stopped, not busy. */
const LOCK_TIMEOUT_MS = 10_000;
const LOCK_POLL_MS = 5;

/**
 * A directory as object store, on this machine or mounted. An object gets its name by rename once its bytes are
 * on the disk, so nobody ever reads a part of one; swap() is atomic under a lock that ends with its process.
 */
export class FileStore implements ObjectStore {
  readonly url: string;
  readonly location: StoreLocation;
  readonly hasAtomicSwap = true;
  readonly #directory: string;

  constructor(options: { readonly url: string; readonly directory: string }) {
    this.url = options.url;
    this.location = { url: options.url };
    this.#directory = options.directory;
  }

  async reading(): Promise<ReaderLocation> {
    return { store: this.location, access: null };
  }

  async prepareWriting(): Promise<void> {
    try {
      mkdirSync(join(this.#directory, ASIDE), { recursive: true });
      if (!statSync(this.#directory).isDirectory()) throw new Error('it is not a directory');
    } catch (cause) {
      throw this.#explain(cause, 'cannot be written');
    }
  }

  async put(key: string, bytes: Uint8Array): Promise<void> {
    await this.#write(checkKey(key), bytes);
  }

  async get(key: string, options: StoreCallOptions = {}): Promise<Buffer | null> {
    return await this.#orNull(key, (path) => readFile(path, { signal: options.signal }));
  }

  async head(key: string): Promise<{ readonly bytes: number } | null> {
    return await this.#orNull(key, async (path) => ({ bytes: (await stat(path)).size }));
  }

  async read(key: string, options: StoreCallOptions = {}): Promise<StoredVersion | null> {
    const bytes = await this.get(key, options);
    return bytes === null ? null : { bytes, version: versionOf(bytes) };
  }

  async swap(key: string, bytes: Uint8Array, expected: string | null): Promise<string | null> {
    const release = await this.#lock();
    try {
      const present = await this.read(key);
      if ((present?.version ?? null) !== expected) return null;
      await this.#write(checkKey(key), bytes);
      return versionOf(bytes);
    } finally {
      release();
    }
  }

  async delete(keys: readonly string[]): Promise<void> {
    for (const key of keys) {
      try {
        await rm(this.#path(key), { force: true });
      } catch (cause) {
        throw this.#explain(cause, `cannot delete ${key}`);
      }
    }
  }

  /** Leftovers of writers that were killed are not listed; they go once they are an hour old. */
  async *list(prefix: string): AsyncIterable<ListedObject> {
    await this.#removeLeftovers();
    let entries: Dirent[];
    try {
      entries = await readdir(this.#directory, { recursive: true, withFileTypes: true });
    } catch (cause) {
      if (isMissing(cause)) return;
      throw this.#explain(cause, 'cannot be listed');
    }
    for (const entry of entries) {
      if (!entry.isFile()) continue;
      const path = join(entry.parentPath, entry.name);
      const key = path
        .slice(this.#directory.length)
        .replace(/^[/\\]+/, '')
        .replaceAll('\\', '/');
      if (key.startsWith('.') || !key.startsWith(prefix)) continue;
      const facts = await stat(path).catch(() => null);
      if (facts !== null) yield { key, bytes: facts.size, modifiedAtMs: facts.mtimeMs };
    }
  }

  async close(): Promise<void> {}

  async [Symbol.asyncDispose](): Promise<void> {}

  #path(key: string): string {
    return join(this.#directory, checkKey(key));
  }

  async #orNull<T>(key: string, use: (path: string) => Promise<T>): Promise<T | null> {
    try {
      return await use(this.#path(key));
    } catch (cause) {
      if (isMissing(cause)) {
        // A directory that is not there at all is a wrong path or a disk that is not mounted, not an empty store.
        await stat(this.#directory).catch((error: unknown) => {
          throw this.#explain(error, 'cannot be read');
        });
        return null;
      }
      throw this.#explain(cause, `cannot read ${key}`);
    }
  }

  async #write(key: string, bytes: Uint8Array): Promise<void> {
    const path = this.#path(key);
    const aside = join(this.#directory, ASIDE, randomBytes(8).toString('hex'));
    try {
      await this.#makeDirectory(join(this.#directory, ASIDE));
      const handle = await open(aside, 'wx');
      try {
        await handle.writeFile(bytes);
        await handle.sync();
      } finally {
        await handle.close();
      }
      await this.#makeDirectory(dirname(path));
      await rename(aside, path);
      await syncDirectory(dirname(path));
    } catch (cause) {
      await rm(aside, { force: true }).catch(() => undefined);
      throw this.#explain(cause, `cannot write ${key}`);
    }
  }

  /** With its own entry on the disk: an object in a directory that a crash takes away is not durable. */
  async #makeDirectory(path: string): Promise<void> {
    const made = await mkdir(path, { recursive: true });
    if (made === undefined) return;
    for (let at = path; at.length >= made.length; at = dirname(at)) await syncDirectory(dirname(at));
  }

  async #lock(): Promise<() => void> {
    const path = join(this.#directory, LOCK);
    for (const deadline = performance.now() + LOCK_TIMEOUT_MS; ; ) {
      const db = this.#tryLock(path);
      if (db !== null) return () => db.close();
      if (performance.now() > deadline) {
        throw new RivuletError(
          'STORE_UNREACHABLE',
          `${this.url} is locked by a process that does not let go`,
          {
            hint: `find the process that has ${path} open`,
          },
        );
      }
      await delay(LOCK_POLL_MS);
    }
  }

  #tryLock(path: string): Database.Database | null {
    let db: Database.Database | null = null;
    try {
      db = new Database(path, { timeout: 0 });
      db.exec('BEGIN EXCLUSIVE');
      return db;
    } catch (cause) {
      db?.close();
      if (String((cause as { code?: unknown }).code).startsWith('SQLITE_BUSY')) return null;
      throw this.#explain(cause, 'cannot be locked');
    }
  }

  async #removeLeftovers(): Promise<void> {
    const directory = join(this.#directory, ASIDE);
    for (const name of await readdir(directory).catch(() => [])) {
      const path = join(directory, name);
      const facts = await stat(path).catch(() => null);
      if (facts !== null && Date.now() - facts.mtimeMs > 3_600_000) await rm(path, { force: true });
    }
  }

  #explain(cause: unknown, says: string): unknown {
    if (cause instanceof RivuletError || (cause as Error).name === 'AbortError') return cause;
    const { code, message } = cause as NodeJS.ErrnoException;
    if (isDiskFull(cause)) {
      return new RivuletError('DISK_FULL', `the object store ${this.url} ${says}: no space is left`, {
        cause,
        hint: 'free some space: the work goes on by itself',
      });
    }
    return new RivuletError('STORE_REFUSED', `the object store ${this.url} ${says}: ${code ?? message}`, {
      cause,
      hint: 'the directory must exist and be readable, for a replicator also writable, for this user',
    });
  }
}

function versionOf(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}

function isMissing(error: unknown): boolean {
  const { code } = error as NodeJS.ErrnoException;
  return code === 'ENOENT' || code === 'ENOTDIR';
}

async function syncDirectory(path: string): Promise<void> {
  const handle = await open(path, 'r');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}
