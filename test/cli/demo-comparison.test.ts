import { describe, expect, test } from 'vitest';
import { expectedValue } from '../../src/cli/demo/expected-value.ts';
import { Percentiles } from '../../src/cli/demo/percentiles.ts';

describe('what the demo expects in SQLite', () => {
  test.each([
    [null, 'integer', null],
    ['t', 'boolean', 1n],
    ['9223372036854775807', 'bigint', 9223372036854775807n],
    ['1.5', 'double precision', 1.5],
    ['-Infinity', 'real', -Infinity],
    ['NaN', 'real', 'NaN'],
    ['100', 'numeric', 100n],
    ['5.00', 'numeric(10,2)', 5n],
    ['-0.050', 'numeric', -0.05],
    ['123456789012345.6', 'numeric', '123456789012345.6'],
    ['9223372036854775808', 'numeric', '9223372036854775808'],
    ['NaN', 'numeric', 'NaN'],
    ['\\x00ff', 'bytea', Buffer.from([0, 255])],
    ['2026-11-21 03:00:00', 'timestamp without time zone', '2026-11-21 03:00:00.000000'],
    ['2026-11-21 03:00:00.12+00', 'timestamp(3) with time zone', '2026-11-21 03:00:00.120000Z'],
    ['infinity', 'timestamp with time zone', 'infinity'],
    ['{"a": 1}', 'jsonb', '{"a": 1}'],
    ['(1.5,2)', 'point', '(1.5,2)'],
    ['AT ', 'character(3)', 'AT '],
    ['{}', 'text[]', '[]'],
    ['{a,NULL,"NULL","with, \\"comma\\\\",""}', 'text[]', '["a",null,"NULL","with, \\"comma\\\\",""]'],
    ['{{1,2},{3,NULL}}', 'integer[]', '[[1,2],[3,null]]'],
    ['[2:3]={t,f}', 'boolean[]', '[true,false]'],
    ['{1.50,NaN}', 'numeric(5,2)[]', '[1.50,"NaN"]'],
    ['{"2026-11-21 03:00:00+00"}', 'timestamp with time zone[]', '["2026-11-21 03:00:00.000000Z"]'],
  ] as const)('%s of type %s', (text, type, expected) => {
    expect(expectedValue(text, type)).toEqual(expected);
  });
});

describe('percentiles', () => {
  test('are taken of the newest samples', () => {
    const percentiles = new Percentiles(100);
    expect(percentiles.at(0.5)).toBeNull();
    for (let sample = 1; sample <= 1100; sample++) percentiles.add(sample);
    expect(percentiles.at(0.5)).toBe(1051);
    expect(percentiles.at(0.99)).toBe(1100);
  });
});
