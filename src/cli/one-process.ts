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

  private constructor(replicator: Replicator) {
    this.#replicator = replicator;
  }

  /** Resolves to null if the signal came first. */
  static async start(options: OneProcessOptions): Promise<OneProcess | null> {
    const { file, signal, onCopyProgress, onCopyEnd, ...replicatorOptions } = options;
    // The copy is about to take the file's place: nobody else may keep it, and it must be this database's.
    const lock = lockFile(file);
    let replicator: Replicator | null = null;
    try {
      if (statSync(file, { throwIfNoEntry: false }) !== undefined)
        await checkSameDatabase(file, options.postgres);
      replicator = await startReplicator({ ...replicatorOptions, buildInto: file });
      replicator.on('copy', onCopyProgress);
      replicator.on('state', (state) => {
        if (state !== 'copying') onCopyEnd();
      });
      const isServing = await untilServing(replicator, signal);
      if (isServing) return new OneProcess(replicator);
      await replicator.close();
      return null;
    } catch (error) {
      await replicator?.close();
      throw error;
    } finally {
      // From here on the replica's thread holds it.
      lock.release();
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
