import { readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { monotonicMs } from '../bench/monotonic-clock.ts';
import type { RivuletProcess } from '../helpers/processes.ts';

/** Something that takes a machine's time, or keeps somebody waiting. Times are of the machine's monotonic clock. */
export interface Happening {
  readonly what: string;
  readonly fromMs: number;
  readonly toMs: number;
  /** For how long of that somebody could not go on; 0 if it only was there. */
  readonly heldMs: number;
}

const SAMPLE_INTERVAL_MS = 25;
/** Of waiting, between two samples; more than that is felt. */
const FELT_MS = 10;

/**
 * Puts these processes' sessions before whatever else runs on the machine. Where sessions are scheduled as groups, a
 * niceness counts inside of its own group only. https://man7.org/linux/man-pages/man7/sched.7.html (autogroups)
 */
export function preferSessions(pids: readonly number[]): void {
  for (const pid of pids) {
    try {
      writeFileSync(`/proc/${pid}/autogroup`, '-10');
    } catch {
      // Not allowed, or no such thing here: others count among what is noted.
    }
  }
}

/** Takes what note-pauses.ts says in a process. */
export function readPauses(process: RivuletProcess, name: string, happened: Happening[]): void {
  let rest = '';
  process.child.stderr!.on('data', (text: string) => {
    const lines = (rest + text).split('\n');
    rest = lines.pop()!;
    for (const line of lines) {
      const [, from, to, what] = /^pause ([\d.]+) ([\d.]+) (.*)$/.exec(line) ?? [];
      if (from === undefined) continue;
      const [fromMs, toMs] = [Number(from), Number(to)];
      happened.push({ what: `${name}: ${what}`, fromMs, toMs, heldMs: toMs - fromMs });
    }
  });
}

/** Looks, all the time, at its own punctuality, at who waits for a core, and at whether the disk keeps up. */
export async function watchMachine(
  pids: ReadonlyMap<string, number>,
  happened: Happening[],
  signal: AbortSignal,
): Promise<void> {
  const before = new Map<string, number>();
  /** How much has come to what was there at the last look, ms. */
  const since = (name: string, totalMs: number): number => {
    const ms = totalMs - (before.get(name) ?? totalMs);
    before.set(name, totalMs);
    return ms;
  };
  for (let fromMs = monotonicMs(); !signal.aborted; ) {
    await delay(SAMPLE_INTERVAL_MS);
    const toMs = monotonicMs();
    const note = (what: string, heldMs: number): void => {
      if (heldMs > FELT_MS) happened.push({ what, fromMs, toMs, heldMs });
    };
    note('the machine: a timer came late', toMs - fromMs - SAMPLE_INTERVAL_MS);
    for (const [name, pid] of pids) note(`${name}: waited for a core`, since(name, waitForCoreMs(pid)));
    note('the machine: everybody waited for the disk', since('disk', waitForDiskMs()));
    fromMs = toMs;
  }
}

/** Notes when the file, and so a checkpoint, was written to, and how large its WAL became. */
export class WrittenFile {
  readonly #file: string;
  readonly #what: string;
  readonly #happened: Happening[];
  walBytes = 0;

  constructor(file: string, what: string, happened: Happening[]) {
    this.#file = file;
    this.#what = what;
    this.#happened = happened;
  }

  async watch(signal: AbortSignal): Promise<void> {
    let { mtimeMs: before } = statSync(this.#file);
    for (let fromMs = monotonicMs(); !signal.aborted; ) {
      await delay(SAMPLE_INTERVAL_MS);
      const toMs = monotonicMs();
      const { mtimeMs } = statSync(this.#file);
      if (mtimeMs !== before) this.#happened.push({ what: this.#what, fromMs, toMs, heldMs: 0 });
      before = mtimeMs;
      fromMs = toMs;
      this.walBytes = Math.max(this.walBytes, walBytes(this.#file));
    }
  }
}

export function walBytes(file: string): number {
  return statSync(`${file}-wal`, { throwIfNoEntry: false })?.size ?? 0;
}

/**
 * How long the threads of a process have waited for a core, all together; 0 where the system does not tell.
 * https://docs.kernel.org/scheduler/sched-stats.html#proc-pid-schedstat
 */
function waitForCoreMs(pid: number): number {
  try {
    const tasks = readdirSync(`/proc/${pid}/task`);
    const waits = tasks.map((task) =>
      Number(readFileSync(`/proc/${pid}/task/${task}/schedstat`, 'utf8').split(' ')[1]),
    );
    return waits.reduce((sum, each) => sum + each, 0) / 1e6;
  } catch {
    return 0;
  }
}

/** How long nobody could do anything but wait for the disk. https://docs.kernel.org/accounting/psi.html */
function waitForDiskMs(): number {
  try {
    const [, total] = /^full .* total=(\d+)$/m.exec(readFileSync('/proc/pressure/io', 'utf8')) ?? [];
    return Number(total ?? 0) / 1000;
  } catch {
    return 0;
  }
}
