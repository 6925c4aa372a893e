import type { ProcessUsage } from './process-usage.ts';
import type { Profile } from './profile.ts';
import type { Sizes } from './sizes.ts';

export type Unit = 'tx/s' | 'rows/s' | 'requests/s' | 'MB/s' | 'ms' | 'µs' | 's' | 'CPU s' | '%';

/** What a measurement should reach: a share of its limit, or a value that it should not pass. */
export type Target = { readonly ofLimit: number } | { readonly atMost: number };

/** One number of one repetition. */
export interface Sample {
  readonly metric: string;
  readonly value: number;
  readonly unit: Unit;
  /** Metric of the same repetition that this one is held against. */
  readonly limit?: string;
  readonly target?: Target;
  readonly usage?: readonly ProcessUsage[];
  /** Beside the number, where it needs a word. */
  readonly note?: string;
}

export interface BenchContext {
  readonly sizes: Sizes;
  readonly postgresMajor: PostgresMajor;
  /** The `rivulet` command that is measured. */
  readonly program: string;
  /** For files of the run; removed afterwards. */
  readonly directory: string;
  /** Programs of others that are run through the cases that can. */
  readonly peerScripts: readonly string[];
  readonly profile: Profile | undefined;
  say(text: string): void;
}

export const POSTGRES_MAJORS = [15, 18] as const;
export type PostgresMajor = (typeof POSTGRES_MAJORS)[number];

export interface BenchCase {
  readonly name: string;
  readonly title: string;
  /** Starts what all repetitions share. */
  prepare(context: BenchContext): Promise<PreparedCase>;
}

export interface PreparedCase extends AsyncDisposable {
  /** One repetition, its limits included: both are measured within the same minute. */
  run(repetition: number): Promise<Sample[]>;
}
