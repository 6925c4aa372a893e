import type { Sample, Target, Unit } from './bench-case.ts';
import type { ProcessUsage } from './process-usage.ts';
import { median, spread } from './statistics.ts';

/** One metric over all repetitions. */
export interface Summary {
  readonly metric: string;
  readonly unit: Unit;
  readonly values: readonly number[];
  readonly median: number;
  /** Distance of the extremes, as a share of the median. */
  readonly spread: number;
  /** Median over the repetitions of value / limit, each from its own repetition; null for limits themselves. */
  readonly ofLimit: number | null;
  readonly limit: string | null;
  readonly target: Target | null;
  readonly isReached: boolean | null;
  /** Medians of the CPU time, maxima of the memory. */
  readonly usage: readonly ProcessUsage[];
  readonly note: string | null;
}

export interface CaseSummary {
  readonly name: string;
  readonly title: string;
  readonly rows: readonly Summary[];
}

export function summarise(repetitions: readonly (readonly Sample[])[]): Summary[] {
  return unique(repetitions.flat().map((sample) => sample.metric)).map((metric) => {
    const found = repetitions.flatMap((samples) => samples.find((sample) => sample.metric === metric) ?? []);
    const { unit, target = null, note = null } = found[0]!;
    const values = found.map((sample) => sample.value);
    const ratios = repetitions.flatMap((samples) => {
      const sample = samples.find((each) => each.metric === metric);
      const limit = samples.find((each) => each.metric === sample?.limit);
      return sample === undefined || limit === undefined ? [] : [sample.value / limit.value];
    });
    const ofLimit = ratios.length === 0 ? null : median(ratios);
    return {
      metric,
      unit,
      values,
      median: median(values),
      spread: spread(values),
      ofLimit,
      limit: found.find((sample) => sample.limit !== undefined)?.limit ?? null,
      target,
      isReached:
        target === null
          ? null
          : 'atMost' in target
            ? median(values) <= target.atMost
            : ofLimit !== null && ofLimit >= target.ofLimit,
      usage: summariseUsage(found.map((sample) => sample.usage ?? [])),
      note,
    };
  });
}

function summariseUsage(repetitions: readonly (readonly ProcessUsage[])[]): ProcessUsage[] {
  return unique(repetitions.flat().map((usage) => usage.name)).map((name) => {
    const found = repetitions.flat().filter((usage) => usage.name === name);
    const peaks = found.flatMap((usage) => usage.peakRssBytes ?? []);
    return {
      name,
      cpuSeconds: median(found.map((usage) => usage.cpuSeconds)),
      peakRssBytes: peaks.length === 0 ? null : Math.max(...peaks),
    };
  });
}

function unique(values: readonly string[]): string[] {
  return [...new Set(values)];
}
