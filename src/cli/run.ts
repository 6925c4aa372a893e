import { createRequire } from 'node:module';
import { CommanderError } from 'commander';
import { readSettings, type Settings, withoutSecrets } from '../config.ts';
import { EXIT, RivuletError } from '../errors.ts';
import type { Command, Context } from './command.ts';
import { demoCommand } from './demo-command.ts';
import { doctorCommand } from './doctor-command.ts';
import { paint, wantsColour } from './format.ts';
import { createLog } from './log.ts';
import { type Invocation, parseCommandLine } from './program.ts';
import { proxyCommand } from './proxy-command.ts';
import { relayCommand } from './relay-command.ts';
import { replicaCommand } from './replica-command.ts';
import { replicatorCommand } from './replicator-command.ts';
import { restoreCommand } from './restore-command.ts';
import { setupCommand } from './setup-command.ts';
import { snapshotCommand } from './snapshot-command.ts';
import { snapshotterCommand } from './snapshotter-command.ts';
import { statusCommand } from './status-command.ts';
import { teardownCommand } from './teardown-command.ts';
import { type OutputStream, Terminal } from './terminal.ts';
import { verifyCommand } from './verify-command.ts';
import { waitCommand } from './wait-command.ts';

export const COMMANDS: readonly Command[] = [
  demoCommand,
  setupCommand,
  teardownCommand,
  replicatorCommand,
  relayCommand,
  replicaCommand,
  proxyCommand,
  snapshotterCommand,
  waitCommand,
  verifyCommand,
  snapshotCommand,
  restoreCommand,
  statusCommand,
  doctorCommand,
];

/** What `run` needs of a process; tests hand in less than a whole one. */
export interface ProcessLike {
  readonly stdout: OutputStream;
  readonly stderr: OutputStream;
  readonly env: Readonly<Record<string, string | undefined>>;
  on(event: 'SIGINT' | 'SIGTERM', listener: () => void): unknown;
  off(event: 'SIGINT' | 'SIGTERM', listener: () => void): unknown;
  exit(code: number): unknown;
}

/** Runs one command line and gives its exit code. Never throws. */
export async function run(args: readonly string[], host: ProcessLike): Promise<number> {
  const terminal = new Terminal(host.stderr);
  const colour = wantsColour(host.stderr);
  let settings: Settings = {};
  try {
    const invocation = parseCommandLine(args, {
      commands: COMMANDS,
      version: packageVersion(),
      writeOut: (text) => host.stdout.write(text),
      writeErr: (text) => host.stderr.write(text),
    });
    if (invocation === null) return EXIT.done;
    settings = readSettings({ ...invocation.sources, environment: host.env });
    return await runCommand(invocation, settings, { host, terminal, colour });
  } catch (error) {
    terminal.endProgress();
    // Commander has said already what was wrong with the usage.
    if (error instanceof CommanderError) return EXIT.usage;
    for (const line of explain(error, { verbose: settings.verbose === true, colour })) terminal.line(line);
    return error instanceof RivuletError ? error.exitCode : EXIT.failed;
  }
}

async function runCommand(
  { command, argument, sources }: Invocation,
  settings: Settings,
  { host, terminal, colour }: { host: ProcessLike; terminal: Terminal; colour: boolean },
): Promise<number> {
  const abort = new AbortController();
  const onSignal = (): void => {
    // The second one means that ending cleanly takes too long for whoever sends it.
    if (abort.signal.aborted) host.exit(EXIT.failed);
    abort.abort();
  };
  const log = createLog(terminal, {
    level: settings['log-level'] ?? (settings.verbose === true ? 'debug' : 'info'),
    colour,
    stacks: settings.verbose === true,
  });
  terminal.logProgressTo((text) => log.info(text));
  const flags = command.options.filter((option) => sources.flags[option] !== undefined);
  const context: Context = { stdout: host.stdout, terminal, log, signal: abort.signal, colour, flags };
  host.on('SIGINT', onSignal);
  host.on('SIGTERM', onSignal);
  try {
    return await command.run(settings, context, argument);
  } finally {
    host.off('SIGINT', onSignal);
    host.off('SIGTERM', onSignal);
    terminal.endProgress();
  }
}

/** What a person reads of an error: what happened, why, and what to do; the stack only on demand. */
export function explain(
  error: unknown,
  { verbose, colour }: { verbose: boolean; colour: boolean },
): string[] {
  const lines: string[] = [];
  const message = error instanceof Error ? error.message : String(error);
  lines.push(`${paint(colour, 'red', 'rivulet:')} ${withoutSecrets(message)}`);
  if (error instanceof RivuletError && error.hint !== undefined)
    lines.push(`  hint: ${withoutSecrets(error.hint)}`);
  if (verbose && error instanceof Error) {
    lines.push(withoutSecrets(error.stack ?? ''));
    for (let { cause } = error; cause instanceof Error; { cause } = cause)
      lines.push(`caused by: ${withoutSecrets(cause.stack ?? cause.message)}`);
    if (error instanceof RivuletError) lines.push(`code: ${error.code}`);
  } else if (!(error instanceof RivuletError)) {
    lines.push('  hint: this is not a failure that Rivulet expects; --verbose shows where it happened');
  }
  return lines;
}

export function packageVersion(): string {
  // The same relative path from src/cli and from dist/cli.
  return (createRequire(import.meta.url)('../../package.json') as { version: string }).version;
}
