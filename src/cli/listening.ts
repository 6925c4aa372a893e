import type { ListenAddress } from '../config.ts';
import { ConfigError } from '../errors.ts';
import { isLoopback } from '../http/loopback.ts';

/** Nothing listens beyond loopback without a token: whoever reaches the port would read the whole database. */
export function allowListening(listen: ListenAddress, token: string | undefined): void {
  if (isLoopback(listen.host) || token !== undefined) return;
  throw new ConfigError(
    `--listen ${listen.host}:${listen.port} can be reached from other machines, and there is no token`,
    {
      hint: 'give a --token-file or RIVULET_TOKEN, or listen on 127.0.0.1',
    },
  );
}

/** Where replicas find a replicator, or a relay, that was not told otherwise. */
export const DEFAULT_LISTEN = { host: '127.0.0.1', port: 4840 } as const;
