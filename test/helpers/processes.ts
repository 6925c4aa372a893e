import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';

const MAIN = fileURLToPath(new URL('../../src/cli/main.ts', import.meta.url));

const running = new Set<ChildProcess>();
process.once('exit', () => {
  for (const child of running) child.kill('SIGKILL');
});

/** A `rivulet` process of the test's own. */
export interface RivuletProcess extends AsyncDisposable {
  readonly child: ChildProcess;
  readonly pid: number;
  /** Everything it has printed so far. */
  readonly stdout: string;
  readonly stderr: string;
  /** The address on its `ready` line; rejects, with what it printed, if it ends before. */
  readonly ready: Promise<string>;
  /** Its exit code, or the signal's name. */
  readonly exited: Promise<number | string>;
  kill(signal: NodeJS.Signals): Promise<number | string>;
}

/** Runs `rivulet` with the given arguments, from the sources. */
export function rivulet(args: readonly string[], env: Readonly<Record<string, string>> = {}): RivuletProcess {
  const child = spawn(process.execPath, [MAIN, ...args], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, NODE_OPTIONS: '', NO_COLOR: '1', ...env },
  });
  running.add(child);
  let stdout = '';
  let stderr = '';
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    stderr += text;
  });
  const exited = once(child, 'close').then(([code, signal]: (number | string | null)[]) => {
    running.delete(child);
    return code ?? signal ?? 'unknown';
  });
  const ready = new Promise<string>((resolve, reject) => {
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      stdout += text;
      const line = /^ready [^\n]*\n/m.exec(stdout)?.[0];
      if (line !== undefined) resolve(/http:\/\/\S+/.exec(line)?.[0] ?? '');
    });
    void exited.then((code) =>
      reject(new Error(`rivulet ${args[0]} ended with ${code}\n${stdout}\n${stderr}`)),
    );
  });
  ready.catch(() => undefined);
  const kill = async (signal: NodeJS.Signals): Promise<number | string> => {
    child.kill(signal);
    if (signal === 'SIGSTOP' || signal === 'SIGCONT') return 0;
    return exited;
  };
  return {
    child,
    pid: child.pid!,
    get stdout() {
      return stdout;
    },
    get stderr() {
      return stderr;
    },
    ready,
    exited,
    kill,
    async [Symbol.asyncDispose]() {
      if (running.has(child)) {
        child.kill('SIGCONT');
        await kill('SIGKILL');
      }
    },
  };
}
