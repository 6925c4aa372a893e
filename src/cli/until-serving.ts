import type { Relay } from '../relay/relay.ts';
import type { Replicator } from '../replicator/replicator.ts';

/**
 * Resolves to true once replicas can start from and follow this replicator, or relay: after the first copy, or at once on
 * a restart, even if Postgres cannot be reached. False if the signal came first. Rejects if it can never be.
 */
export async function untilServing(replicator: Replicator | Relay, signal: AbortSignal): Promise<boolean> {
  const stop = new AbortController();
  try {
    return await new Promise<boolean>((resolve, reject) => {
      const look = (): void => {
        if (replicator.publisher.isOpen) resolve(true);
        else if (signal.aborted) resolve(false);
      };
      replicator.on('state', look);
      signal.addEventListener('abort', look, { once: true, signal: stop.signal });
      stop.signal.addEventListener('abort', () => replicator.off('state', look));
      replicator.ready.then(look, reject);
      look();
    });
  } finally {
    stop.abort();
  }
}
