import {
  type Column,
  heapsOf,
  PUBLISHED_PART,
  type Relation,
  type RowMove,
  type SchemaChange,
} from '../change/relation.ts';
import type { SchemaMessage } from './catalog.ts';

export interface TouchedRows {
  /** Tables that have to be read again. */
  readonly reload: readonly number[];
  /** What is in the files already, in another table. */
  readonly moves: readonly RowMove[];
}

interface TouchOptions {
  /** Tables that the transaction has rewritten. */
  readonly rewritten: ReadonlySet<number>;
  /** Whether the files hold exactly the rows that the table has at this place. */
  readonly isWhole: (oid: number) => boolean;
  /**
   * Whether the heap had this file when the transaction began. One that a transaction made it also truncates in place: of a
   * partition nobody tells of that, then or later.
   */
  readonly isFromBefore: (heap: number, file: string) => boolean;
}

type Announcement = Pick<
  Extract<SchemaMessage, { kind: 'schema' }>,
  'created' | 'emptied' | 'exclusive' | 'isUnannounced' | 'missing' | 'touched'
>;

/** Of each pair the values print alike, whether they are of the one type or of the other: text and varchar, bit and varbit. */
const ALIKE: readonly (readonly [number, number])[] = [
  [25, 1043],
  [1560, 1562],
];

/**
 * What becomes of rows that a change touches and Postgres does not send. Those of partitions that come or go are in the
 * files. Tables that have to be read again: rewritten ones, those that come into the publication with rows in them, those
 * whose values print differently now (a renamed enum label, another type for the same bytes), those with columns that had
 * not been published, and columns added with a default of which the catalog does not tell what it prints as.
 */
export function touchedRows(
  known: ReadonlyMap<number, Relation>,
  change: SchemaChange,
  message: Announcement,
  options: TouchOptions,
): TouchedRows {
  const { rewritten, isWhole } = options;
  const emptied = change.changed.flatMap(({ oid, bounds = {} }) => {
    const before = isWhole(oid) ? (known.get(oid)?.bounds ?? {}) : {};
    // One that has been elsewhere meanwhile has left its rows to others.
    return Object.entries(before)
      .filter(([heap, within]) => JSON.stringify(bounds[Number(heap)]) === JSON.stringify(within))
      .map(([heap, within]) => ({ heap: Number(heap), move: { from: oid, to: null, within, columns: [] } }))
      .filter(({ heap }) => message.emptied.has(heap));
  });
  // VACUUM FULL and CLUSTER give a table another file too, and leave its rows as they are. A partition may have it from a
  // TRUNCATE, which is not sent.
  const hasNewRows = (table: number, heap: number): boolean =>
    (heap === PUBLISHED_PART || message.isUnannounced || rewritten.has(heap) || heap !== table) &&
    !emptied.some((each) => each.heap === heap && each.move.from === table);
  const reload = new Set(
    change.changed
      .filter((relation) => hasOtherValues(known.get(relation.oid), relation, message, hasNewRows))
      .map(({ oid }) => oid),
  );
  for (;;) {
    const canMove = (oid: number): boolean => !message.isUnannounced && !reload.has(oid) && isWhole(oid);
    const { moves, carried } = movesOf(known, change, { ...options, ...message, canMove });
    const isAccountedFor = (oid: number, heap: number): boolean =>
      message.created.has(heap) || carried.has(`${oid}:${heap}`);
    const further = change.changed.filter((relation) => {
      const [before, now] = [heapsOf(known.get(relation.oid)), heapsOf(relation)];
      const differing = [
        ...[...before.keys()].filter((heap) => !now.has(heap) && !carried.has(`${relation.oid}:${heap}`)),
        ...[...now.keys()].filter((heap) => !before.has(heap) && !isAccountedFor(relation.oid, heap)),
      ];
      return differing.length > 0 && !reload.has(relation.oid);
    });
    if (further.length === 0) {
      const deletions = emptied.map(({ move }) => move).filter(({ from }) => !reload.has(from));
      return { reload: [...reload], moves: [...moves, ...deletions] };
    }
    // What would be moved from or to these is not there.
    for (const { oid } of further) reload.add(oid);
  }
}

/** Whether rows that the table keeps are not what they were. `hasNewRows`: those of a heap that has another file. */
function hasOtherValues(
  before: Relation | undefined,
  now: Relation,
  message: Announcement,
  hasNewRows: (table: number, heap: number) => boolean,
): boolean {
  if (before === undefined) return false;
  const files = heapsOf(now);
  for (const [heap, file] of heapsOf(before))
    if (files.has(heap) && files.get(heap) !== file && hasNewRows(now.oid, heap)) return true;
  const had = new Map(before.columns.map((column) => [column.attnum, column]));
  const has = new Set(now.columns.map(({ attnum }) => attnum));
  // One that took the place of another, with its name and type, had rows before anybody knew.
  const isReplaced = (name: string): boolean =>
    message.isUnannounced && before.columns.some((column) => column.name === name && !has.has(column.attnum));
  const missing = message.missing.get(now.oid);
  return now.columns.some((column) => {
    const old = had.get(column.attnum);
    if (old === undefined)
      return (
        missing?.get(column.attnum) === null ||
        (before.hidden ?? []).includes(column.attnum) ||
        isReplaced(column.name)
      );
    return hasOtherMapping(old, column) || printsDifferently(old, column);
  });
}

