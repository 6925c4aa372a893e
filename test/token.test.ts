import { createHmac } from 'node:crypto';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { parseLsn } from '../src/lsn.ts';
import {
  checkTokenKeys,
  contains,
  decodeToken,
  encodeToken,
  laterToken,
  type TokenKeys,
  tokenLsn,
} from '../src/token.ts';

const EPOCH = '0123456789abcdef';
const position = { epoch: EPOCH, lsn: parseLsn('16/B374D848') };
const old = { id: 'old', secret: 'the secret of last year' };
const keys: TokenKeys = { current: { id: 'k2', secret: 'sixteen bytes or more' }, previous: [old] };

const anyPosition = fc.record({
  epoch: fc.stringMatching(/^[0-9a-f]{16}$/),
  lsn: fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
});

describe('the token', () => {
  test('has a form that other languages can make and read', () => {
    expect(encodeToken(position)).toBe('1.0123456789abcdef.16b374d848');
    const mac = createHmac('sha256', keys.current.secret)
      .update('1.0123456789abcdef.16b374d848.k2')
      .digest()
      .subarray(0, 18)
      .toString('base64url');
    expect(encodeToken(position, keys)).toBe(`1.0123456789abcdef.16b374d848.k2.${mac}`);
    // What printf and to_hex of other languages may do to the number.
    expect(decodeToken('1.0123456789abcdef.00000016B374D848')).toEqual(position);
  });

  test('comes back as it went, signed or not, and needs no escape', () => {
    fc.assert(
      fc.property(anyPosition, fc.boolean(), (any, isSigned) => {
        const text = encodeToken(any, isSigned ? keys : undefined);
        expect(decodeToken(text, isSigned ? keys : undefined)).toEqual(any);
        expect(decodeToken(text)).toEqual(any);
        expect(text).toMatch(/^1[A-Za-z0-9._-]{1,80}$/);
        expect(encodeURIComponent(text)).toBe(text);
      }),
    );
  });

  test('is refused where any character of a signed one was changed', () => {
    const text = encodeToken(position, keys);
    for (let at = 0; at < text.length; at++) {
      const other = text[at] === '4' ? '5' : '4';
      const forged = text.slice(0, at) + other + text.slice(at + 1);
      expect(() => decodeToken(forged, keys), forged).toThrow(
        expect.objectContaining({ code: expect.stringMatching(/^TOKEN_(FORGED|MALFORMED)$/) }),
      );
    }
  });

  test('of a previous key is taken, of an unknown one and without signature it is not', () => {
    expect(decodeToken(encodeToken(position, { current: old }), keys)).toEqual(position);
    const strangers: TokenKeys = { current: { id: 'k2', secret: 'another of sixteen bytes' } };
    const unknown: TokenKeys = { current: { id: 'k3', secret: keys.current.secret } };
    for (const text of [
      encodeToken(position),
      encodeToken(position, strangers),
      encodeToken(position, unknown),
    ]) {
      expect(() => decodeToken(text, keys)).toThrow(expect.objectContaining({ code: 'TOKEN_FORGED' }));
    }
  });

  test('that is none says so, and says nothing of keys', () => {
    for (const text of [
      '',
      '1',
      '1..',
      '1.0123456789abcdef.',
      '1.0123456789abcdef.xyz',
      '1.0123456789abcdef.11112222333344445',
      '1.0123456789ABCDEF.10',
      '1.0123456789abcdef.10.k2',
      '1.0123456789abcdef.10.k2.short',
      ' 1.0123456789abcdef.10',
      '1.0123456789abcdef.10\n',
      '16/B374D848',
      `1.${'0'.repeat(10_000)}.1`,
    ]) {
      for (const given of [undefined, keys]) {
        try {
          decodeToken(text, given);
          expect.unreachable(text);
        } catch (error) {
          expect(error).toMatchObject({ code: 'TOKEN_MALFORMED' });
          expect(JSON.stringify([(error as Error).message, error])).not.toContain('sixteen');
        }
      }
    }
    expect(() => decodeToken('2.0123456789abcdef.10')).toThrow(/version 2/);
    expect(() => decodeToken(undefined as unknown as string)).toThrow(/not a token/);
  });

  test('keys that are none are refused without being shown', () => {
    for (const current of [
      { id: 'k', secret: 'short-secret' },
      { id: 'a.b', secret: 'sixteen bytes or more' },
    ]) {
      expect(() => encodeToken(position, { current })).toThrow(expect.objectContaining({ code: 'CONFIG' }));
      expect(() => encodeToken(position, { current })).not.toThrow(/short-secret|sixteen bytes or more/);
    }
    for (const keys of [
      'x',
      {},
      { current: 'short-secret' },
      { current: { id: 'k' } },
      { current: { secret: 'sixteen bytes or more' } },
      {
        current: { id: 'k', secret: 'sixteen bytes or more' },
        previous: [{ id: 'k', secret: 'short-secret' }],
      },
      {
        current: { id: 'k', secret: 'sixteen bytes or more' },
        previous: { id: 'k', secret: 'short-secret' },
      },
    ]) {
      const check = () => checkTokenKeys(keys as unknown as TokenKeys);
      expect(check).toThrow(expect.objectContaining({ code: 'CONFIG' }));
      expect(check).not.toThrow(/short-secret|sixteen bytes or more/);
    }
    checkTokenKeys(undefined);
    checkTokenKeys({ current: { id: 'k', secret: Buffer.alloc(16) } });
    expect(() => encodeToken({ epoch: 'a.b', lsn: 1n })).toThrow(/not an epoch/);
  });
});

