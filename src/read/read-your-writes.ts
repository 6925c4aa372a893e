import { AsyncLocalStorage } from 'node:async_hooks';
import { ConfigError, RivuletError } from '../errors.ts';
import { filePosition } from '../replica/file-position.ts';
import {
  checkTokenKeys,
  decodeToken,
  encodeToken,
  laterToken,
  type Position,
  type TokenKeys,
} from '../token.ts';
import {
  checkReadPolicy,
  type ReadAnswer,
  type Readiness,
  ReadPolicy,
  type ReadPolicyOptions,
  type ReadRequest,
} from './read-policy.ts';
import type { ReadSource } from './read-source.ts';
import { type Trackable, trackWrites, type WriteTracker } from './track-writes.ts';
import { WriteScope } from './write-scope.ts';

/**
 * In place of a token: something was written whose token could not be taken. The next read takes one, which covers
 * everything until then.
 */
export const UNKNOWN_TOKEN = 'unknown';

export interface ReadYourWritesOptions extends ReadPolicyOptions {
  /** The file that is read: from openReplica() or openReader(). */
  readonly replica: ReadSource;
  /**
   * The pg Pool (or Client) that writes: it is watched from now on, see trackWrites(). Without it, only tokens that
   * others set are waited for.
   */
  readonly pool?: Trackable | undefined;
  /** Signs tokens, and takes only signed ones. */
  readonly tokenKeys?: TokenKeys | undefined;
  /** Which publication's tokens; needed only where a database has several. */
  readonly publication?: string | undefined;
  /** False: a client that changes nodes may see an older state than before; what it wrote it sees in any case. */
  readonly monotonicReads?: boolean | undefined;
  /** A commit whose token could not be taken. Default: a process warning. */
  readonly onError?: ((error: RivuletError) => void) | undefined;
}

type Known = Position | typeof UNKNOWN_TOKEN | null;

/** As ReadRequest; what the file must contain is known. */
export type RequestRead<T> = Omit<ReadRequest<T>, 'after' | 'signal'>;

/** The reads and writes of one request, whatever framework it came through. */
export class RequestReads {
  readonly #core: ReadYourWrites;
  readonly #signal: AbortSignal | undefined;
  readonly scope = new WriteScope();
  /** What this client wrote or has seen; `unknown` where that has to be asked for. */
  #after: Known;
  #readiness: Readiness | null = null;
  #hasReadElsewhere = false;

  /** Use ReadYourWrites.begin(). */
  constructor(core: ReadYourWrites, after: Known, signal: AbortSignal | undefined) {
    this.#core = core;
    this.#after = after;
    this.#signal = signal;
  }

  /** Where reads of this request go, as far as that is decided. */
  get readiness(): Readiness | null {
    return this.#readiness;
  }

  /** Waits until the file is ready for this client, or as the policy says. Rejects where that is to fail. */
  async ready(options: ReadPolicyOptions = {}): Promise<Readiness> {
    this.#readiness = await this.#ready(options);
    return this.#readiness;
  }

