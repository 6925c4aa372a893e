import { statSync } from 'node:fs';
import type { MessagePort } from 'node:worker_threads';
import { lockFile } from '../replica/replica-file.ts';
import { type Replicator, type ReplicatorOptions, startReplicator } from '../replicator/replicator.ts';
import type { ReplicatorStatus } from '../replicator/status.ts';
import type { CopyProgress } from '../source/initial-copy.ts';
import { checkSameDatabase } from './same-database.ts';
import { untilServing } from './until-serving.ts';

export interface OneProcessOptions extends Omit<ReplicatorOptions, 'buildInto'> {
  readonly file: string;
  readonly signal: AbortSignal;
  readonly onCopyProgress: (progress: CopyProgress) => void;
  /** No copy is under way any more. */
  readonly onCopyEnd: () => void;
}

/**
 * Replicator and replica in one process: the first copy is built straight into the replica's own file, and the
 * replica follows over a port instead of HTTP.
 */
export class OneProcess implements AsyncDisposable {
  readonly #replicator: Replicator;
  /** Resolves once the file is there for a replica to keep, or the signal has come. Rejects if that can never be. */
  readonly serving: Promise<unknown>;

  private constructor(replicator: Replicator, serving: Promise<unknown>) {
    this.#replicator = replicator;
    this.serving = serving;
    // Whoever disposes of it without having asked has another error to tell.
    serving.catch(() => undefined);
  }

  static async start(options: OneProcessOptions): Promise<OneProcess> {
    const { file, signal, onCopyProgress, onCopyEnd, ...replicatorOptions } = options;
    // The copy is about to take the file's place: nobody else may keep it, and it must be this database's.
    const lock = lockFile(file);
    try {
      if (statSync(file, { throwIfNoEntry: false }) !== undefined)
        await checkSameDatabase(file, options.postgres);
      const replicator = await startReplicator({ ...replicatorOptions, buildInto: file });
      replicator.on('copy', onCopyProgress);
      replicator.on('state', (state) => {
        if (state !== 'copying') onCopyEnd();
      });
      // From then on the replica's thread holds it.
      const serving = untilServing(replicator, signal).finally(() => lock.release());
      return new OneProcess(replicator, serving);
    } catch (error) {
      lock.release();
      throw error;
    }
  }

  /** A way for a replica to follow. A replica that cannot go on makes the replicator build its file anew. */
  connectPort(): MessagePort {
    return this.#replicator.connectPort();
  }

  status(): ReplicatorStatus {
    return this.#replicator.status();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#replicator.close();
  }
}
