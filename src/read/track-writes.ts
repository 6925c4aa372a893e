import { AsyncLocalStorage, AsyncResource } from 'node:async_hooks';
import { EventEmitter } from 'node:events';
import { ConfigError, RivuletError } from '../errors.ts';
import {
  checkTokenKeys,
  decodeToken,
  encodeToken,
  laterToken,
  type Position,
  type TokenKeys,
} from '../token.ts';
import { type PgClient, TrackedClient, tokenError, tokenSql } from './tracked-client.ts';
import { WriteScope } from './write-scope.ts';

/** What of pg's Pool is used. */
interface PgPool extends EventEmitter {
  connect: (...args: never[]) => unknown;
  query: (...args: never[]) => unknown;
  readonly totalCount: number;
}

/** A Pool or a Client of the driver `pg`. */
export type Trackable = object;

export interface TrackWritesOptions {
  /** Signs the tokens that are given out. */
  readonly tokenKeys?: TokenKeys | undefined;
  /** Which publication's replicas the tokens are for; needed only where a database has several. */
  readonly publication?: string | undefined;
  /** A commit whose token could not be taken. Default: a process warning, once a minute at most. */
  readonly onError?: ((error: RivuletError) => void) | undefined;
}

export interface Collected<T> {
  readonly result: T;
  /** Covers all that was committed below; null if nothing was, or no token could be taken. */
  readonly token: string | null;
  /** Why no token could be taken of what was committed. */
  readonly error: RivuletError | null;
}

const WARNING_INTERVAL_MS = 60_000;

const TRACKERS = new WeakMap<object, WriteTracker>();

/**
 * Watches a pool, or a single client, from now on: whatever goes through it, by whatever code (pg itself, Kysely,
 * Drizzle …), a commit is noticed, and its token taken on the same connection before the caller has its answer.
 * Reads cost nothing, a commit one short round trip. The pool stays as it is otherwise; tracking it twice gives the
 * same tracker.
 */
export function trackWrites(pool: Trackable, options: TrackWritesOptions = {}): WriteTracker {
  checkTokenKeys(options.tokenKeys);
  const known = TRACKERS.get(pool);
  if (known !== undefined) return known;
  const tracker = new WriteTracker(pool, options);
  TRACKERS.set(pool, tracker);
  return tracker;
}

/** See trackWrites(). */
export class WriteTracker {
  readonly #options: TrackWritesOptions;
  readonly #scopes = new AsyncLocalStorage<WriteScope | undefined>();
  readonly #clients = new Map<object, TrackedClient>();
  readonly #ask: (sql: string) => Promise<unknown>;
  readonly #stop: () => unknown;
  #last: Position | null = null;
  #warnedAtMs = Number.NEGATIVE_INFINITY;

  /** Use trackWrites(). */
  constructor(pool: Trackable, options: TrackWritesOptions) {
    this.#options = options;
    if (!(pool instanceof EventEmitter) || !('query' in pool)) {
      throw new ConfigError('what is to be tracked is neither a Pool nor a Client of pg', {
        hint: 'other drivers: take tokens with select rivulet_token()',
      });
    }
    if (!('totalCount' in pool)) {
      const client = pool as unknown as PgClient;
      const query = client.query as (sql: string) => Promise<unknown>;
      this.#track(client, null);
      this.#ask = (sql) => query.call(client, sql);
      this.#stop = () => TRACKERS.delete(pool);
      return;
    }
    const tracked = pool as unknown as PgPool;
    const elsewhere = (): Promise<Position> => this.take();
    const onClient = (client: PgClient): void => this.#track(client, elsewhere);
    // 'acquire' brings those that were there before.
    tracked.on('connect', onClient);
    tracked.on('acquire', onClient);
    tracked.on('remove', (client: object) => this.#clients.delete(client));
    const connect = tracked.connect as (callback?: unknown) => unknown;
    // A callback that waited for a free client is called by whoever freed it: without this, in his scope.
    const bound = (callback?: unknown): unknown =>
      connect.call(
        tracked,
        typeof callback === 'function' ? AsyncResource.bind(callback as () => void) : callback,
      );
    tracked.connect = bound;
    const query = tracked.query as (sql: string) => Promise<unknown>;
    this.#ask = (sql) => this.#scopes.run(undefined, () => query.call(tracked, sql));
    this.#stop = () => {
      TRACKERS.delete(pool);
      tracked.off('connect', onClient);
      tracked.off('acquire', onClient);
      if (tracked.connect === bound) tracked.connect = connect;
    };
  }

