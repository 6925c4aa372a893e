import type { Node } from 'libpg-query';
import {
  baseType,
  INTERVAL_FULL_PRECISION,
  isSameModifier,
  isSameType,
  PG_CATALOG,
  type TypeRef,
  typeKey,
  type UserType,
} from './types.ts';

export interface TypeChangeContext {
  readonly userTypes: ReadonlyMap<string, UserType>;
  /** `from>to`, of casts without a function: pg_cast.castmethod 'b'. */
  readonly binaryCasts: ReadonlySet<string>;
  /** Whether the session's time zone is UTC: then timestamp and timestamptz have the same bytes. */
  readonly isUtc: boolean;
  readonly resolveType: (node: Node) => TypeRef | null;
}

/**
 * Why ALTER COLUMN … TYPE rewrites the table, or null if it does not. As ATColumnChangeRequiresRewrite decides
 * (src/backend/commands/tablecmds.c): only if nothing but relabelling is left of the conversion, once the planner
 * has taken away length coercions that cannot change anything.
 */
export function rewriteReason(
  column: { readonly name: string; readonly type: TypeRef },
  to: TypeRef,
  using: Node | null,
  context: TypeChangeContext,
): string | null {
  const start =
    using === null
      ? { type: column.type, modifiers: column.type.modifiers }
      : evaluate(using, column, context);
  if (typeof start === 'string') return start;
  const end = coerce(start, to, context);
  return typeof end === 'string' ? end : null;
}

/** The type of an expression that is still the bare column, relabelled at most. */
interface Relabelled {
  readonly type: TypeRef;
  readonly modifiers: TypeRef['modifiers'];
}

function evaluate(
  node: Node,
  column: { readonly name: string; readonly type: TypeRef },
  context: TypeChangeContext,
): Relabelled | string {
  if ('ColumnRef' in node) {
    const last = node.ColumnRef.fields?.at(-1);
    const name = last !== undefined && 'String' in last ? last.String.sval : undefined;
    return name === column.name
      ? { type: column.type, modifiers: column.type.modifiers }
      : 'USING computes new values';
  }
  if ('CollateClause' in node && node.CollateClause.arg !== undefined)
    return evaluate(node.CollateClause.arg, column, context);
  if ('TypeCast' in node && node.TypeCast.arg !== undefined && node.TypeCast.typeName !== undefined) {
    const inner = evaluate(node.TypeCast.arg, column, context);
    const to = context.resolveType({ TypeName: node.TypeCast.typeName });
    return typeof inner === 'string' || to === null
      ? 'USING computes new values'
      : coerce(inner, to, context);
  }
  return 'USING computes new values';
}

function coerce(from: Relabelled, to: TypeRef, context: TypeChangeContext): Relabelled | string {
  const { userTypes } = context;
  if (isSameType(from.type, to) && userTypes.get(typeKey(to))?.base != null) return from;
  const source = baseType(from.type, userTypes);
  const target = baseType(to, userTypes);
  const isRelabelled = !isSameType(from.type, target);
  // A cast of its own loses what was known of the length.
  const modifiers = isRelabelled ? null : from.modifiers;
  if (!isSameType(source, target)) {
    const isInstant = isTimestampPair(source, target);
    if (isInstant && !context.isUtc) return 'the values are converted with the time zone';
    if (
      !isInstant &&
      (source.isArray || target.isArray || !context.binaryCasts.has(`${typeKey(source)}>${typeKey(target)}`))
    )
      return 'the values are converted';
  }
  if (!isLengthKept(target, modifiers)) return 'the values are fitted to the new length or precision';
  const domain = to.isArray ? undefined : userTypes.get(typeKey(to));
  if (domain?.base != null && domain.hasConstraints)
    return "the domain's constraints are checked by a rewrite";
  return { type: to, modifiers: target.modifiers };
}

function isTimestampPair(left: TypeRef, right: TypeRef): boolean {
  const names = [left, right].map((type) => (type.schema === PG_CATALOG && !type.isArray ? type.name : ''));
  return names.sort().join() === 'timestamp,timestamptz';
}

/** Whether the planner takes the length coercion away: the "support functions" of src/backend/utils/adt. */
function isLengthKept(target: TypeRef, before: TypeRef['modifiers']): boolean {
  const { modifiers: now, name } = target;
  if (now === null || isSameModifier(now, before)) return true;
  if (target.isArray) return false;
  switch (name) {
    case 'varchar':
    case 'varbit':
      return before !== null && now[0]! >= before[0]!;
    case 'numeric':
      return before !== null && now[1] === before[1] && now[0]! >= before[0]!;
    case 'timestamp':
    case 'timestamptz':
    case 'time':
    case 'timetz':
      return now[0] === 6 || (before !== null && now[0]! >= before[0]!);
    case 'interval':
      return isIntervalKept(now, before);
    default:
      return false;
  }
}

/** Fields by their bits in a typmod, from the least: src/include/utils/datetime.h. */
const LEAST_FIELDS: readonly (readonly [bit: number, rank: number])[] = [
  [1 << 12, 0], // SECOND
  [1 << 11, 1], // MINUTE
  [1 << 10, 2], // HOUR
  [1 << 3, 3], // DAY
  [1 << 1, 4], // MONTH
  [1 << 2, 5], // YEAR
];

function isIntervalKept(now: readonly number[], before: TypeRef['modifiers']): boolean {
  const leastField = (modifiers: TypeRef['modifiers']): number =>
    modifiers === null || modifiers[0] === 0x7fff
      ? 0
      : (LEAST_FIELDS.find(([bit]) => (modifiers[0]! & bit) !== 0)?.[1] ?? 0);
  const oldField = leastField(before);
  const oldDigits = before === null ? INTERVAL_FULL_PRECISION : before[1]!;
  const newDigits = now[1]!;
  return leastField(now) <= oldField && (oldField > 0 || newDigits >= 6 || newDigits >= oldDigits);
}

/** Casts without a function that every server has; a connected one is asked for all of them. */
export const BUILTIN_BINARY_CASTS: ReadonlySet<string> = new Set(
  [
    'text>varchar',
    'text>bpchar',
    'varchar>text',
    'varchar>bpchar',
    'bit>varbit',
    'varbit>bit',
    'cidr>inet',
    'xml>text',
    'xml>varchar',
    'xml>bpchar',
    'int4>oid',
    'oid>int4',
    'oid>regclass',
    'regclass>oid',
    'oid>regtype',
    'regtype>oid',
    'oid>regproc',
    'regproc>oid',
    'int4>regclass',
    'regclass>int4',
  ].map((pair) => {
    const [from, to] = pair.split('>');
    return `${PG_CATALOG}.${from}>${PG_CATALOG}.${to}`;
  }),
);
