import { required, type Settings } from '../config.ts';
import type { ReplicatorOptions } from '../replicator/replicator.ts';
import type { Context } from './command.ts';

/** What a replicator is started with; options that nobody gave keep its own defaults. */
export function replicatorSettings(settings: Settings, { log }: Pick<Context, 'log'>): ReplicatorOptions {
  const { publication, slot, tables } = settings;
  return {
    postgres: required(settings, 'postgres'),
    dataDir: required(settings, 'data'),
    log,
    ...(publication === undefined ? {} : { publication }),
    ...(slot === undefined ? {} : { slot }),
    ...(tables === undefined ? {} : { tables }),
    ...(settings['digest-every'] === undefined ? {} : { digestEveryMs: settings['digest-every'] }),
    retention: {
      ...(settings['retain-age'] === undefined ? {} : { maxAgeMs: settings['retain-age'] }),
      ...(settings['retain-size'] === undefined ? {} : { maxBytes: settings['retain-size'] }),
    },
  };
}
