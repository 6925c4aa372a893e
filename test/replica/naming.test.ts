import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  assignColumnNames,
  assignTableNames,
  foldName,
  quoteName,
  tableSource,
} from '../../src/replica/naming.ts';
import { testRelation } from '../helpers/frames.ts';

function relation(oid: number, schema: string, name: string) {
  return testRelation({ oid, schema, name, columns: [{ name: 'id' }] });
}

describe('table names', () => {
  test('public tables keep their name, others get their schema in front', () => {
    const names = assignTableNames([relation(1, 'public', 'users'), relation(2, 'shop', 'orders')]);
    expect(names.get(1)).toBe('users');
    expect(names.get(2)).toBe('shop.orders');
  });

  test('public."a.b" and a.b get different names, the same ones whatever the order', () => {
    const one = assignTableNames([relation(1, 'public', 'a.b'), relation(2, 'a', 'b')]);
    const two = assignTableNames([relation(2, 'a', 'b'), relation(1, 'public', 'a.b')]);
    expect(one).toEqual(two);
    expect(new Set([...one.values()]).size).toBe(2);
    expect(one.get(2)).toBe('a.b');
    expect(one.get(1)).toMatch(/^a\.b__[0-9a-f]{8}$/);
  });

  test('names that differ in ASCII case only are told apart; other case stays as it is', () => {
    const names = assignTableNames([
      relation(1, 'public', 'Users'),
      relation(2, 'public', 'users'),
      relation(3, 'public', 'Ä'),
      relation(4, 'public', 'ä'),
    ]);
    expect(names.get(1)).toBe('Users');
    expect(names.get(2)).toMatch(/^users__/);
    expect([names.get(3), names.get(4)]).toEqual(['Ä', 'ä']);
  });

  test('reserved prefixes are taken out of the way', () => {
    const names = assignTableNames([
      relation(1, 'public', 'SQLite_x'),
      relation(2, 'public', '_rivulet_table'),
    ]);
    expect(names.get(1)).toMatch(/^_SQLite_x__/);
    expect(names.get(2)).toMatch(/^__rivulet_table__/);
  });

  test('names given before are kept, until the table itself is renamed', () => {
    const users = relation(7, 'public', 'users');
    const existing = new Map([[7, { source: tableSource(users), sqliteName: 'users__12345678' }]]);
    expect(assignTableNames([users], existing).get(7)).toBe('users__12345678');
    expect(assignTableNames([relation(7, 'public', 'people')], existing).get(7)).toBe('people');
    // A newcomer does not push an owner off its name.
    const owner = new Map([
      [9, { source: tableSource(relation(9, 'public', 'users')), sqliteName: 'users' }],
    ]);
    const names = assignTableNames([relation(1, 'public', 'Users'), relation(9, 'public', 'users')], owner);
    expect(names.get(9)).toBe('users');
    expect(names.get(1)).toMatch(/^Users__/);
  });

  test("names of the readers' own objects are not taken", () => {
    expect(assignTableNames([relation(1, 'public', 'report')], new Map(), ['REPORT']).get(1)).toMatch(
      /^report__/,
    );
  });

  test('whatever the names, all are distinct to SQLite and none is reserved', () => {
    const name = fc.oneof(
      fc.constantFrom('a', 'A', 'a.b', 'sqlite_a', '_rivulet_a', 'a__', 'b'),
      fc.string({ minLength: 1 }),
    );
    fc.assert(
      fc.property(
        fc.uniqueArray(fc.tuple(fc.constantFrom('public', 'a', 'A', 'sqlite_'), name), {
          selector: (pair) => pair.join('\0'),
        }),
        (pairs) => {
          const relations = pairs.map(([schema, table], index) => relation(index + 1, schema, table));
          const names = [...assignTableNames(relations).values()].map(foldName);
          expect(new Set(names).size).toBe(relations.length);
          expect(names.filter((each) => each.startsWith('sqlite_') || each.startsWith('_rivulet_'))).toEqual(
            [],
          );
        },
      ),
    );
  });
});

test('columns that SQLite cannot tell apart', () => {
  const { columns } = testRelation({
    oid: 1,
    name: 't',
    columns: [{ name: 'Id' }, { name: 'id' }, { name: '_rivulet_placeholder' }],
  });
  const names = assignColumnNames(columns);
  expect(names.get(1)).toBe('Id');
  expect(names.get(2)).toMatch(/^id__/);
  expect(names.get(3)).toMatch(/^__rivulet_placeholder__/);
});

test('quotes are doubled', () => {
  expect(quoteName('a"b')).toBe('"a""b"');
});
