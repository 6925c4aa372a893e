import type { Node, TypeName } from 'libpg-query';
import type { ScalarMapping, ValueMapping } from '../../../change/relation.ts';

/** A type as a column has it, by its name in pg_type. */
export interface TypeRef {
  readonly schema: string;
  readonly name: string;
  /** What stands in parentheses behind it, in one form: varchar [10], numeric [10,2], interval [fields, digits]. */
  readonly modifiers: readonly number[] | null;
  readonly isArray: boolean;
}

/** A type that is not built in. */
export interface UserType {
  readonly kind: 'domain' | 'enum' | 'other';
  /** Of a domain. */
  readonly base: TypeRef | null;
  /** NOT NULL or CHECK, its own or those of the domain that it is made of. */
  readonly hasConstraints: boolean;
  readonly hasDefault: boolean;
  /** Labels of an enum, attributes of a composite type: what values that nobody touched are printed by. */
  readonly parts: readonly string[];
  /** Types of a composite type's attributes. */
  readonly attributes: readonly TypeRef[];
}

export const PG_CATALOG = 'pg_catalog';

export function typeKey(type: Pick<TypeRef, 'schema' | 'name'>): string {
  return `${type.schema}.${type.name}`;
}

export function builtin(name: string, modifiers: readonly number[] | null = null): TypeRef {
  return { schema: PG_CATALOG, name, modifiers, isArray: false };
}

export function isSameType(left: TypeRef, right: TypeRef): boolean {
  return typeKey(left) === typeKey(right) && left.isArray === right.isArray;
}

export function isSameModifier(left: TypeRef['modifiers'], right: TypeRef['modifiers']): boolean {
  return JSON.stringify(left) === JSON.stringify(right);
}

/** Serial types are integers with a default. */
export const SERIALS: Readonly<Record<string, string>> = {
  serial: 'int4',
  serial4: 'int4',
  bigserial: 'int8',
  serial8: 'int8',
  smallserial: 'int2',
  serial2: 'int2',
};

const INTERVAL_FULL_RANGE = 0x7fff;
export const INTERVAL_FULL_PRECISION = 0xffff;

/** What the parser has of a type. `resolve` finds the schema of an unqualified name. */
export function typeFromNode(node: TypeName, resolve: (name: string) => string): TypeRef {
  const names = (node.names ?? []).map(stringOf);
  const name = names.at(-1) ?? '';
  const schema = names.length > 1 ? names.at(-2)! : resolve(name);
  const numbers = (node.typmods ?? []).map(integerOf);
  return { schema, name, modifiers: normalise(name, numbers), isArray: (node.arrayBounds ?? []).length > 0 };
}

/** pg_attribute.atttypmod: https://github.com/postgres/postgres/blob/master/src/include/utils/numeric.h and others. */
export function modifiersFromCatalog(
  name: string,
  typmod: number,
  version: number,
): readonly number[] | null {
  if (typmod < 0) return null;
  switch (name) {
    case 'varchar':
    case 'bpchar':
      return [typmod - 4];
    case 'numeric': {
      const bits = typmod - 4;
      // Negative scales, and with them eleven bits, came with 15.
      const scale = version >= 150_000 ? ((bits & 0x7ff) ^ 1024) - 1024 : bits & 0xffff;
      return [(bits >> 16) & 0xffff, scale];
    }
    case 'interval':
      return [(typmod >> 16) & INTERVAL_FULL_RANGE, typmod & 0xffff];
    default:
      return [typmod];
  }
}

function normalise(name: string, numbers: readonly number[]): readonly number[] | null {
  if (numbers.length === 0) return null;
  if (name === 'numeric') return [numbers[0]!, numbers[1] ?? 0];
  if (name === 'interval') return [numbers[0]!, numbers[1] ?? INTERVAL_FULL_PRECISION];
  return numbers;
}

const MAPPINGS: Readonly<Record<string, ScalarMapping>> = {
  bool: 'bool',
  bytea: 'bytea',
  int2: 'int',
  int4: 'int',
  int8: 'int',
  oid: 'int',
  json: 'json',
  jsonb: 'json',
  float4: 'float',
  float8: 'float',
  date: 'date',
  timestamp: 'timestamp',
  timestamptz: 'timestamptz',
  numeric: 'numeric',
};

/** As source/catalog.ts maps by OID; domains as what they are made of. */
export function mappingOf(type: TypeRef, userTypes: ReadonlyMap<string, UserType>): ValueMapping {
  const base = baseType(type, userTypes);
  const scalar = base.schema === PG_CATALOG ? (MAPPINGS[base.name] ?? 'text') : 'text';
  return base.isArray ? { array: scalar, delimiter: base.name === 'box' ? ';' : ',' } : scalar;
}

/** What a column's values are printed by, over all the user's types in it: see Column.typeParts. */
export function typeParts(type: TypeRef, userTypes: ReadonlyMap<string, UserType>): string[] {
  const found = userTypes.get(typeKey(type));
  if (found === undefined) return [];
  const inner = [...(found.base === null ? [] : [found.base]), ...found.attributes];
  return [...found.parts, ...inner.flatMap((each) => typeParts(each, userTypes))].sort();
}

/** Domains down to what they are made of. */
export function baseType(type: TypeRef, userTypes: ReadonlyMap<string, UserType>): TypeRef {
  const base = type.isArray ? null : (userTypes.get(typeKey(type))?.base ?? null);
  return base === null ? type : baseType(base, userTypes);
}

export function stringOf(node: Node): string {
  if ('String' in node) return node.String.sval ?? '';
  if ('A_Const' in node) return (node.A_Const as { sval?: { sval?: string } }).sval?.sval ?? '';
  return '';
}

function integerOf(node: Node): number {
  if ('A_Const' in node) return (node.A_Const as { ival?: { ival?: number } }).ival?.ival ?? 0;
  if ('Integer' in node) return node.Integer.ival ?? 0;
  return 0;
}

export function describeType(type: TypeRef): string {
  const schema = type.schema === PG_CATALOG || type.schema === 'public' ? '' : `${type.schema}.`;
  const modifiers =
    type.modifiers === null || type.name === 'interval' ? '' : `(${type.modifiers.join(',')})`;
  return `${schema}${PRETTY[type.name] ?? type.name}${modifiers}${type.isArray ? '[]' : ''}`;
}

const PRETTY: Readonly<Record<string, string>> = {
  int2: 'smallint',
  int4: 'integer',
  int8: 'bigint',
  bpchar: 'char',
  float4: 'real',
  float8: 'double precision',
  bool: 'boolean',
};
