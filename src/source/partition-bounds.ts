import type { Column, Relation, RowBound } from '../change/relation.ts';
import { valueAsBase64 } from '../change/value-mapping.ts';

/** A partition, at any depth, as sql/002_published_schema.sql tells of it. */
export interface Partition {
  readonly oid: number;
  readonly parent: number;
  /** The column of the parent's that it goes by; null: there is no one such column. */
  readonly column: string | null;
  /** What stands behind PARTITION OF. https://www.postgresql.org/docs/current/sql-createtable.html#SQL-CREATETABLE-PARMS-PARTITION-OF */
  readonly values: string;
}

const QUOTED = /^'((?:[^']|'')*)'$/;
/** What Postgres prints without quotes. Strings with a backslash in them begin with an E, and are left alone. */
const PLAIN = /^(\d+|true|false)$/;
const ITEM = /'(?:[^']|'')*'|[^\s,()]+/g;

/** Of base types, by OID, those whose values SQLite compares as Postgres does, as far as they look like this. */
const ORDERED: ReadonlyMap<number, RegExp> = new Map([
  ...[20, 21, 23].map((type): [number, RegExp] => [type, /^-?\d+$/]),
  [1082, /^\d{4}-\d\d-\d\d$/],
  [1114, /^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)?$/],
  [1184, /^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)?\+00$/],
  [2950, /^[-0-9a-f]{36}$/],
]);

/** And those that are the same where their text is. */
const EQUATED: ReadonlyMap<number, RegExp> = new Map([
  ...ORDERED,
  [16, /^(true|false)$/],
  [25, /^.*$/s],
  [1043, /^.*$/s],
]);

/** Types with values beyond all others (infinity, years BC), which only an end keeps apart. */
const UNBOUNDED: ReadonlySet<number> = new Set([1082, 1114, 1184]);

/** By heap, which rows it has, as far as the values tell that a file has. */
export function partitionBounds(
  partitions: readonly Partition[],
  columns: readonly Column[],
): Pick<Relation, 'bounds'> {
  const byOid = new Map(partitions.map((each) => [each.oid, each]));
  const boundsOf = ({ oid, parent }: Partition): readonly RowBound[] | null => {
    const own = rowBound(byOid.get(oid)!, columns);
    const above = byOid.get(parent);
    const others = above === undefined ? [] : boundsOf(above);
    return own === null || others === null ? null : [...others, own];
  };
  const bounds = partitions.flatMap((each): [number, readonly RowBound[]][] => {
    const found = boundsOf(each);
    return found === null ? [] : [[each.oid, found]];
  });
  return bounds.length === 0 ? {} : { bounds: Object.fromEntries(bounds) };
}

function rowBound({ column: name, values }: Partition, columns: readonly Column[]): RowBound | null {
  const column = columns.find((each) => each.name === name);
  if (column === undefined) return null;
  const { attnum } = column;
  const range = /^FOR VALUES FROM \((.*)\) TO \((.*)\)$/s.exec(values);
  if (range !== null) {
    const [from, to] = [rangeEnd(range[1]!, 'MINVALUE', column), rangeEnd(range[2]!, 'MAXVALUE', column)];
    return from === undefined || to === undefined ? null : { attnum, from, to };
  }
  const list = /^FOR VALUES IN \((.*)\)$/s.exec(values);
  if (list === null) return null;
  const items = list[1]!.match(ITEM) ?? [];
  const found = items.map((item) => (item === 'NULL' ? null : constant(item, column, EQUATED)));
  return found.includes(undefined) ? null : { attnum, in: found as (string | null)[] };
}

/** Null: there is none; undefined: it cannot be told. */
function rangeEnd(text: string, none: string, column: Column): string | null | undefined {
  if (text === none) return UNBOUNDED.has(typeOf(column)) ? undefined : null;
  return constant(text, column, ORDERED);
}

/** As a file has it; undefined: it cannot be told. */
function constant(item: string, column: Column, types: ReadonlyMap<number, RegExp>): string | undefined {
  const text = PLAIN.test(item) ? item : QUOTED.exec(item)?.[1]?.replaceAll("''", "'");
  if (text === undefined || types.get(typeOf(column))?.test(text) !== true) return undefined;
  return valueAsBase64(column.mapping, text);
}

function typeOf({ typeOid, baseTypeOid = typeOid }: Column): number {
  return baseTypeOid;
}
