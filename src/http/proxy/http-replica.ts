import { Agent, get } from 'node:http';
import { z } from 'zod';
import { RivuletError } from '../../errors.ts';
import { formatLsn, type Lsn, parseLsn } from '../../lsn.ts';
import { contains, type Position } from '../../token.ts';
import type { LocalReplica, ReplicaHealth, WaitOutcome } from './local-replica.ts';
import { SharedCall } from './shared-call.ts';

/** The replica's process is beside us: an answer that takes longer than this will not come. */
const ANSWER_TIMEOUT_MS = 2_000;

/** How long one question to the replica stays open; a file of another epoch would never get to its position. */
const LONG_WAIT_MS = 1_000;

/** A replica process that restarts is back within seconds: it is asked again soon, then less often. */
const FIRST_RETRY_MS = 25;
const LONGEST_RETRY_MS = 250;

const positionAnswer = z.object({ epoch: z.string(), position: z.string(), seen: z.string() });
const statusAnswer = z.object({
  isHealthy: z.boolean(),
  state: z.string(),
  reasons: z.array(z.string()),
  lag: z.object({ ms: z.number().nullable(), boundMs: z.number().nullable() }),
});
const errorAnswer = z.object({ code: z.string(), message: z.string() });

export interface HttpReplicaOptions {
  /** Where the replica's process listens. */
  readonly url: string;
  /** Bearer token for it. */
  readonly token?: string | undefined;
}

interface Waiter {
  readonly wanted: Position;
  readonly settle: (outcome: WaitOutcome) => void;
}

/**
 * The process that keeps the replica, over HTTP. It wakes us (`/wait`), which also makes an idle server tell its
 * position at once. However many requests wait, there is one question open: for the lowest position that anybody
 * waits for. Where the replica is costs a question, which all those share who asked before it began.
 */
export class HttpReplica implements LocalReplica {
  readonly #base: URL;
  readonly #agent = new Agent({ keepAlive: true });
  readonly #token: string | undefined;
  readonly #asked = new SharedCall(() => this.#askNow(), 2);
  readonly #waiters = new Set<Waiter>();
  readonly #closed = new AbortController();
  /** The newest position that is known: a file never goes back within its epoch. */
  #known: Position | null = null;
  #pump: { readonly target: Lsn; readonly stop: AbortController } | null = null;
  #failure: Error | null = null;

  constructor({ url, token }: HttpReplicaOptions) {
    this.#base = new URL(`${url}/`);
    this.#token = token;
  }

  get waiting(): number {
    return this.#waiters.size;
  }

  get failure(): Error | null {
    return this.#failure;
  }

  position(): Promise<Position> {
    return this.#asked.run();
  }

  /** By what it said last: a file never goes back within its epoch. */
  hasReached(wanted: Position): boolean {
    return this.#known !== null && contains(this.#known, wanted);
  }

