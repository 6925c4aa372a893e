import { createHash } from 'node:crypto';
import type { Column, Relation } from '../change/relation.ts';

/** Rivulet's own tables and indexes; no table of the user's gets a name with this prefix. */
export const RESERVED_PREFIX = '_rivulet_';

/** SQLite folds the 26 ASCII letters and nothing else: two names that this makes equal are one name to it. */
export function foldName(name: string): string {
  return name.replace(/[A-Z]/g, (letter) => letter.toLowerCase());
}

/** Doubles the quotes: everything between them is the name. https://www.sqlite.org/lang_keywords.html */
export function quoteName(name: string): string {
  return `"${name.replaceAll('"', '""')}"`;
}

/** A name that has been given: `source` tells whether it still stands for the same Postgres name. */
export interface NameAssignment {
  readonly source: string;
  readonly sqliteName: string;
}

/**
 * Names of tables in SQLite, by OID: `users` for public.users, `s.t` for table t of another schema. Names that
 * SQLite reserves or cannot tell apart get a suffix that depends on the Postgres name alone. Whoever has a
 * name keeps it until its own Postgres name changes, so readers' queries go on working.
 *
 * @param existing names given before, of those tables of `relations` that had one
 * @param taken names of objects in the file that are not ours to rename (a user's own views and tables)
 */
export function assignTableNames(
  relations: readonly Relation[],
  existing: ReadonlyMap<number, NameAssignment> = new Map(),
  taken: Iterable<string> = [],
): Map<number, string> {
  return assign(
    relations.map((relation) => ({
      id: relation.oid,
      source: tableSource(relation),
      wanted: relation.schema === 'public' ? relation.name : `${relation.schema}.${relation.name}`,
    })),
    existing,
    taken,
    isReservedTableName,
  );
}

/** Identity of a table's Postgres name; a plain `schema.table` would make public."a.b" and a.b one. */
export function tableSource(relation: Pick<Relation, 'schema' | 'name'>): string {
  return JSON.stringify([relation.schema, relation.name]);
}

/** Names of a table's columns in SQLite, by attnum. */
export function assignColumnNames(
  columns: readonly Column[],
  existing: ReadonlyMap<number, NameAssignment> = new Map(),
): Map<number, string> {
  return assign(
    columns.map((column) => ({ id: column.attnum, source: column.name, wanted: column.name })),
    existing,
    [],
    (name) => foldName(name).startsWith(RESERVED_PREFIX),
  );
}

interface Candidate {
  readonly id: number;
  readonly source: string;
  readonly wanted: string;
}

function assign(
  candidates: readonly Candidate[],
  existing: ReadonlyMap<number, NameAssignment>,
  taken: Iterable<string>,
  isReserved: (name: string) => boolean,
): Map<number, string> {
  const names = new Map<number, string>();
  const used = new Set<string>();
  for (const name of taken) used.add(foldName(name));
  for (const { id, source } of candidates) {
    const before = existing.get(id);
    if (before?.source !== source) continue;
    names.set(id, before.sqliteName);
    used.add(foldName(before.sqliteName));
  }
  // By name, not by OID: a copy of the same schema made tomorrow gives the same names. Of two that collide,
  // the one that sorts first keeps the plain name.
  const open = candidates.filter(({ id }) => !names.has(id));
  open.sort((a, b) => (a.source < b.source ? -1 : a.source > b.source ? 1 : a.id - b.id));
  for (const { id, source, wanted } of open) {
    let name = wanted;
    for (let attempt = 0; used.has(foldName(name)) || isReserved(name); attempt++) {
      const suffix = createHash('sha256').update(`${attempt}:${source}`).digest('hex').slice(0, 8);
      // A prefix of SQLite's own would still be refused with any suffix behind it.
      name = `${isReserved(wanted) ? '_' : ''}${wanted}__${suffix}`;
    }
    names.set(id, name);
    used.add(foldName(name));
  }
  return names;
}

function isReservedTableName(name: string): boolean {
  const folded = foldName(name);
  return folded.startsWith('sqlite_') || folded.startsWith(RESERVED_PREFIX);
}
