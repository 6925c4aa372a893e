import { readFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { COMMON_OPTIONS } from '../../src/cli/command.ts';
import { COMMANDS } from '../../src/cli/run.ts';
import { environmentVariable, OPTIONS, type OptionName } from '../../src/config.ts';
import { ERROR_TABLE, EXIT } from '../../src/errors.ts';

const readme = readFileSync(new URL('../../README.md', import.meta.url), 'utf8');

/** The rows of the table whose header begins so, as cells without their back quotes. */
function tableBelow(header: string): string[][] {
  const lines = readme.split('\n');
  const start = lines.findIndex((line) => line.startsWith(header));
  expect(start, header).toBeGreaterThan(0);
  const end = lines.findIndex((line, index) => index > start && !line.startsWith('|'));
  return lines.slice(start + 2, end).map((line) =>
    line
      .slice(1, -1)
      .split('|')
      .map((cell) => cell.trim().replaceAll('`', '')),
  );
}

describe('README', () => {
  test('lists every error code as it is', () => {
    expect(tableBelow('| code | what happened')).toEqual(
      Object.entries(ERROR_TABLE).map(([code, { says, recovery, exit, http }]) => [
        code,
        says,
        recovery,
        `${exit}`,
        `${http}`,
      ]),
    );
  });

  test('lists every exit code', () => {
    expect(tableBelow('| exit code |').map(([code]) => Number(code))).toEqual(Object.values(EXIT));
  });

  test('lists every command', () => {
    expect(tableBelow('| command | does').map(([command]) => command)).toEqual(
      COMMANDS.map((command) => `rivulet ${command.name}`),
    );
  });

  test('lists every option, its variable, and the commands that take it', () => {
    const expected = (Object.keys(OPTIONS) as OptionName[]).map((option) => {
      const of = COMMANDS.filter((command) => command.options.includes(option)).map(
        (command) => command.name,
      );
      return [
        `--${option}`,
        environmentVariable(option),
        COMMON_OPTIONS.includes(option) ? 'all' : of.join(', '),
      ];
    });
    expect(tableBelow('| flag and key |').map((row) => row.slice(0, 3))).toEqual(expected);
  });

  test("shows the example's essential lines as they are", () => {
    const example = readFileSync(new URL('../../examples/notes/app.ts', import.meta.url), 'utf8');
    const essential = example.split('\n// The rest is what any app has')[0]!;
    expect(readme).toContain(`\`\`\`ts\n${essential}`);
    expect(essential.split('\n').filter((line) => line !== '').length).toBeLessThan(25);
  });

  test('shows the defaults that help shows', () => {
    for (const [flag, , , , shown] of tableBelow('| flag and key |')) {
      const option = flag!.slice(2) as OptionName;
      const inHelp = /\(default '?([^')]+)'?\)/.exec(OPTIONS[option].help)?.[1];
      if (inHelp !== undefined && shown !== '') expect([option, shown]).toEqual([option, inHelp]);
    }
  });
});
