import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import type { Lsn } from '../../../src/lsn.ts';

/** What is asked of the process that holds the crowd. */
export type CrowdCommand =
  | { readonly kind: 'join'; readonly group: string; readonly count: number }
  /** The first ones stop reading their sockets; or go on. */
  | { readonly kind: 'stall' | 'resume'; readonly count: number }
  /** What was measured so far does not count. */
  | { readonly kind: 'measure' }
  | { readonly kind: 'finish'; readonly end: string; readonly timeoutMs: number };

export interface CrowdReport {
  readonly followers: number;
  /** Those that have every transaction, each once and in order. */
  readonly whole: number;
  readonly transactions: number;
  /** Transactions received by followers that were live and had never stalled. */
  readonly deliveries: number;
  readonly bytes: number;
  readonly reads: number;
  /** Commit (the server's clock) to received, of all deliveries. */
  readonly lagMs: { readonly p50: number; readonly p99: number; readonly max: number };
  readonly problems: readonly string[];
  readonly cpuSeconds: number;
}

/** Followers in a process of their own: the real protocol, no file. */
export class Crowd implements AsyncDisposable {
  readonly #child: ChildProcess;
  readonly #answers = new Map<number, { resolve(answer: unknown): void; reject(error: Error): void }>();
  #number = 0;

  /** All of them begin at `start`. */
  constructor(options: { readonly url: string; readonly epoch: string; readonly start: string }) {
    this.#child = fork(
      fileURLToPath(new URL('./crowd-program.ts', import.meta.url)),
      [JSON.stringify(options)],
      {
        env: { ...process.env, NODE_OPTIONS: '' },
      },
    );
    this.#child.on(
      'message',
      ({ number, answer, error }: { number: number; answer: unknown; error?: string }) => {
        const waiting = this.#answers.get(number);
        this.#answers.delete(number);
        if (error === undefined) waiting?.resolve(answer);
        else waiting?.reject(new Error(error));
      },
    );
    this.#child.once('exit', (code) => {
      for (const { reject } of this.#answers.values()) reject(new Error(`the crowd ended with ${code}`));
      this.#answers.clear();
    });
  }

  get pid(): number {
    return this.#child.pid!;
  }

  /** Resolves once the streams of all have begun. */
  async join(group: string, count: number): Promise<void> {
    await this.#ask({ kind: 'join', group, count });
  }

  async stall(count: number): Promise<void> {
    await this.#ask({ kind: 'stall', count });
  }

  async resume(count: number): Promise<void> {
    await this.#ask({ kind: 'resume', count });
  }

  async measure(): Promise<void> {
    await this.#ask({ kind: 'measure' });
  }

  /** Waits until everybody who reads is at `end`. */
  async finish(end: Lsn, timeoutMs = 60_000): Promise<CrowdReport> {
    return (await this.#ask({ kind: 'finish', end: String(end), timeoutMs })) as CrowdReport;
  }

  /** As a machine that stops: no FIN, and nothing is read any more. */
  freeze(): void {
    this.#child.kill('SIGSTOP');
  }

  #ask(command: CrowdCommand): Promise<unknown> {
    const number = ++this.#number;
    const answer = new Promise<unknown>((resolve, reject) => {
      this.#answers.set(number, { resolve, reject });
    });
    this.#child.send({ number, command });
    return answer;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    const exited = once(this.#child, 'exit');
    this.#child.kill('SIGKILL');
    await exited;
  }
}
