import { spawn } from 'node:child_process';
import { once } from 'node:events';

/** A process of ours that is measured. */
export interface RivuletProcess {
  readonly name: string;
  readonly pid: number;
  /** The end of what it has said on stderr. */
  readonly stderr: string;
  /** Resolves with its exit code, or the signal's name. */
  readonly exited: Promise<number | string>;
  /** Sends the signal and waits for the end; nothing if it has ended already. */
  end(signal: 'SIGTERM' | 'SIGKILL'): Promise<void>;
}

const KEPT_STDERR_LENGTH = 8000;

/** Runs the `rivulet` command at `program`. Whatever happens to the bench, the process does not outlive it. */
export function startRivulet(options: {
  readonly program: string;
  readonly name: string;
  readonly args: readonly string[];
  /** Where CPU profiles go, one file per thread. */
  readonly profileDirectory: string | undefined;
}): RivuletProcess {
  const { program, name, args, profileDirectory } = options;
  const profiling =
    profileDirectory === undefined ? [] : ['--cpu-prof', `--cpu-prof-dir=${profileDirectory}`];
  const child = spawn(process.execPath, [...profiling, program, ...args], {
    stdio: ['ignore', 'ignore', 'pipe'],
    env: { ...process.env, NODE_OPTIONS: '', NO_COLOR: '1' },
  });
  const kill = (): unknown => child.kill('SIGKILL');
  process.once('exit', kill);
  let stderr = '';
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    stderr = (stderr + text).slice(-KEPT_STDERR_LENGTH);
  });
  let hasExited = false;
  const exited = once(child, 'close').then(([code, signal]: (number | string | null)[]) => {
    hasExited = true;
    process.off('exit', kill);
    return code ?? signal ?? 'unknown';
  });
  return {
    name,
    pid: child.pid!,
    get stderr() {
      return stderr;
    },
    exited,
    async end(signal) {
      if (!hasExited) child.kill(signal);
      await exited;
    },
  };
}