function hasOtherMapping(left: Column, right: Column): boolean {
  return JSON.stringify(left.mapping) !== JSON.stringify(right.mapping);
}

/**
 * The same bytes may be a value of another type without a rewrite (cidr and inet, int4 and oid). And of the user's own
 * types: a label that was added is in no row yet; one that is gone was renamed, and attributes count each and in order.
 */
function printsDifferently(before: Column, now: Column): boolean {
  const { typeParts: had = [] } = before;
  const { typeParts: has = [] } = now;
  if (before.typeOid !== now.typeOid) {
    const types = [before.baseTypeOid ?? before.typeOid, now.baseTypeOid ?? now.typeOid];
    return types[0] !== types[1] && !ALIKE.some((pair) => types.every((type) => pair.includes(type)));
  }
  return (
    had.some((part) => !has.includes(part)) ||
    has.some((part) => part.startsWith('attribute') && !had.includes(part))
  );
}

interface Moves {
  readonly moves: readonly RowMove[];
  /** What they account for: `table:heap`. */
  readonly carried: ReadonlySet<string>;
}

/** Partitions that came with all rows of a table that is none any more, or went, with a table of their own or for good. */
function movesOf(
  known: ReadonlyMap<number, Relation>,
  { changed, dropped }: SchemaChange,
  options: Pick<TouchOptions, 'isFromBefore'> &
    Pick<Announcement, 'exclusive' | 'touched'> & { readonly canMove: (oid: number) => boolean },
): Moves {
  const { isFromBefore, exclusive, touched, canMove } = options;
  // What another transaction did, of which nobody told, was before, and others have written since.
  const isOfThis = (heap: number): boolean => touched?.has(heap) === true;
  const moves: RowMove[] = [];
  const carried = new Set<string>();
  const made = changed.filter(({ oid }) => !known.has(oid) && canMove(oid));
  const gone = dropped.flatMap((oid) => (canMove(oid) ? (known.get(oid) ?? []) : []));
  for (const root of changed) {
    const before = known.get(root.oid);
    if (before === undefined || !canMove(root.oid)) continue;
    const [had, has] = [heapsOf(before), heapsOf(root)];
    const left = [...had.keys()].filter((heap) => !has.has(heap));
    const joined = [...has.keys()].filter((heap) => !had.has(heap));
    // Which of them went first is not told: the newcomers may have the bounds of those that left.
    if (left.length > 0 && joined.length > 0) continue;
    for (const heap of left) {
      const within = before.bounds?.[heap];
      if (within === undefined || !isOfThis(heap)) continue;
      // Others that had hold of it may have written to it when it was half detached already, and it may have been truncated:
      // of neither anybody told.
      const isKnown = exclusive.has(root.oid) && exclusive.has(heap) && isFromBefore(heap, had.get(heap)!);
      const own = isKnown ? made.find((each) => heapsOf(each).get(heap) === had.get(heap)) : undefined;
      const columns = own === undefined ? null : sameColumns(before, own);
      const to = own === undefined || columns === null ? null : own.oid;
      moves.push({ from: root.oid, to, within, columns: columns ?? [] });
      carried.add(`${root.oid}:${heap}`);
      if (to !== null) carried.add(`${to}:${heap}`);
    }
    for (const table of gone) {
      const files = [...heapsOf(table)];
      const isWhole = files.every(
        ([heap, file]) =>
          joined.includes(heap) && has.get(heap) === file && isFromBefore(heap, file) && isOfThis(heap),
      );
      const columns = sameColumns(table, root);
      if (files.length === 0 || !isWhole || columns === null) continue;
      moves.push({ from: table.oid, to: root.oid, within: null, columns });
      for (const [heap] of files) carried.add(`${root.oid}:${heap}`);
    }
  }
  return { moves, carried };
}

/** The numbers of columns of the same name, where rows of the one are rows of the other; null: they are not. */
function sameColumns(from: Relation, to: Relation): RowMove['columns'] | null {
  if (to.columns.length === 0) return null;
  if (heapsOf(from).has(PUBLISHED_PART) || heapsOf(to).has(PUBLISHED_PART)) return null;
  const there = new Map(from.columns.map((column) => [column.name, column]));
  const columns = to.columns.map((column): readonly [number, number] | null => {
    const source = there.get(column.name);
    if (source === undefined || source.typeOid !== column.typeOid || hasOtherMapping(source, column))
      return null;
    return [source.attnum, column.attnum];
  });
  return columns.includes(null) ? null : (columns as RowMove['columns']);
}
