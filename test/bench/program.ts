import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { monotonicMs } from './monotonic-clock.ts';
import type { ProcessUsage } from './process-usage.ts';

/** What a program of its own process found out. */
export interface ProgramResult<Output> {
  readonly output: Output;
  /** From the start of the process to the end of its work. */
  readonly processMs: number;
  /** Of the work alone. */
  readonly workMs: number;
  readonly usage: ProcessUsage;
}

interface Line<Output> {
  readonly output: Output;
  readonly workMs: number;
  readonly finishedMs: number;
  readonly cpuSeconds: number;
  readonly peakRssBytes: number;
}

/** Runs a file that ends in `await program(…)` as a process of its own: nothing of the bench's is in its way. */
export async function runProgram<Output>(
  name: string,
  file: URL,
  input: object,
): Promise<ProgramResult<Output>> {
  const startedMs = monotonicMs();
  const child = spawn(process.execPath, [fileURLToPath(file), JSON.stringify(input)], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, NODE_OPTIONS: '' },
  });
  const end = (): unknown => child.kill('SIGKILL');
  process.once('exit', end);
  let stdout = '';
  let stderr = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    stdout += text;
  });
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    stderr += text;
  });
  const [code] = (await once(child, 'close')) as [number | null];
  process.off('exit', end);
  if (code !== 0) throw new Error(`${name} ended with ${code}:\n${stderr}`);
  const line = JSON.parse(stdout) as Line<Output>;
  return {
    output: line.output,
    processMs: line.finishedMs - startedMs,
    workMs: line.workMs,
    usage: { name, cpuSeconds: line.cpuSeconds, peakRssBytes: line.peakRssBytes },
  };
}

/** The body of such a file. */
export async function program<Input, Output>(
  work: (input: Input) => Output | Promise<Output>,
): Promise<void> {
  const input = JSON.parse(process.argv[2]!) as Input;
  const startedMs = monotonicMs();
  const output = await work(input);
  const finishedMs = monotonicMs();
  const { userCPUTime, systemCPUTime, maxRSS } = process.resourceUsage();
  const line: Line<Output> = {
    output,
    workMs: finishedMs - startedMs,
    finishedMs,
    cpuSeconds: (userCPUTime + systemCPUTime) / 1e6,
    peakRssBytes: maxRSS * 1024,
  };
  process.stdout.write(JSON.stringify(line));
}
