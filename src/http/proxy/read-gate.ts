import { RivuletError } from '../../errors.ts';
import { formatLsn } from '../../lsn.ts';
import { UNKNOWN_TOKEN } from '../../read/read-your-writes.ts';
import type { Position } from '../../token.ts';
import type { LocalReplica } from './local-replica.ts';
import type { TokenSource } from './token-source.ts';
import type { WantedPosition } from './token-transport.ts';

/** Requests that are held at a time; each costs some kB and a connection. */
const MAX_WAITING = 10_000;

/** While the replica is being made anew it is asked so often whether it has come to the token's history. */
const OTHER_EPOCH_RETRY_MS = 50;

export interface ReadGateOptions {
  readonly replica: LocalReplica;
  readonly source: TokenSource | null;
  readonly timeoutMs: number;
}

/** Holds requests until the replica has what they must see. */
export class ReadGate {
  readonly #options: ReadGateOptions;
  #held = 0;

  constructor(options: ReadGateOptions) {
    this.#options = options;
  }

  get held(): number {
    return this.#held;
  }

  /** Whether a request with this token may go on at once; takes microseconds. */
  isOpen(wanted: WantedPosition): boolean {
    return wanted !== UNKNOWN_TOKEN && this.#options.replica.hasReached(wanted);
  }

  /**
   * Resolves with the position that was reached: the wanted one, or where that is unknown or of a history that has
   * ended, Postgres's own position now, which contains it. Rejects with
   * WAIT_TIMEOUT, EPOCH_MISMATCH, TOO_MANY_WAITERS or TOKEN_UNAVAILABLE.
   */
  async hold(wanted: WantedPosition, signal: AbortSignal): Promise<Position> {
    if (this.#held >= MAX_WAITING)
      throw new RivuletError(
        'TOO_MANY_WAITERS',
        `${MAX_WAITING} requests are waiting for the replica already`,
      );
    this.#held++;
    try {
      return await this.#hold(wanted, signal);
    } finally {
      this.#held--;
    }
  }

  async #hold(wanted: WantedPosition, signal: AbortSignal): Promise<Position> {
    const { replica, source, timeoutMs } = this.#options;
    const deadlineMs = performance.now() + timeoutMs;
    let position = wanted === UNKNOWN_TOKEN ? await this.#take() : wanted;
    for (;;) {
      const leftMs = deadlineMs - performance.now();
      const outcome = leftMs <= 0 ? 'timeout' : await replica.wait(position, { timeoutMs: leftMs, signal });
      if (outcome === 'reached') return position;
      if (outcome === 'timeout') throw this.#timeout(position);
      if (source === null) {
        throw new RivuletError('EPOCH_MISMATCH', 'the token is of another history than the replica', {
          hint: 'the replicator has made a new copy since; with --postgres the proxy can tell what that means',
        });
      }
      const now = await this.#take();
      // Postgres's present history is the token's: it is the replica that has yet to come to it.
      if (now.epoch === position.epoch) await pause(OTHER_EPOCH_RETRY_MS);
      else position = now;
    }
  }

  async #take(): Promise<Position> {
    const { source } = this.#options;
    try {
      if (source !== null) return await source.take();
    } catch (cause) {
      throw new RivuletError('TOKEN_UNAVAILABLE', 'Postgres cannot be asked what was written', { cause });
    }
    throw new RivuletError('TOKEN_UNAVAILABLE', 'what was written is not known', { hint: 'give --postgres' });
  }

  #timeout(position: Position): RivuletError {
    const { replica, timeoutMs } = this.#options;
    const { failure } = replica;
    return new RivuletError(
      'WAIT_TIMEOUT',
      `after ${timeoutMs} ms the replica does not have ${formatLsn(position.lsn)}`,
      failure === null ? {} : { cause: failure, hint: 'the replica cannot be asked at the moment' },
    );
  }
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
