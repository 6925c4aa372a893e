import { describe, expect, it } from 'vitest';
import {
  checkPublicationName,
  checkSlotName,
  judgeServer,
  type ServerFacts,
} from '../../src/source/preflight.ts';
import { parseTableName } from '../../src/source/publication.ts';

const GOOD: ServerFacts = {
  version: 140000,
  versionText: '14.0',
  inRecovery: false,
  walLevel: 'logical',
  maxSlots: 1,
  usedSlots: 0,
  maxWalSenders: 1,
  usedWalSenders: 0,
  user: 'app',
  isSuperuser: false,
  mayReplicate: true,
  database: 'db',
  slot: { name: 'rivulet', exists: false, active: false, plugin: null, database: null },
};

describe('judgeServer', () => {
  it('takes the least that will do', () => {
    expect(judgeServer(GOOD)).toBeNull();
    const slot = { ...GOOD.slot, exists: true, plugin: 'pgoutput', database: 'db' };
    expect(judgeServer({ ...GOOD, slot, usedSlots: 1, usedWalSenders: 1 })).toBeNull();
  });

  it.each<[string, Partial<ServerFacts>, string, RegExp]>([
    [
      'an old server',
      { version: 130020, versionText: '13.20' },
      'SERVER_UNSUITABLE',
      /13\.20, older than 14/,
    ],
    ['a standby', { inRecovery: true }, 'SERVER_UNSUITABLE', /standby/],
    ['a low wal_level', { walLevel: 'replica' }, 'SERVER_UNSUITABLE', /wal_level is replica/],
    ['a user without the attribute', { mayReplicate: false }, 'PRIVILEGE', /app may not replicate/],
    ['no free slot', { usedSlots: 1 }, 'SERVER_UNSUITABLE', /all 1 replication slots/],
    ['no free sender', { usedWalSenders: 1 }, 'SERVER_UNSUITABLE', /all 1 WAL senders/],
    [
      "another database's slot",
      { slot: { ...GOOD.slot, exists: true, plugin: 'pgoutput', database: 'x' } },
      'SERVER_UNSUITABLE',
      /on database x/,
    ],
    [
      "another plugin's slot",
      { slot: { ...GOOD.slot, exists: true, plugin: 'wal2json', database: 'db' } },
      'SERVER_UNSUITABLE',
      /wal2json/,
    ],
    ['a physical slot', { slot: { ...GOOD.slot, exists: true } }, 'SERVER_UNSUITABLE', /physical/],
  ])('refuses %s', (_what, facts, code, message) => {
    const error = judgeServer({ ...GOOD, ...facts });
    expect(error?.code).toBe(code);
    expect(error?.message).toMatch(message);
    expect(error?.hint).toBeTruthy();
  });
});

describe('names', () => {
  it('takes only slot names that need no quotes', () => {
    for (const name of ['rivulet', 'r_1', 'a'.repeat(63)]) expect(() => checkSlotName(name)).not.toThrow();
    for (const name of ['', 'Rivulet', 'a-b', 'a"b', "a'b", 'a b', 'ä', 'a'.repeat(64)])
      expect(() => checkSlotName(name)).toThrow(/slot name/);
    expect(() => checkPublicationName('Any "name"')).not.toThrow();
    for (const name of ['', 'ä'.repeat(32), 'a\0b'])
      expect(() => checkPublicationName(name)).toThrow(/publication name/);
  });

  it('reads table names as SQL writes them', () => {
    expect(parseTableName('users')).toMatchObject({ schema: 'public', name: 'users' });
    expect(parseTableName(' app.Users ')).toMatchObject({ schema: 'app', name: 'Users' });
    expect(parseTableName('"a.b"."c ""d"""')).toMatchObject({ schema: 'a.b', name: 'c "d"' });
    for (const text of ['', 'a.b.c', 'a b', '"a', 'a;drop']) {
      if (text === 'a;drop') expect(parseTableName(text).name).toBe('a;drop');
      else expect(() => parseTableName(text)).toThrow(/not a table name/);
    }
  });
});
