import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';

const MAIN = fileURLToPath(new URL('../../src/cli/main.ts', import.meta.url));

/**
 * Compiled code is kept between the hundreds of starts, as the installed command keeps it: half of their time.
 * https://nodejs.org/api/module.html#module-compile-cache
 */
export const COMPILE_CACHE = fileURLToPath(new URL('../../node_modules/.cache/node', import.meta.url));

const running = new Set<ChildProcess>();
process.once('exit', () => {
  for (const child of running) child.kill('SIGKILL');
});

type Variables = Readonly<Record<string, string>>;

/** A `rivulet` process, or another program of ours that says when it serves. Disposing of it kills it. */
export interface RivuletProcess extends AsyncDisposable {
  readonly child: ChildProcess;
  readonly pid: number;
  /** Everything it has printed so far. */
  readonly stdout: string;
  readonly stderr: string;
  /** The address on its `ready` line, if there is one; rejects, with all it printed, if it ends before. */
  readonly ready: Promise<string>;
  /** That line as words. */
  readonly readyWords: Promise<readonly string[]>;
  /** Its exit code, or the signal's name. */
  readonly exited: Promise<number | string>;
  readonly hasEnded: boolean;
  /** Resolves like `exited`, at once for a signal that ends nothing. */
  kill(signal: NodeJS.Signals): Promise<number | string>;
  /** The same command line again, with other variables, once this process is dead and the new one ready. */
  restart(env?: Variables): Promise<RivuletProcess>;
}

/** Runs `rivulet` with the given arguments, from the sources. Of this process's RIVULET_… variables it sees none. */
export function rivulet(args: readonly string[], env: Variables = {}): RivuletProcess {
  return nodeProgram(MAIN, args, env);
}

/** Runs another program of ours that prints a `ready` line. */
export function nodeProgram(file: string, args: readonly string[], env: Variables = {}): RivuletProcess {
  const inherited = Object.fromEntries(
    Object.entries(process.env).filter(([name]) => !name.startsWith('RIVULET_')),
  );
  // Where it imports 'rivulet', as an app does, that is the sources too.
  const child = spawn(process.execPath, ['--conditions=rivulet-source', file, ...args], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...inherited, NODE_COMPILE_CACHE: COMPILE_CACHE, NODE_OPTIONS: '', NO_COLOR: '1', ...env },
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
  const readyWords = new Promise<readonly string[]>((resolve, reject) => {
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      stdout += text;
      const line = /^ready .*(?=\n)/m.exec(stdout)?.[0];
      if (line !== undefined) resolve(line.split(' '));
    });
    void exited.then((code) =>
      reject(new Error(`rivulet ${args[0]} ended with ${code}\n${stdout}\n${stderr}`)),
    );
  });
  readyWords.catch(() => undefined);
  const ready = readyWords.then((words) => words.find((word) => word.startsWith('http://')) ?? '');
  ready.catch(() => undefined);
  const kill = async (signal: NodeJS.Signals): Promise<number | string> => {
    child.kill(signal);
    if (signal === 'SIGSTOP' || signal === 'SIGCONT') return 0;
    return exited;
  };
  const dispose = async (): Promise<void> => {
    if (!running.has(child)) return;
    child.kill('SIGCONT');
    await kill('SIGKILL');
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
    readyWords,
    exited,
    get hasEnded() {
      return !running.has(child);
    },
    kill,
    async restart(others = {}) {
      await dispose();
      const again = nodeProgram(file, args, others);
      await again.ready;
      return again;
    },
    [Symbol.asyncDispose]: dispose,
  };
}

/** Runs a `rivulet` command to its end. */
export async function runRivulet(
  args: readonly string[],
  env: Variables = {},
): Promise<{ readonly code: number | string; readonly stdout: string; readonly stderr: string }> {
  await using command = rivulet(args, env);
  const code = await command.exited;
  return { code, stdout: command.stdout, stderr: command.stderr };
}