  /** Reads from the file once it is ready, or from Postgres, as the policy says. */
  async read<T>(request: RequestRead<T>): Promise<ReadAnswer<T>> {
    const readiness = await this.ready(request);
    if (readiness.from !== 'postgres') return { ...readiness, value: request.replica(this.#core.source.db) };
    if (request.postgres === undefined) throw readiness.reason;
    this.#hasReadElsewhere = true;
    return { ...readiness, value: await request.postgres() };
  }

  /** What the client is to be given: a token, `unknown`, or null for nothing new. Never rejects. */
  async outgoing(): Promise<string | null> {
    const { scope } = this;
    const tracker = this.#core.tracker;
    if (tracker !== null && this.#hasReadElsewhere && !scope.hasWritten && this.#core.isMonotonic)
      scope.mark();
    const written = tracker === null ? null : await tracker.settle(scope);
    return this.#token(written);
  }

  /** As outgoing(), where that need not wait; undefined where it has to. */
  outgoingNow(): string | null | undefined {
    const { scope } = this;
    if (scope.isPending || (this.#hasReadElsewhere && this.#core.isMonotonic && this.#core.tracker !== null))
      return undefined;
    return this.#token(scope.position);
  }

  async #ready(options: ReadPolicyOptions): Promise<Readiness> {
    checkReadPolicy(options);
    const { policy } = this.#core;
    const startedAtMs = performance.now();
    const common = { ...options, signal: this.#signal };
    try {
      const written = await this.scope.settled();
      const after = this.scope.error === null ? laterOf(this.#after, written) : UNKNOWN_TOKEN;
      if (after !== UNKNOWN_TOKEN) {
        try {
          return await policy.ready(after, { ...common, onLate: 'fail' });
        } catch (error) {
          // Of a history that has ended, or is about to begin here: only Postgres knows which.
          if (this.#core.tracker === null || (error as RivuletError).code !== 'EPOCH_MISMATCH') throw error;
        }
      }
      this.#after = await this.#core.take();
      const waitedMs = performance.now() - startedAtMs;
      const readiness = await policy.ready(this.#after, { ...common, onLate: 'fail' });
      return { ...readiness, waitedMs: waitedMs + readiness.waitedMs };
    } catch (error) {
      return { ...policy.late(error, options), waitedMs: performance.now() - startedAtMs };
    }
  }

  #token(written: Position | null): string | null {
    if (this.scope.error !== null) return UNKNOWN_TOKEN;
    let next = laterOf(this.#after, written);
    const isFileRead = this.#readiness === null || this.#readiness.from === 'replica';
    if (this.#core.isMonotonic && next !== UNKNOWN_TOKEN && isFileRead) {
      const shown = this.#core.shown();
      // Of a file of another history than the client knows nothing is carried: it has not been waited for.
      if (shown !== null && (next === null || next.epoch === shown.epoch)) next = laterOf(next, shown);
    }
    if (next === null || next === UNKNOWN_TOKEN) return next;
    try {
      return encodeToken(next, this.#core.tokenKeys);
    } catch {
      // The keys were changed since they were checked. The answer goes out all the same.
      return UNKNOWN_TOKEN;
    }
  }
}

/**
 * Read your writes, without a framework: what adapters are made of.
 *
 *   const core = new ReadYourWrites({ replica, pool });
 *   const request = core.begin(tokenOfTheRequest);
 *   await core.run(request, async () => { await request.ready(); … });
 *   const token = await request.outgoing();
 */
export class ReadYourWrites {
  readonly source: ReadSource;
  readonly policy: ReadPolicy;
  readonly tracker: WriteTracker | null;
  readonly tokenKeys: TokenKeys | undefined;
  readonly isMonotonic: boolean;
  readonly #requests = new AsyncLocalStorage<RequestReads>();

  constructor(options: ReadYourWritesOptions) {
    const { replica, pool, tokenKeys, publication, onError, monotonicReads = true } = options;
    if (typeof (replica as { waitFor?: unknown } | undefined)?.waitFor !== 'function')
      throw new ConfigError('the replica is missing', {
        hint: 'give what openReplica() or openReader() gave',
      });
    checkTokenKeys(tokenKeys);
    this.source = replica;
    this.policy = new ReadPolicy(replica, options);
    this.tracker = pool === undefined ? null : trackWrites(pool, { tokenKeys, publication, onError });
    this.tokenKeys = tokenKeys;
    this.isMonotonic = monotonicReads;
  }

  /**
   * A request begins. `header` is what a program set, a token or the `unknown` that it was given; a bad one is its
   * error (TOKEN_MALFORMED, TOKEN_FORGED).
   * `cookie` is what a browser keeps: of a bad one nobody there can do anything about, so that what it stood for is
   * unknown.
   */
  begin(options: {
    readonly header?: string | null | undefined;
    readonly cookie?: string | null | undefined;
    readonly signal?: AbortSignal | undefined;
  }): RequestReads {
    const { header, cookie, signal } = options;
    const fromHeader = header ? this.#decodeHeader(header) : null;
    const fromCookie = cookie ? this.#decodeCookie(cookie) : null;
    const known =
      fromHeader === UNKNOWN_TOKEN || fromCookie === UNKNOWN_TOKEN
        ? UNKNOWN_TOKEN
        : laterOf(fromCookie, fromHeader);
    return new RequestReads(this, known, signal);
  }

  /** Runs the work of a request: what it commits, and reads(), belong to it, in all code below. */
  run<T>(request: RequestReads, work: () => T): T {
    const run = (): T => this.#requests.run(request, work);
    return this.tracker === null ? run() : this.tracker.run(request.scope, run);
  }

  /** The request that the calling code works for. */
  get current(): RequestReads {
    const request = this.#requests.getStore();
    if (request === undefined) {
      throw new ConfigError('this code runs outside of any request', {
        hint: 'the middleware has to come before the routes that read; elsewhere use readPolicy()',
      });
    }
    return request;
  }

  /** See RequestReads.ready(); of the current request. */
  ready(options?: ReadPolicyOptions): Promise<Readiness> {
    return this.current.ready(options);
  }

  /** See RequestReads.read(); of the current request. */
  read<T>(request: RequestRead<T>): Promise<ReadAnswer<T>> {
    return this.current.read(request);
  }

  /** See WriteTracker.markWrite(). */
  markWrite(): void {
    if (this.tracker === null) throw new ConfigError('without a pool no token can be taken');
    this.current.scope.mark();
  }

  /** A token of everything until now. Throws TOKEN_UNAVAILABLE. */
  async take(): Promise<Position> {
    if (this.tracker !== null) return this.tracker.take();
    throw new RivuletError(
      'TOKEN_UNAVAILABLE',
      'what this client wrote is not known, and there is no pool to ask',
      {
        hint: 'give the middleware the pool that writes',
      },
    );
  }

  /** Where the file is, for readers of this process; null if it cannot be read. */
  shown(): Position | null {
    try {
      return filePosition(this.source.db);
    } catch {
      return null;
    }
  }

  #decodeHeader(text: string): Known {
    return text === UNKNOWN_TOKEN ? UNKNOWN_TOKEN : decodeToken(text, this.tokenKeys);
  }

  #decodeCookie(text: string): Known {
    try {
      return this.#decodeHeader(text);
    } catch {
      return this.tracker === null ? null : UNKNOWN_TOKEN;
    }
  }
}

/** Of what is known already, and what comes after it. */
function laterOf(before: Known, next: Position | null): Known {
  if (next === null) return before;
  // What was written now is of the history that goes on, and comes after whatever could not be known.
  if (before === null || before === UNKNOWN_TOKEN) return next;
  return laterToken(before, next) ?? next;
}