test('the later of two', () => {
  const later = { epoch: EPOCH, lsn: position.lsn + 1n };
  expect(laterToken(position, later)).toBe(later);
  expect(laterToken(later, position)).toBe(later);
  expect(laterToken(position, { epoch: 'ffffffffffffffff', lsn: later.lsn })).toBeNull();
});

test('a reader that was shown more than the position carries both', () => {
  const shown = { ...position, seen: position.lsn + 0x20n };
  const text = encodeToken(shown, { current: { id: 'k', secret: 'sixteen bytes or more' } });
  expect(text).toMatch(/^1\.[0-9a-f]+\.[0-9a-f]+-[0-9a-f]+\.k\.[\w-]{24}$/);
  expect(decodeToken(text, { current: { id: 'k', secret: 'sixteen bytes or more' } })).toEqual(shown);
  expect(encodeToken({ ...position, seen: position.lsn })).toBe(encodeToken(position));
  const later = { epoch: EPOCH, lsn: position.lsn + 0x10n };
  const both = { ...later, seen: shown.seen };
  expect([laterToken(shown, later), laterToken(later, shown)]).toEqual([both, both]);
  expect(laterToken(shown, position)).toEqual(shown);
  expect([contains(both, shown), contains(later, shown), contains(shown, later)]).toEqual([
    true,
    false,
    false,
  ]);
});

describe('the position behind a record that ends with its page', () => {
  test.each([
    ['0/1A002018', '0/1A002000'], // behind a page's header
    ['0/1A000028', '0/1A000000'], // behind a segment's header
    ['3/00000028', '3/0'],
    ['0/1A002000', '0/1A002000'], // as flush positions have it
    ['0/1A002028', '0/1A002028'], // 16 bytes of a record that began on the page before
    ['0/1A002010', '0/1A002010'],
    ['0/1A100028', '0/1A100028'], // a segment of 1 MB would begin here, one of 16 does not
    ['0/1A003FE8', '0/1A003FE8'],
  ])('%s is %s', (insert, expected) => {
    expect(tokenLsn(parseLsn(insert))).toBe(parseLsn(expected));
  });

  test('depends on the segment size', () => {
    expect(tokenLsn(parseLsn('0/1A100028'), 1024n * 1024n)).toBe(parseLsn('0/1A100000'));
    expect(tokenLsn(parseLsn('0/1A000018'), 1n << 30n)).toBe(parseLsn('0/1A000000'));
  });
});