  wait(
    wanted: Position,
    options: { readonly timeoutMs: number; readonly signal: AbortSignal },
  ): Promise<WaitOutcome> {
    const { timeoutMs, signal } = options;
    return new Promise((resolve) => {
      const onAbort = (): void => waiter.settle('timeout');
      const timer = setTimeout(onAbort, timeoutMs);
      const waiter: Waiter = {
        wanted,
        settle: (outcome) => {
          if (!this.#waiters.delete(waiter)) return;
          clearTimeout(timer);
          signal.removeEventListener('abort', onAbort);
          if (this.#waiters.size === 0) this.#pump?.stop.abort();
          resolve(outcome);
        },
      };
      this.#waiters.add(waiter);
      if (signal.aborted) {
        onAbort();
        return;
      }
      signal.addEventListener('abort', onAbort, { once: true });
      if (this.#pump === null) void this.#wake();
      // The question that is open is about a later position than this waiter's.
      else if (wanted.lsn < this.#pump.target) this.#pump.stop.abort();
    });
  }

  async health(): Promise<ReplicaHealth> {
    try {
      const signal = AbortSignal.any([this.#closed.signal, AbortSignal.timeout(ANSWER_TIMEOUT_MS)]);
      const { isHealthy, state, lag, reasons } = statusAnswer.parse(await this.#json('status', signal));
      const lagMs = lag.boundMs ?? lag.ms;
      return { reasons: isHealthy ? [] : [`the replica is ${state}`, ...reasons], lagMs };
    } catch (error) {
      const says =
        error instanceof RivuletError ? error.message : 'the process of the replica does not answer';
      return { reasons: [says], lagMs: null };
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed.abort();
    for (const waiter of this.#waiters) waiter.settle('timeout');
    this.#agent.destroy();
  }

  /** Runs while anybody waits: asks for the lowest position, tells everybody what came of it. */
  async #wake(): Promise<void> {
    let retryMs = FIRST_RETRY_MS;
    while (this.#waiters.size > 0 && !this.#closed.signal.aborted) {
      const target = lowest(this.#waiters);
      const stop = new AbortController();
      this.#pump = { target, stop };
      const signal = AbortSignal.any([stop.signal, this.#closed.signal]);
      try {
        await this.#tellWhenAt(target, signal);
        this.#failure = null;
        retryMs = FIRST_RETRY_MS;
      } catch (error) {
        if (signal.aborted) continue;
        this.#failure = error as Error;
        // Another replica may come back in this one's place.
        this.#known = null;
        await pause(retryMs, signal);
        retryMs = Math.min(retryMs * 2, LONGEST_RETRY_MS);
      }
    }
    this.#pump = null;
  }

  /** Tells the waiters where the replica is: now, and when it has reached `target` or has been asked for long enough. */
  async #tellWhenAt(target: Lsn, signal: AbortSignal): Promise<void> {
    this.position().then(
      (now) => this.#tell(now),
      () => undefined,
    );
    const now = await this.#ask(target, LONG_WAIT_MS, signal);
    if (now === null) return;
    this.#tell(now);
    // Some want what is beyond the position, of tables that are not read again: that cannot be asked to be told.
    if (this.#waiters.size > 0 && lowest(this.#waiters) <= now.lsn) await pause(FIRST_RETRY_MS, signal);
  }

  #tell(now: Position): void {
    for (const waiter of this.#waiters) {
      if (waiter.wanted.epoch !== now.epoch) waiter.settle('other-epoch');
      else if (contains(now, waiter.wanted)) waiter.settle('reached');
    }
  }

  #learn(position: Position): Position {
    const known = this.#known;
    if (known === null || !contains(known, position)) this.#known = position;
    return position;
  }

  async #askNow(): Promise<Position> {
    const signal = AbortSignal.any([this.#closed.signal, AbortSignal.timeout(ANSWER_TIMEOUT_MS)]);
    const now = await this.#ask(0n, 0, signal);
    if (now === null) throw new Error('the replica has no position');
    return now;
  }

  /** Null if the position was not reached in time. */
  async #ask(lsn: Lsn, timeoutMs: number, signal: AbortSignal): Promise<Position | null> {
    const query = `wait?lsn=${encodeURIComponent(formatLsn(lsn))}&timeout=${timeoutMs}`;
    const answer = await this.#json(query, signal);
    if (answer === null) return null;
    const { epoch, position, seen } = positionAnswer.parse(answer);
    return this.#learn({ epoch, lsn: parseLsn(position), seen: parseLsn(seen) });
  }

  /** The answer's body; null for a wait that timed out. */
  #json(path: string, signal: AbortSignal): Promise<unknown> {
    const headers = this.#token === undefined ? {} : { authorization: `Bearer ${this.#token}` };
    return new Promise((resolve, reject) => {
      const request = get(new URL(path, this.#base), { agent: this.#agent, headers, signal }, (response) => {
        let text = '';
        response.setEncoding('utf8').on('data', (chunk: string) => {
          text += chunk;
        });
        response.on('error', reject);
        response.on('end', () => {
          try {
            const answer = JSON.parse(text) as unknown;
            if (response.statusCode === 200) resolve(answer);
            else if (response.statusCode === 504) resolve(null);
            else reject(refusal(response.statusCode!, answer));
          } catch (error) {
            reject(error);
          }
        });
      });
      request.on('error', reject);
    });
  }
}

/** A replica's refusal, as it says it. */
function refusal(status: number, answer: unknown): Error {
  const error = errorAnswer.safeParse(answer);
  if (status === 401) {
    return new RivuletError('UNAUTHORIZED', 'the replica wants a bearer token, or another one', {
      hint: 'give the --token-file or RIVULET_TOKEN that the replica was started with',
    });
  }
  return new Error(error.success ? error.data.message : `the replica answered with status ${status}`);
}

function lowest(waiters: ReadonlySet<Waiter>): Lsn {
  let result: Lsn | null = null;
  for (const { wanted } of waiters) if (result === null || wanted.lsn < result) result = wanted.lsn;
  return result!;
}

/** Resolves after the time, or at once when the signal aborts. */
function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const end = (): void => {
      clearTimeout(timer);
      signal.removeEventListener('abort', end);
      resolve();
    };
    const timer = setTimeout(end, ms);
    signal.addEventListener('abort', end, { once: true });
    if (signal.aborted) end();
  });
}
