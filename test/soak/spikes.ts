import type { Happening } from './happenings.ts';

/** One commit: when it returned, how long after that it was visible, and how much of that had gone by in the log. */
export interface Lag {
  readonly atMs: number;
  readonly ms: number;
  readonly toLogMs: number;
}

export interface Spike {
  readonly atSecond: number;
  readonly ms: number;
  /** The way to the log, of the one that waited longest. */
  readonly toLogMs: number;
  /** What kept somebody waiting, for so long, and what else there was. */
  readonly beside: readonly string[];
  /** Whether what kept somebody waiting makes up for it. */
  readonly isExplained: boolean;
}

/** Spikes that are no further apart are one. */
const SAME_SPIKE_MS = 250;
/** What was noted has to account for so much of a spike; the rest is the way that everything takes, and catching up. */
const EXPLAINED_PART = 0.5;

interface Window {
  fromMs: number;
  toMs: number;
  ms: number;
  toLogMs: number;
}

/** What is needed to tell what was going on at a moment. */
export interface Record {
  readonly happened: readonly Happening[];
  readonly startedMs: number;
}

/** All lags above `limitMs`, neighbours as one. */
export function findSpikes(lags: readonly Lag[], limitMs: number, record: Record): readonly Spike[] {
  const windows: Window[] = [];
  const late = lags.filter(({ ms }) => ms > limitMs).sort((a, b) => a.atMs - b.atMs);
  for (const { atMs, ms, toLogMs } of late) {
    const last = windows.at(-1);
    if (last === undefined || atMs - last.toMs >= SAME_SPIKE_MS) {
      windows.push({ fromMs: atMs, toMs: atMs + ms, ms, toLogMs });
      continue;
    }
    last.toMs = Math.max(last.toMs, atMs + ms);
    if (ms > last.ms) Object.assign(last, { ms, toLogMs });
  }
  return windows.map((window) => explain(window, record));
}

/** The longest lag of each of the `count` worst seconds, worst first. */
export function worstSeconds(lags: readonly Lag[], count: number, record: Record): readonly Spike[] {
  const worst = new Map<number, Lag>();
  for (const lag of lags) {
    const second = Math.floor((lag.atMs - record.startedMs) / 1000);
    if (lag.ms > (worst.get(second)?.ms ?? 0)) worst.set(second, lag);
  }
  return [...worst.values()]
    .sort((a, b) => b.ms - a.ms)
    .slice(0, count)
    .map(({ atMs, ...lag }) => explain({ fromMs: atMs, toMs: atMs + lag.ms, ...lag }, record));
}

function explain({ fromMs, toMs, ms, toLogMs }: Window, record: Record): Spike {
  const held = new Map<string, number>();
  for (const each of record.happened) {
    const overlapMs = Math.min(each.toMs, toMs) - Math.max(each.fromMs, fromMs);
    if (overlapMs < 0) continue;
    held.set(each.what, (held.get(each.what) ?? 0) + Math.min(each.heldMs, overlapMs));
  }
  // That a thread was busy says where it was, and not why.
  const reasons = [...held].filter(([what]) => !/: busy /.test(what)).map(([, heldMs]) => heldMs);
  return {
    atSecond: Math.round((fromMs - record.startedMs) / 100) / 10,
    ms: Math.round(ms),
    toLogMs: Math.round(toLogMs),
    beside: [...held]
      .sort(([, a], [, b]) => b - a)
      .map(([what, heldMs]) => (heldMs < 1 ? what : `${what}, ${Math.round(heldMs)} ms`)),
    isExplained: reasons.reduce((sum, each) => sum + each, 0) >= EXPLAINED_PART * ms,
  };
}
