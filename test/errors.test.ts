import { expect, test } from 'vitest';
import { RivuletError } from '../src/errors.ts';

test('an error goes into JSON: LSNs as text, without its cause', () => {
  const error = new RivuletError('WAIT_TIMEOUT', 'too late', {
    hint: 'wait longer',
    cause: new Error('of somebody else'),
    facts: { lsn: 0x16b374d848n, file: 'app.db', bytes: 7, is: true, none: null },
  });
  expect(JSON.parse(JSON.stringify({ from: 'postgres', reason: error }))).toEqual({
    from: 'postgres',
    reason: {
      code: 'WAIT_TIMEOUT',
      message: 'too late',
      hint: 'wait longer',
      recovery: 'retry',
      facts: { lsn: '16/B374D848', file: 'app.db', bytes: 7, is: true, none: null },
    },
  });
});
