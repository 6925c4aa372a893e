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
