import { Argument, Command as CommanderCommand, CommanderError, Option } from 'commander';
import { environmentVariable, OPTIONS, type OptionName, type SettingsSources } from '../config.ts';
import { COMMON_OPTIONS, type Command } from './command.ts';

export interface Invocation {
  readonly command: Command;
  /** Of a command that has one. */
  readonly argument: string | undefined;
  readonly sources: Pick<SettingsSources, 'flags' | 'configFile'>;
}

export interface ParseOptions {
  readonly commands: readonly Command[];
  readonly version: string;
  readonly writeOut: (text: string) => void;
  readonly writeErr: (text: string) => void;
}

/**
 * The command line, as far as it can be understood without its environment. Null when all there was to do is
 * done (help, version). Throws CommanderError for a usage that does not exist, having said so.
 */
export function parseCommandLine(args: readonly string[], options: ParseOptions): Invocation | null {
  let invocation: Invocation | null = null;
  const program = new CommanderCommand('rivulet')
    .description('Keeps exact, read-only SQLite copies of a Postgres database, milliseconds behind.')
    .version(options.version, '--version', 'print the version')
    .helpOption('-h, --help', 'show help')
    .helpCommand('help [command]', 'show help for a command')
    .showSuggestionAfterError()
    .showHelpAfterError("'rivulet --help' lists the commands")
    .exitOverride()
    .configureOutput({
      writeOut: options.writeOut,
      writeErr: options.writeErr,
      outputError: (text, write) => write(text.replace(/^error: /, 'rivulet: ')),
    })
    .addHelpText(
      'after',
      '\nEvery flag is also an environment variable (--token-file is RIVULET_TOKEN_FILE) and a key of the\n' +
        'config file (token-file: …). Flags win over variables, variables over the file.\n' +
        'Exit codes: 0 done, 1 failed, 2 bad usage or configuration, 3 timeout, 4 different.',
    );
  for (const command of options.commands) {
    const sub = program
      .command(command.name)
      .description(command.summary)
      .showHelpAfterError(`'rivulet ${command.name} --help' lists its options`)
      .allowExcessArguments(false);
    if (command.argument !== undefined) {
      const { name, values, help } = command.argument;
      sub.addArgument(new Argument(`<${name}>`, help).choices(values));
    }
    for (const name of command.options) sub.addOption(commanderOption(name));
    sub.option('--config <PATH>', 'YAML or JSON file with any of these options [RIVULET_CONFIG]');
    for (const name of COMMON_OPTIONS) sub.addOption(commanderOption(name));
    if (command.details !== undefined) sub.addHelpText('after', `\n${command.details}`);
    sub.action((...given: readonly unknown[]) => {
      const argument = command.argument === undefined ? undefined : (given[0] as string);
      const parsed = given[command.argument === undefined ? 0 : 1] as Record<string, unknown>;
      const flags = Object.fromEntries(
        [...command.options, ...COMMON_OPTIONS].map((name) => [
          name,
          parsed[commanderOption(name).attributeName()],
        ]),
      );
      invocation = { command, argument, sources: { flags, configFile: parsed.config as string | undefined } };
    });
  }
  try {
    program.parse(args, { from: 'user' });
  } catch (error) {
    if (error instanceof CommanderError && error.exitCode === 0) return null;
    throw error;
  }
  return invocation;
}

function commanderOption(name: OptionName): Option {
  const definition: { readonly value?: string; readonly help: string } = OPTIONS[name];
  const flags = definition.value === undefined ? `--${name}` : `--${name} <${definition.value}>`;
  return new Option(flags, `${definition.help} [${environmentVariable(name)}]`);
}
