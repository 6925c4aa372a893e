import { RivuletError } from '../../errors.ts';
import type { Reader } from '../../read/reader.ts';
import { contains, type Position } from '../../token.ts';
import type { LocalReplica, ReplicaHealth, WaitOutcome } from './local-replica.ts';

/** What the proxy needs of a reader of the replica's file. */
export interface PositionFile {
  /** What the file holds at this moment. Throws FILE_UNUSABLE. */
  current(): Position;
  waitFor: Reader['waitFor'];
  close(): void;
}

/**
 * The replica's file on this machine, opened beside the process that keeps it: where it is costs microseconds,
 * and a wait is woken by the file itself. How far behind it is, only its process knows.
 */
export class FileReplica implements LocalReplica {
  readonly #file: PositionFile;
  readonly #process: LocalReplica | null;
  /** The newest position that was read: a file never goes back within its epoch. */
  #known: Position | null = null;
  #waiting = 0;
  #failure: Error | null = null;

  /** `process`: the same replica, asked for its health. */
  constructor(file: PositionFile, process: LocalReplica | null = null) {
    this.#file = file;
    this.#process = process;
  }

  get waiting(): number {
    return this.#waiting;
  }

  get failure(): Error | null {
    return this.#failure;
  }

  position(): Position | Promise<Position> {
    try {
      return this.#read();
    } catch (error) {
      return Promise.reject(error);
    }
  }

  hasReached(wanted: Position): boolean {
    try {
      return (this.#known !== null && contains(this.#known, wanted)) || contains(this.#read(), wanted);
    } catch {
      return false;
    }
  }

  async wait(
    wanted: Position,
    options: { readonly timeoutMs: number; readonly signal: AbortSignal },
  ): Promise<WaitOutcome> {
    this.#waiting++;
    try {
      await this.#file.waitFor(wanted, options);
      this.#failure = null;
      return 'reached';
    } catch (error) {
      const code = error instanceof RivuletError ? error.code : null;
      if (code === 'EPOCH_MISMATCH' || code === 'TOKEN_IMPOSSIBLE') return 'other-epoch';
      if (code !== 'WAIT_TIMEOUT' && !options.signal.aborted) this.#failure = error as Error;
      return 'timeout';
    } finally {
      this.#waiting--;
    }
  }

  async health(): Promise<ReplicaHealth> {
    try {
      this.#read();
    } catch {
      return { reasons: ['the file of the replica cannot be read'], lagMs: null };
    }
    return (await this.#process?.health()) ?? { reasons: [], lagMs: null };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#file.close();
    await this.#process?.[Symbol.asyncDispose]();
  }

  #read(): Position {
    this.#known = this.#file.current();
    return this.#known;
  }
}
