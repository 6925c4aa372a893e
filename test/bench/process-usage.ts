import { readdirSync, readFileSync } from 'node:fs';

/** What a process has used, as of one moment. */
export interface ProcessUsage {
  readonly name: string;
  readonly cpuSeconds: number;
  /** Null where it says nothing: each of Postgres's processes counts the buffers that all of them share. */
  readonly peakRssBytes: number | null;
}

/** USER_HZ, which Linux has fixed at 100 for everything that leaves the kernel. */
const TICKS_PER_SECOND = 100;

interface ProcessTimes {
  readonly parent: number;
  readonly group: number;
  readonly ownSeconds: number;
  /** Of children that have ended and were waited for. */
  readonly childrenSeconds: number;
}

/** https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html; null if there is no such process, or no /proc. */
function readTimes(pid: number): ProcessTimes | null {
  let stat: string;
  try {
    stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
  } catch {
    return null;
  }
  // The command may hold spaces and brackets; everything behind its last bracket is regular.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  const ticks = (index: number): number => Number(fields[index]);
  return {
    parent: ticks(1),
    group: ticks(2),
    ownSeconds: (ticks(11) + ticks(12)) / TICKS_PER_SECOND,
    childrenSeconds: (ticks(13) + ticks(14)) / TICKS_PER_SECOND,
  };
}

function readPeakRssBytes(pid: number): number | null {
  try {
    const match = /^VmHWM:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'));
    return match === null ? null : Number(match[1]) * 1024;
  } catch {
    return null;
  }
}

/** Of one process since its start, its threads included; null once it has gone. */
export function processUsage(name: string, pid: number): ProcessUsage | null {
  const times = readTimes(pid);
  if (times === null) return null;
  return { name, cpuSeconds: times.ownSeconds, peakRssBytes: readPeakRssBytes(pid) };
}

/** Of all processes of a group, and of those of them that have ended. */
export function groupUsage(name: string, group: number): ProcessUsage {
  let cpuSeconds = 0;
  let peakRssBytes = 0;
  for (const entry of readdirSync('/proc')) {
    if (!/^\d+$/.test(entry)) continue;
    const times = readTimes(Number(entry));
    if (times?.group !== group) continue;
    cpuSeconds += times.ownSeconds + times.childrenSeconds;
    peakRssBytes += readPeakRssBytes(Number(entry)) ?? 0;
  }
  return { name, cpuSeconds, peakRssBytes };
}

/** CPU seconds of a server since its start: the postmaster, its living children, and those that have ended. */
export function serverCpuSeconds(postmaster: number): number {
  const own = readTimes(postmaster);
  if (own === null) return 0;
  let seconds = own.ownSeconds + own.childrenSeconds;
  for (const entry of readdirSync('/proc')) {
    if (!/^\d+$/.test(entry)) continue;
    const times = readTimes(Number(entry));
    if (times?.parent === postmaster) seconds += times.ownSeconds;
  }
  return seconds;
}

/** What was used between two moments; peaks are those of the later one. */
export function usageSince(before: readonly ProcessUsage[], after: readonly ProcessUsage[]): ProcessUsage[] {
  return after.map((usage) => {
    const earlier = before.find((each) => each.name === usage.name);
    return { ...usage, cpuSeconds: usage.cpuSeconds - (earlier?.cpuSeconds ?? 0) };
  });
}
