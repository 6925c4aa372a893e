import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { createWriteStream, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { RivuletError } from '../../errors.ts';

const MAIN = fileURLToPath(
  new URL(import.meta.url.endsWith('.ts') ? '../main.ts' : '../main.js', import.meta.url),
);

/** A process that does not end by itself within this time after SIGTERM is killed, ms. */
const STOP_TIMEOUT_MS = 10_000;
const READY_TIMEOUT_MS = 60_000;

export interface ChildOptions {
  /** Another program than `rivulet`. */
  readonly program?: string;
  readonly args: readonly string[];
  /** For what should not show in the list of processes. */
  readonly environment: Readonly<Record<string, string>>;
  /** Where its log goes. */
  readonly logFile: string;
}

/** A process of the demo's own, `rivulet …` mostly, that prints a `ready` line. */
export class RivuletChild {
  readonly #process: ChildProcess;
  readonly #options: ChildOptions;
  readonly #exited: Promise<unknown>;
  readonly #ready: Promise<string>;

  constructor(options: ChildOptions) {
    this.#options = options;
    const inherited = Object.fromEntries(
      Object.entries(process.env).filter(([name]) => !name.startsWith('RIVULET_')),
    );
    // The example imports 'rivulet' as an app does: run from the sources, that is the sources too.
    const conditions = MAIN.endsWith('.ts') ? ['--conditions=rivulet-source'] : [];
    this.#process = spawn(process.execPath, [...conditions, options.program ?? MAIN, ...options.args], {
      // A process group of its own: a Ctrl-C on the terminal is for the demo, which ends its processes in order.
      detached: true,
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...inherited, ...options.environment },
    });
    this.#process.stderr!.pipe(createWriteStream(options.logFile, { flags: 'a' }));
    this.#exited = once(this.#process, 'exit');
    this.#exited.catch(() => undefined);
    // However this process ends: the children do not outlive it.
    process.once('exit', this.#onExit);
    this.#process.once('exit', () => process.off('exit', this.#onExit));
    this.#ready = this.#readReadyLine();
    this.#ready.catch(() => undefined);
  }

  get pid(): number {
    return this.#process.pid ?? 0;
  }

  get isRunning(): boolean {
    return this.#process.exitCode === null && this.#process.signalCode === null;
  }

  /** The line that begins with `ready`. */
  async ready(signal: AbortSignal): Promise<string> {
    const timeout = AbortSignal.any([signal, AbortSignal.timeout(READY_TIMEOUT_MS)]);
    const gaveUp = new Promise<never>((_, reject) => {
      const abort = (): void =>
        reject(
          signal.aborted
            ? signal.reason
            : this.#failure(`did not become ready within ${READY_TIMEOUT_MS / 1000} s`),
        );
      if (timeout.aborted) abort();
      timeout.addEventListener('abort', abort, { once: true });
    });
    return await Promise.race([this.#ready, gaveUp]);
  }

  /** SIGKILL: the crash that the demo shows. */
  async kill(): Promise<void> {
    this.#process.kill('SIGKILL');
    if (this.isRunning) await this.#exited;
  }

  async stop(): Promise<void> {
    if (!this.isRunning) return;
    this.#process.kill('SIGTERM');
    const timer = setTimeout(() => this.#process.kill('SIGKILL'), STOP_TIMEOUT_MS);
    await this.#exited;
    clearTimeout(timer);
  }

  readonly #onExit = (): void => {
    this.#process.kill('SIGKILL');
  };

  #readReadyLine(): Promise<string> {
    return new Promise((resolve, reject) => {
      let output = '';
      this.#process.stdout!.setEncoding('utf8').on('data', (chunk: string) => {
        output += chunk;
        const line = output
          .split('\n')
          .find((each, index, all) => each.startsWith('ready ') && index < all.length - 1);
        if (line !== undefined) resolve(line);
      });
      this.#process.once('error', reject);
      this.#process.once('close', (code, signalName) =>
        reject(this.#failure(`ended with ${signalName ?? `exit code ${code}`}`)),
      );
    });
  }

  #failure(what: string): RivuletError {
    const log = readFileSync(this.#options.logFile, 'utf8').trimEnd().split('\n').slice(-15).join('\n  ');
    return new RivuletError(
      'CLOSED',
      `the process \`${this.#options.program ?? `rivulet ${this.#options.args[0]}`}\` ${what}; its log ends with:\n  ${log}`,
    );
  }
}
