import { CommanderError } from 'commander';
import { describe, expect, test } from 'vitest';
import { type Invocation, parseCommandLine } from '../../src/cli/program.ts';
import { COMMANDS } from '../../src/cli/run.ts';
import { OPTIONS } from '../../src/config.ts';

function parse(...args: string[]): {
  invocation: Invocation | null;
  out: string;
  err: string;
  error: unknown;
} {
  let out = '';
  let err = '';
  let invocation: Invocation | null = null;
  let error: unknown = null;
  try {
    invocation = parseCommandLine(args, {
      commands: COMMANDS,
      version: '1.2.3',
      writeOut: (text) => {
        out += text;
      },
      writeErr: (text) => {
        err += text;
      },
    });
  } catch (caught) {
    error = caught;
  }
  return { invocation, out, err, error };
}

describe('the command line', () => {
  test('gives the command and its raw flags', () => {
    const { invocation } = parse('wait', '--file', 'a.db', '--lsn=0/1', '--json', '--config', 'c.yaml');
    expect(invocation?.command.name).toBe('wait');
    expect(invocation?.sources).toMatchObject({
      flags: { file: 'a.db', lsn: '0/1', json: true },
      configFile: 'c.yaml',
    });
  });

  test('help lists what exists, and nothing else', () => {
    const { invocation, out } = parse('--help');
    expect(invocation).toBeNull();
    for (const command of COMMANDS) expect(out).toContain(`  ${command.name} `);
    expect(out).toContain('4 different');
  });

  test.each(COMMANDS.map((command) => [command.name, command] as const))(
    'help of %s shows its options',
    (name, command) => {
      const { out } = parse(name, '--help');
      for (const option of command.options) expect(out).toContain(`--${option}`);
      expect(out).toContain('--config');
      expect(out).toContain('RIVULET_');
    },
  );

  test('every option belongs to a command', () => {
    const used = new Set<string>(COMMANDS.flatMap((command) => command.options));
    const unused = Object.keys(OPTIONS).filter((option) => !used.has(option));
    expect(unused).toEqual(['log-level', 'verbose']);
  });

  test.each([
    [['frobnicate'], "unknown command 'frobnicate'"],
    [['replikator'], 'Did you mean'],
    [['frobnicate'], "'rivulet --help' lists the commands"],
    [['wait', '--nonsense'], "unknown option '--nonsense'"],
    [['wait', '--token', 'x'], "'rivulet wait --help' lists its options"],
    [['wait', '--file'], 'argument missing'],
    [['status', 'extra'], 'too many arguments'],
  ])('%j is a usage error that says why', (args, message) => {
    const { error, err } = parse(...args);
    expect(error).toBeInstanceOf(CommanderError);
    expect(err).toContain(message);
    expect(err).toMatch(/^rivulet: /);
  });

  test('the version', () => {
    expect(parse('--version').out).toBe('1.2.3\n');
  });
});
