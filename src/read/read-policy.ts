import type { Database } from 'better-sqlite3';
import { ConfigError, RivuletError } from '../errors.ts';
import type { Position } from '../token.ts';
import type { ReadSource } from './read-source.ts';

/** Long for a page, and far more than a replica in order ever needs. */
export const DEFAULT_READ_WAIT_MS = 1_000;

/** What becomes of a read that the file is not ready for in time. */
export type OnLate = 'fail' | 'stale' | 'fallback';

export interface ReadPolicyOptions {
  /** How long a read waits for what its reader wrote, or has seen; default: 1000. */
  readonly waitMs?: number | undefined;
  /**
   * `fail`: the error says why. `stale`: the file is read as it is, and the answer says so. `fallback`: Postgres is
   * read instead. Default: `fail`.
   */
  readonly onLate?: OnLate | undefined;
  /** The file may lack only what was committed within so many ms; default: no limit. */
  readonly maxLagMs?: number | undefined;
}

/** Where a read is to go, and why. */
export interface Readiness {
  /** `stale`: the file, though it is not ready. */
  readonly from: 'replica' | 'stale' | 'postgres';
  readonly waitedMs: number;
  /** Why not the file, or not a fresh one. */
  readonly reason: RivuletError | null;
}

export interface ReadRequest<T> extends ReadPolicyOptions {
  /** What the file must contain: nothing, or what a token carries. */
  readonly after?: Position | null | undefined;
  readonly signal?: AbortSignal | undefined;
  /** Reads the file; synchronously, so that all of it sees one state if it is in one transaction. */
  readonly replica: (db: Database) => T;
  /** The same from Postgres; needed for `fallback`. */
  readonly postgres?: (() => T | Promise<T>) | undefined;
}

export interface ReadAnswer<T> extends Readiness {
  readonly value: T;
}

/** Outcomes that are a reason to read elsewhere; anything else is an error of the caller's, or the end. */
const LATE = new Set([
  'WAIT_TIMEOUT',
  'EPOCH_MISMATCH',
  'TOO_MANY_WAITERS',
  'TOO_STALE',
  'CLOSED',
  'TOKEN_UNAVAILABLE',
]);

/** Decides, read by read, whether the file will do. */
export class ReadPolicy {
  readonly #source: ReadSource;
  readonly #defaults: ReadPolicyOptions;

  constructor(source: ReadSource, defaults: ReadPolicyOptions = {}) {
    checkReadPolicy(defaults);
    this.#source = source;
    this.#defaults = defaults;
  }

  /** Waits until the file is ready, or says what to do instead. Rejects where the policy is `fail`. */
  async ready(
    after: Position | null,
    options: ReadPolicyOptions & { readonly signal?: AbortSignal | undefined } = {},
  ): Promise<Readiness> {
    checkReadPolicy(options);
    const waitMs = options.waitMs ?? this.#defaults.waitMs ?? DEFAULT_READ_WAIT_MS;
    const maxLagMs = options.maxLagMs ?? this.#defaults.maxLagMs;
    const { signal } = options;
    const startedAtMs = performance.now();
    const waitedMs = (): number => performance.now() - startedAtMs;
    try {
      if (after !== null) await this.#source.waitFor(after, { timeoutMs: waitMs, signal });
      if (maxLagMs !== undefined)
        await this.#source.waitUntilFresh(maxLagMs, { timeoutMs: Math.max(0, waitMs - waitedMs()), signal });
      return { from: 'replica', waitedMs: waitedMs(), reason: null };
    } catch (error) {
      return { ...this.late(error, options), waitedMs: waitedMs() };
    }
  }

  /** What to do about a file that is not ready; throws where that is to fail. */
  late(error: unknown, options: ReadPolicyOptions = {}): Readiness {
    const onLate = options.onLate ?? this.#defaults.onLate ?? 'fail';
    if (!(error instanceof RivuletError) || !LATE.has(error.code) || onLate === 'fail') throw error;
    return { from: onLate === 'stale' ? 'stale' : 'postgres', waitedMs: 0, reason: error };
  }

  /** Reads from the file once it is ready, or as the policy says. */
  async read<T>(request: ReadRequest<T>): Promise<ReadAnswer<T>> {
    const readiness = await this.ready(request.after ?? null, request);
    if (readiness.from !== 'postgres') return { ...readiness, value: request.replica(this.#source.db) };
    if (request.postgres === undefined) throw readiness.reason;
    return { ...readiness, value: await request.postgres() };
  }
}

/** A policy for reads of one file, a Replica or a Reader; each read may have its own limits. */
export function readPolicy(source: ReadSource, defaults?: ReadPolicyOptions): ReadPolicy {
  return new ReadPolicy(source, defaults);
}

/** Throws CONFIG for limits that are none. */
export function checkReadPolicy({ waitMs, onLate, maxLagMs }: ReadPolicyOptions): void {
  for (const [name, value] of Object.entries({ waitMs, maxLagMs })) {
    if (value !== undefined && !(value >= 0 && Number.isFinite(value)))
      throw new ConfigError(`${name} must be a number of milliseconds`);
  }
  if (onLate !== undefined && !['fail', 'stale', 'fallback'].includes(onLate))
    throw new ConfigError("onLate must be 'fail', 'stale' or 'fallback'");
}
