import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { run } from '../../src/cli/run.ts';
import { fakeProcess } from './fake-process.ts';

/** A command line of a test, and the environment that the whole process has for it. */
export interface RunAs {
  readonly args: readonly string[];
  readonly env: Readonly<Record<string, string>>;
}

export interface RunAsOutcome {
  readonly code: number;
  readonly out: string;
  readonly err: string;
}

/** Somebody who owns nothing: nobody, if we are root; otherwise ourselves, without the right to write. */
export const STRANGER = process.getuid?.() === 0 ? { uid: 65534, gid: 65534 } : {};

/** Null in a checkout below a private home directory, say: the stranger cannot even start it. */
export async function runAsStranger(runs: readonly RunAs[]): Promise<RunAsOutcome[] | null> {
  const { stdout, stderr } = await promisify(execFile)(
    process.execPath,
    [import.meta.filename, JSON.stringify(runs)],
    STRANGER,
  ).catch((error: { stdout: string; stderr: string }) => error);
  if (/Cannot find module|EACCES.*run-as\.ts/.test(stderr)) return null;
  return JSON.parse(stdout) as RunAsOutcome[];
}

/** Runs the command lines that stand as JSON in its argument, as whoever runs this, and prints the outcomes as JSON. */
if (process.argv[1] === import.meta.filename) {
  const outcomes: RunAsOutcome[] = [];
  for (const { args, env } of JSON.parse(process.argv[2]!) as RunAs[]) {
    const host = fakeProcess();
    Object.assign(process.env, env);
    const code = await run(args, host);
    for (const name of Object.keys(env)) delete process.env[name];
    outcomes.push({ code, out: host.stdout.text, err: host.stderr.text });
  }
  process.stdout.write(JSON.stringify(outcomes), () => process.exit(0));
}
