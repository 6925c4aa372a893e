import { randomBytes } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import { RivuletError } from '../errors.ts';
import { encodeManifest, MANIFEST_BACKUP_KEY, MANIFEST_KEY, type Manifest } from '../store/manifest.ts';
import type { ObjectStore, StoreCallOptions } from '../store/object-store.ts';
import { readManifest } from '../store/read-manifest.ts';

/** Two writers that meet go on after a moment; a store that shows old content for longer is no use to write to. */
const ATTEMPTS = 40;
const LONGEST_RETRY_MS = 500;

/** For so long an answer that is older than what is known counts as a store that takes its time to show what was written. */
const STALE_READS = 40;
const STALE_READ_RETRY_MS = 250;

const NOBODY = { id: '00', generation: 0 } as const;

/**
 * What a process does to a store: `writer`, all of it; `archiver`, all but the snapshots, which it leaves to another
 * process; `snapshotter`, nothing but those.
 */
export type StoreRole = 'writer' | 'archiver' | 'snapshotter';

export interface ManifestWriterOptions {
  readonly store: ObjectStore;
  /** The database that the store is of; a store of another one is refused. Null: whichever it is. */
  readonly source: Manifest['source'] | null;
  /** What takeOver() makes of this process; by default the writer. */
  readonly role?: StoreRole | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly onWarning: (message: string, facts: Readonly<Record<string, unknown>>) => void;
}

/**
 * Replaces the manifest, by compare-and-swap only. Of those that took it over (`takeOver`) the newest may write;
 * one that was replaced meanwhile finds a newer generation, throws STORE_FENCED, and has changed nothing.
 *
 * A change is a pure function of the manifest as it is now, and may be called again: it must give the same manifest
 * back (or null) where what it wants to bring about is there already, because the answer to a swap that worked can
 * get lost.
 */
export class ManifestWriter {
  readonly #options: ManifestWriterOptions;
  readonly #id = randomBytes(8).toString('hex');
  #current: Manifest | null = null;
  #version: string | null = null;
  #generation: number | null = null;
  #turn: Promise<unknown> = Promise.resolve();

  constructor(options: ManifestWriterOptions) {
    this.#options = options;
  }

  /** As it was last read or written. Null while there is none. */
  get current(): Manifest | null {
    return this.#current;
  }

