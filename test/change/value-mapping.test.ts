import { describe, expect, test } from 'vitest';
import { TAG } from '../../src/change/frame.ts';
import { FrameWriter } from '../../src/change/frame-writer.ts';
import type { ValueMapping } from '../../src/change/relation.ts';
import { valueEncoder } from '../../src/change/value-mapping.ts';

/** What one value becomes: the SQLite storage class and the value, read back from the encoded bytes. */
function mapped(mapping: ValueMapping, text: string): [string, unknown] {
  const out = new FrameWriter();
  const source = Buffer.from(`##${text}##`);
  valueEncoder(mapping)(source, 2, source.length - 2, out);
  const bytes = out.take(out.pendingBytes);
  switch (bytes[0]) {
    case TAG.int32:
      expect(bytes.length).toBe(5);
      return ['integer', BigInt(bytes.readInt32LE(1))];
    case TAG.int64:
      expect(bytes.length).toBe(9);
      return ['integer', bytes.readBigInt64LE(1)];
    case TAG.real:
      expect(bytes.length).toBe(9);
      return ['real', bytes.readDoubleLE(1)];
    case TAG.text:
      expect(bytes.length).toBe(5 + bytes.readUInt32LE(1));
      return ['text', bytes.toString('utf8', 5)];
    case TAG.blob:
      expect(bytes.length).toBe(5 + bytes.readUInt32LE(1));
      return ['blob', bytes.toString('hex', 5)];
    default:
      expect(bytes.length).toBe(1 + bytes[0]! - TAG.shortText);
      return ['text', bytes.toString('utf8', 1)];
  }
}

