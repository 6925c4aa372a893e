import { required, type Settings } from '../config.ts';
import { ConfigError } from '../errors.ts';
import type { StoreOptions } from '../replicator/archiver.ts';
import type { ReplicatorOptions } from '../replicator/replicator.ts';
import type { Context } from './command.ts';

/** What a replicator is started with; options that nobody gave keep its own defaults. */
export function replicatorSettings(settings: Settings, { log }: Pick<Context, 'log'>): ReplicatorOptions {
  const { publication, slot, tables, takeover } = settings;
  if (settings.durability === 'store' && settings.store === undefined) {
    throw new ConfigError('--durability store needs an object store, and there is no --store', {
      hint: 'give --store URL, or leave --durability out: Postgres may then forget what is in the local log',
    });
  }
  return {
    postgres: required(settings, 'postgres'),
    dataDir: required(settings, 'data'),
    log,
    ...(publication === undefined ? {} : { publication }),
    ...(slot === undefined ? {} : { slot }),
    ...(tables === undefined ? {} : { tables }),
    ...(settings['digest-every'] === undefined ? {} : { digestEveryMs: settings['digest-every'] }),
    ...(takeover === undefined ? {} : { takeover }),
    retention: retention(settings),
    followers: followerLimits(settings),
    ...(settings.store === undefined ? {} : { store: storeSettings(settings, settings.store) }),
  };
}

/** How much of the log is kept. */
export function retention(settings: Settings): NonNullable<ReplicatorOptions['retention']> {
  return {
    ...(settings['retain-age'] === undefined ? {} : { maxAgeMs: settings['retain-age'] }),
    ...(settings['retain-size'] === undefined ? {} : { maxBytes: settings['retain-size'] }),
  };
}

/** What followers may leave unread. */
export function followerLimits(settings: Settings): NonNullable<ReplicatorOptions['followers']> {
  const perFollower = settings['buffer-per-follower'];
  const total = settings['buffer-total'];
  return {
    ...(perFollower === undefined ? {} : { bufferLimitBytes: perFollower }),
    ...(total === undefined ? {} : { totalBufferBytes: total }),
  };
}

function storeSettings(settings: Settings, url: string): StoreOptions {
  const { durability } = settings;
  const keepAgeMs = settings['snapshot-keep-age'];
  const keepCount = settings['snapshot-keep-count'];
  return {
    location: { url, endpoint: settings['store-endpoint'] },
    ...(durability === undefined ? {} : { durability }),
    ...(settings.snapshots === 'elsewhere' ? { settings: { snapshotsElsewhere: true } } : {}),
    ...(settings['segment-age'] === undefined ? {} : { segmentAgeMs: settings['segment-age'] }),
    ...(settings['snapshot-interval'] === undefined
      ? {}
      : { snapshotIntervalMs: settings['snapshot-interval'] }),
    retention: {
      ...(keepAgeMs === undefined ? {} : { keepAgeMs }),
      ...(keepCount === undefined ? {} : { keepCount }),
    },
  };
}

export const BUFFER_OPTIONS = ['buffer-per-follower', 'buffer-total'] as const;

/** Of the history that a replicator keeps. */
export const HISTORY_OPTIONS = [
  'publication',
  'slot',
  'tables',
  'takeover',
  'retain-age',
  'retain-size',
] as const;

/** Options of the writing side of the object store. */
export const STORE_OPTIONS = [
  'store',
  'store-endpoint',
  'durability',
  'segment-age',
  'snapshots',
  'snapshot-interval',
  'snapshot-keep-age',
  'snapshot-keep-count',
] as const;
