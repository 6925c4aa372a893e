import type { Relay } from '../relay/relay.ts';
import type { Replicator } from '../replicator/replicator.ts';

/** Whether a data directory is of this database is known in some hundredths of a second, if the server answers at all. */
const CONFIRMATION_TIMEOUT_MS = 3_000;

/**
 * Resolves to true once replicas can start from and follow this replicator, or relay: after the first copy, or on a
 * restart as soon as Postgres has said that it is the database that the data directory is of, or does not answer.
 * False if the signal came first. Rejects if it can never be.
 */
export async function untilServing(replicator: Replicator | Relay, signal: AbortSignal): Promise<boolean> {
  const stop = new AbortController();
  let isLate = false;
  try {
    return await new Promise<boolean>((resolve, reject) => {
      const look = (): void => {
        const isDoubtful =
          'isConfirmed' in replicator &&
          !replicator.isConfirmed &&
          replicator.state === 'starting' &&
          !isLate;
        // One that has failed is still open; `ready` says why.
        if (replicator.publisher.isOpen && replicator.state !== 'failed' && !isDoubtful) resolve(true);
        else if (signal.aborted) resolve(false);
      };
      replicator.on('state', look);
      if ('isConfirmed' in replicator) replicator.on('confirmed', look);
      signal.addEventListener('abort', look, { once: true, signal: stop.signal });
      const timer = setTimeout(() => {
        isLate = true;
        look();
      }, CONFIRMATION_TIMEOUT_MS);
      stop.signal.addEventListener('abort', () => {
        clearTimeout(timer);
        replicator.off('state', look);
        if ('isConfirmed' in replicator) replicator.off('confirmed', look);
      });
      replicator.ready.then(look, reject);
      look();
    });
  } finally {
    stop.abort();
  }
}
