import type pino from 'pino';
import type { OptionName, Settings } from '../config.ts';
import type { OutputStream, Terminal } from './terminal.ts';

/** What a command works with, beside its settings. */
export interface Context {
  /** For what the command is asked for: results, and the `ready` line. */
  readonly stdout: OutputStream;
  /** On stderr: messages, logs, progress. */
  readonly terminal: Terminal;
  readonly log: pino.Logger;
  /** Aborted by the first SIGINT or SIGTERM: end cleanly. */
  readonly signal: AbortSignal;
  readonly colour: boolean;
  /** Options of the command line itself; one environment or config file may serve other commands as well. */
  readonly flags: readonly OptionName[];
}

export interface Command {
  readonly name: string;
  readonly summary: string;
  /** Longer help, below the options. */
  readonly details?: string;
  readonly options: readonly OptionName[];
  /** A word that has to follow the command's name. */
  readonly argument?: { readonly name: string; readonly values: readonly string[]; readonly help: string };
  /** Checks what can be checked before anything opens, runs, and gives the exit code. */
  run(settings: Settings, context: Context, argument?: string): Promise<number>;
}

/** Options that every command has. */
export const COMMON_OPTIONS: readonly OptionName[] = ['log-level', 'verbose'];

/** Writes a result, and resolves once it is out: a pipe may be slow, and the process may end right after. */
export function print(stream: OutputStream, text: string): Promise<void> {
  return new Promise((resolve, reject) => {
    stream.write(`${text}\n`, (error) => (error ? reject(error) : resolve()));
  });
}