  /** Runs `work` and gives the token of all that it committed, also in code that it calls and awaits. */
  async collect<T>(work: () => T | Promise<T>): Promise<Collected<T>> {
    const scope = new WriteScope();
    // Awaited inside: a query builder is sent only when somebody awaits it.
    const result = await this.run(scope, async () => await work());
    const position = await this.settle(scope);
    return { result, token: position === null ? null : this.encode(position), error: scope.error };
  }

  /** Runs `work` with `scope` collecting what it commits. */
  run<T>(scope: WriteScope, work: () => T): T {
    return this.#scopes.run(scope, work);
  }

  /** The position that covers all that a scope has committed so far; null if nothing, or without a token. */
  async settle(scope: WriteScope): Promise<Position | null> {
    await scope.settled();
    if (scope.isMarked) {
      try {
        scope.reached(await this.take());
      } catch (error) {
        scope.failed(error as RivuletError);
      }
    }
    return scope.error === null ? scope.settled() : null;
  }

  /**
   * For what cannot be noticed: a write by another driver, or a SELECT outside a transaction from a view, rule or
   * policy that hides a function which writes. The token is taken at the end of the scope.
   */
  markWrite(): void {
    const scope = this.#scopes.getStore();
    if (scope === undefined) {
      throw new ConfigError('markWrite() was called outside of any request or collect()', {
        hint: 'there is nothing that the token would be for; take() gives one at any time',
      });
    }
    scope.mark();
  }

  /** A token of everything that is committed now, on a connection of the pool. Throws TOKEN_UNAVAILABLE. */
  async take(): Promise<Position> {
    try {
      const result = (await this.#ask(tokenSql(this.#options.publication))) as {
        rows: { token: string | null }[];
      };
      const token = result.rows[0]?.token ?? null;
      if (token === null)
        throw new RivuletError('TOKEN_UNAVAILABLE', 'the client is inside a transaction that has written', {
          hint: 'take the token after COMMIT',
        });
      const position = decodeToken(token);
      this.#remember(position);
      return position;
    } catch (error) {
      throw tokenError(error);
    }
  }

  /** The newest token of this pool: covers every commit that was answered so far. */
  get lastToken(): string | null {
    return this.#last === null ? null : this.encode(this.#last);
  }

  encode(position: Position): string {
    return encodeToken(position, this.#options.tokenKeys);
  }

  decode(token: string): Position {
    return decodeToken(token, this.#options.tokenKeys);
  }

  /** Watches no longer. */
  stop(): void {
    this.#stop();
    for (const client of this.#clients.values()) client.stop();
    this.#clients.clear();
  }

  #track(client: PgClient, elsewhere: (() => Promise<Position>) | null): void {
    if (this.#clients.has(client)) return;
    this.#clients.set(
      client,
      new TrackedClient(client, {
        publication: this.#options.publication,
        scope: () => this.#scopes.getStore(),
        onToken: (position) => this.#remember(position),
        onError: (error) => this.#warn(error),
        elsewhere,
      }),
    );
  }

  #remember(position: Position): void {
    this.#last = this.#last === null ? position : (laterToken(this.#last, position) ?? position);
  }

  #warn(error: RivuletError): void {
    if (this.#options.onError !== undefined) {
      try {
        this.#options.onError(error);
        return;
      } catch {
        // What it reports is not to end the answer, or the process, of a write that is committed.
      }
    }
    const nowMs = performance.now();
    if (nowMs - this.#warnedAtMs < WARNING_INTERVAL_MS) return;
    this.#warnedAtMs = nowMs;
    process.emitWarning(`${error.message}${error.hint === undefined ? '' : ` (${error.hint})`}`, {
      type: 'RivuletWarning',
      code: error.code,
    });
  }
}