describe('value mapping', () => {
  test.each<[ValueMapping, string, string, unknown]>([
    ['bool', 't', 'integer', 1n],
    ['bool', 'f', 'integer', 0n],
    ['int', '0', 'integer', 0n],
    ['int', '-2147483648', 'integer', -2147483648n],
    ['int', '2147483648', 'integer', 2147483648n],
    ['int', '-2147483649', 'integer', -2147483649n],
    ['int', '999999999999999', 'integer', 999999999999999n],
    ['int', '-99999999999999', 'integer', -99999999999999n],
    ['int', '9223372036854775807', 'integer', 9223372036854775807n],
    ['int', '-9223372036854775808', 'integer', -9223372036854775808n],
    ['int', '9007199254740993', 'integer', 9007199254740993n],
    ['float', '-0', 'real', -0],
    ['float', '5e-324', 'real', 5e-324],
    ['float', 'Infinity', 'real', Number.POSITIVE_INFINITY],
    ['float', '-Infinity', 'real', Number.NEGATIVE_INFINITY],
    ['float', 'NaN', 'text', 'NaN'],
    ['float', '0.1', 'real', 0.1],
    ['numeric', '0', 'integer', 0n],
    ['numeric', '5.00', 'integer', 5n],
    ['numeric', '-5.00', 'integer', -5n],
    ['numeric', '9223372036854775807', 'integer', 9223372036854775807n],
    ['numeric', '9223372036854775808', 'text', '9223372036854775808'],
    ['numeric', '-9223372036854775808.000', 'integer', -9223372036854775808n],
    ['numeric', '-9223372036854775809', 'text', '-9223372036854775809'],
    ['numeric', '123456789012345.6', 'text', '123456789012345.6'],
    ['numeric', '12345678901234.5', 'real', 12345678901234.5],
    ['numeric', '0.1', 'real', 0.1],
    ['numeric', '0.10000000000000000000', 'real', 0.1],
    ['numeric', '-0.000000000000000000012345678901234', 'real', -0.000000000000000000012345678901234],
    ['numeric', '1.000000000000001', 'text', '1.000000000000001'],
    ['numeric', `0.${'0'.repeat(320)}1`, 'text', `0.${'0'.repeat(320)}1`],
    ['numeric', '1'.repeat(131072), 'text', '1'.repeat(131072)],
    ['numeric', 'NaN', 'text', 'NaN'],
    ['numeric', '-Infinity', 'text', '-Infinity'],
    ['text', '', 'text', ''],
    ['text', '\u{feff}é\u{1f600}\u{ffff}', 'text', '\u{feff}é\u{1f600}\u{ffff}'],
    ['text', 'x'.repeat(239), 'text', 'x'.repeat(239)],
    ['text', 'x'.repeat(240), 'text', 'x'.repeat(240)],
    ['json', '{"a":1.0,"a":1E400}', 'text', '{"a":1.0,"a":1E400}'],
    ['bytea', '\\x', 'blob', ''],
    ['bytea', '\\x00ff10', 'blob', '00ff10'],
    ['date', '2026-11-21', 'text', '2026-11-21'],
    ['timestamp', '2026-11-21 03:00:00', 'text', '2026-11-21 03:00:00.000000'],
    ['timestamp', '2026-11-21 03:00:00.12', 'text', '2026-11-21 03:00:00.120000'],
    ['timestamp', '0044-03-15 00:00:00 BC', 'text', '0044-03-15 00:00:00 BC'],
    ['timestamp', '294276-12-31 23:59:59.999999', 'text', '294276-12-31 23:59:59.999999'],
    ['timestamp', 'infinity', 'text', 'infinity'],
    ['timestamptz', '2026-11-21 03:00:00.123456+00', 'text', '2026-11-21 03:00:00.123456Z'],
    ['timestamptz', '2026-11-21 03:00:00+00', 'text', '2026-11-21 03:00:00.000000Z'],
    ['timestamptz', '0044-03-15 00:00:00+00 BC', 'text', '0044-03-15 00:00:00+00 BC'],
    ['timestamptz', '10000-01-01 00:00:00+00', 'text', '10000-01-01 00:00:00+00'],
    ['timestamptz', '-infinity', 'text', '-infinity'],
    [{ array: 'int', delimiter: ',' }, '{}', 'text', '[]'],
    [
      { array: 'int', delimiter: ',' },
      '[0:1][2:3]={{1,NULL},{3,9223372036854775807}}',
      'text',
      '[[1,null],[3,9223372036854775807]]',
    ],
    [{ array: 'numeric', delimiter: ',' }, '{1.50,NaN,-0.00000001}', 'text', '[1.50,"NaN",-0.00000001]'],
    [{ array: 'float', delimiter: ',' }, '{1e+20,Infinity,-0}', 'text', '[1e+20,"Infinity",-0]'],
    [{ array: 'bool', delimiter: ',' }, '{t,f,NULL}', 'text', '[true,false,null]'],
    [
      { array: 'text', delimiter: ',' },
      '{"NULL",NULL,"","a\\"b\\\\c","{x,y}",é}',
      'text',
      '["NULL",null,"","a\\"b\\\\c","{x,y}","é"]',
    ],
    [{ array: 'json', delimiter: ',' }, '{"{\\"a\\": [1]}",NULL,1}', 'text', '[{"a": [1]},null,1]'],
    [{ array: 'bytea', delimiter: ',' }, '{"\\\\x00ff"}', 'text', '["\\\\x00ff"]'],
    [
      { array: 'timestamptz', delimiter: ',' },
      '{"2026-11-21 03:00:00+00",infinity}',
      'text',
      '["2026-11-21 03:00:00.000000Z","infinity"]',
    ],
    [{ array: 'text', delimiter: ';' }, '{(1,1),(0,0);(3,3),(2,2)}', 'text', '["(1,1),(0,0)","(3,3),(2,2)"]'],
  ])('%j %s', (mapping, text, storage, value) => {
    const [gotStorage, got] = mapped(mapping, text);
    expect(gotStorage).toBe(storage);
    expect(Object.is(got, value), `${String(got)} is not ${String(value)}`).toBe(true);
  });

  test('values that do not have the announced form are refused', () => {
    expect(() => mapped('int', '12x')).toThrow(/integer/);
    expect(() => mapped('bytea', '\\x0g')).toThrow(/bytea/);
    expect(() => mapped({ array: 'int', delimiter: ',' }, '{1,{2}')).toThrow(/array/);
  });
});