  /** Makes this the one writer. Makes the manifest if there is none. */
  async takeOver(): Promise<Manifest> {
    const { store } = this.#options;
    await store.prepareWriting(this.#call);
    if (!store.hasAtomicSwap) {
      this.#options.onWarning(
        'this object store has no conditional writes: only one replicator at a time may write to it',
        { store: store.url },
      );
    }
    this.#generation = null;
    await this.#read();
    const taken = await this.update((manifest) => this.#enter(manifest));
    this.#generation = this.#seat(taken)!.generation;
    return taken;
  }

  /** Reads it anew: for whoever changes it now and then without having taken it over. */
  async refresh(): Promise<Manifest | null> {
    await this.#read();
    return this.#current;
  }

  /** Applies `change` to the manifest as it is in the store; one at a time. Gives the manifest that then holds. */
  update(change: (manifest: Manifest) => Manifest | null): Promise<Manifest> {
    const turn = this.#turn.then(() => this.#update(change));
    this.#turn = turn.catch(() => undefined);
    return turn;
  }

  /** Keeps a copy of the manifest as it is: see readManifest(). */
  async backUp(): Promise<void> {
    if (this.#current !== null)
      await this.#options.store.put(MANIFEST_BACKUP_KEY, encodeManifest(this.#current), this.#call);
  }

  /** The manifest with this process in its place; null if it has that already. Throws where the place is not offered. */
  #enter(manifest: Manifest): Manifest | null {
    const { store, role } = this.#options;
    const seat = this.#seat(manifest);
    if (seat === null && this.#current === null) {
      throw new RivuletError(
        'STORE_REFUSED',
        `there is nothing in ${store.url}: no replicator writes to it yet`,
        {
          hint: 'give the --store that the replicator was started with',
        },
      );
    }
    if (seat === null) {
      throw new RivuletError('STORE_REFUSED', `the replicator takes the snapshots in ${store.url} itself`, {
        hint: 'start it with --snapshots elsewhere',
      });
    }
    if (seat.id === this.#id) return null;
    const taken = { id: this.#id, generation: seat.generation + 1 };
    if (role === 'snapshotter') return { ...manifest, snapshotter: taken };
    const snapshotter = role === 'archiver' ? (manifest.snapshotter ?? NOBODY) : null;
    return { ...manifest, writer: taken, snapshotter };
  }

  #seat(manifest: Manifest): Manifest['writer'] | null {
    return this.#options.role === 'snapshotter' ? manifest.snapshotter : manifest.writer;
  }

  get #call(): StoreCallOptions {
    return { signal: this.#options.signal };
  }

  async #update(change: (manifest: Manifest) => Manifest | null): Promise<Manifest> {
    for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
      const before = this.#current ?? this.#empty();
      const changed = change(before);
      if (changed === null || changed === before) {
        if (attempt > 0 || this.#current !== null) return before;
      }
      const next: Manifest = {
        ...(changed ?? before),
        sequence: before.sequence + 1,
        updatedAt: new Date().toISOString(),
      };
      const bytes = encodeManifest(next);
      const version = await this.#options.store.swap(MANIFEST_KEY, bytes, this.#version, this.#call);
      if (version !== null) {
        this.#current = next;
        this.#version = version;
        return next;
      }
      await this.#read();
      await delay(Math.random() * Math.min(LONGEST_RETRY_MS, 10 * 2 ** attempt), undefined, this.#call);
    }
    throw new RivuletError(
      'STORE_UNREACHABLE',
      `the manifest in ${this.#options.store.url} could not be replaced: what is read there is never what is there`,
      { hint: 'is there a cache in front of the object store?' },
    );
  }

  /** What is there by now: never older than what was known before. */
  async #read(): Promise<void> {
    const { store } = this.#options;
    const known = this.#current;
    for (let attempt = 1; ; attempt++) {
      const read = await this.#readOnce();
      // Where it was seen it stays; an answer without it, or with a lower number, comes from before.
      const isStale = known !== null && (read?.manifest.sequence ?? 0) < known.sequence;
      if (!isStale) {
        if (read !== null) this.#check(read.manifest);
        this.#current = read?.manifest ?? null;
        this.#version = read?.version ?? null;
        return;
      }
      if (attempt === STALE_READS) {
        if (read === null) throw this.#fenced('the manifest is gone');
        throw new RivuletError(
          'STORE_UNREACHABLE',
          `the manifest in ${store.url} is older than what this process has seen there`,
          { hint: 'is there a cache in front of the object store? was an older state of it restored?' },
        );
      }
      await delay(STALE_READ_RETRY_MS, undefined, this.#call);
    }
  }

  /** Throws where it is not ours to replace. */
  #check(manifest: Manifest): void {
    const { store, source } = this.#options;
    if (
      source !== null &&
      (manifest.source.systemIdentifier !== source.systemIdentifier ||
        manifest.source.database !== source.database)
    ) {
      throw new RivuletError(
        'STORE_REFUSED',
        `${store.url} belongs to another database (${manifest.source.database})`,
        { hint: 'give every database a bucket or prefix of its own' },
      );
    }
    if (this.#generation === null) return;
    const seat = this.#seat(manifest);
    if (seat === null) throw this.#fenced('the replicator takes the snapshots itself');
    if (seat.id !== this.#id && seat.generation >= this.#generation) {
      const isSnapshotter = this.#options.role === 'snapshotter';
      throw this.#fenced(
        isSnapshotter ? 'another snapshotter takes the snapshots' : 'another replicator writes to it',
      );
    }
  }

  /** A backup is as of some moment before: what is known of the manifest is newer, and goes on from it. */
  async #readOnce(): Promise<{ readonly manifest: Manifest; readonly version: string } | null> {
    const { store, onWarning } = this.#options;
    const read = await readManifest(store, this.#call);
    if (read === null || read.damage === null) return read;
    onWarning(`${read.damage.message}: its backup is used`, { code: read.damage.code });
    const known = this.#current;
    const isKnownNewer = known !== null && known.sequence > read.manifest.sequence;
    return { manifest: isKnownNewer ? known : read.manifest, version: read.version };
  }

  #fenced(why: string): RivuletError {
    return new RivuletError('STORE_FENCED', `${this.#options.store.url} was taken over: ${why}`, {
      hint: 'one replicator and one snapshotter write to a store, those that were started last; stop this one, or give it a --store of its own',
    });
  }

  #empty(): Manifest {
    const { source } = this.#options;
    if (source === null) {
      throw new RivuletError('NOT_RESTORABLE', `there is nothing in ${this.#options.store.url}`, {
        hint: 'a replicator that is started with this --store makes the first snapshot',
      });
    }
    return {
      sequence: 0,
      writer: NOBODY,
      snapshotter: null,
      updatedAt: new Date().toISOString(),
      source,
      archived: null,
      resume: null,
      snapshots: [],
      segmentLists: [],
      segments: [],
      removed: [],
    };
  }
}
