import { type Column, heapsOf, type Relation, type SchemaChange } from '../change/relation.ts';
import { isInSnapshot } from '../change/snapshot.ts';
import {
  columnDefaults,
  IDENTITIES,
  isSameRelation,
  readRereadRequest,
  readSchemaMessage,
  schemaChange,
} from './catalog.ts';
import type { KeyText } from './key-range.ts';
import { type FollowedPublication, judgePublication, type PublicationIdentity } from './publication.ts';
import type { RelationMessage } from './relation-message.ts';
import { touchedRows } from './touched-rows.ts';
import type { SchemaSource, TrackedChange } from './transaction-encoder.ts';

export interface SchemaTrackerOptions {
  readonly publication: string;
  /** Whether the server has the hooks: every schema change is then announced in the stream. */
  readonly isAnnounced: () => boolean;
  /** See readMessageKey(). */
  readonly messageKey: () => string;
  readonly onProblem: (message: string) => void;
}

/**
 * A table whose rows have to be read again, because a schema change touched them without sending them. Another
 * object is another reading, from the beginning.
 */
export interface DueReload {
  readonly oid: number;
  /** The transaction that made the change: what is read must contain it. */
  readonly xid: number;
  /** Rows up to this key have come, each piece in a snapshot of its own; null: none yet. */
  readUpTo: KeyText | null;
  /** Whether it has to be read in one snapshot: a row's key changed, and not all of its values were sent. */
  readonly isWhole: boolean;
}

/** Behind all numbers that a table's columns can have. */
const PASSING_ATTNUM = 10_000;

interface State {
  readonly relations: readonly Relation[];
  readonly reloads: readonly DueReload[];
  /** The last transaction that changed anything; null in the states of earlier versions, and before the first one. */
  readonly changedBy?: number | null;
  /** Null in the states of earlier versions. */
  readonly publication?: FollowedPublication | null;
}

/** Whether tables are being read again in a state that commit() gave. */
export function hasReloads(state: string): boolean {
  return (JSON.parse(state) as State).reloads.length > 0;
}

/**
 * The published schema at the stream's present place, moved along by the hooks' messages. What a transaction
 * did to it counts once the transaction is over: rollback() goes back to the last commit().
 */
export class SchemaTracker implements SchemaSource {
  readonly #options: SchemaTrackerOptions;
  #relations = new Map<number, Relation>();
  /** The state behind the last finished transaction that changed it. */
  #committed: string;
  /** See #committedHeaps; null: they have to be looked for. */
  #heaps: ReadonlyMap<number, string> | null = null;
  /** By OID. A table that changes once more before it has been read becomes another DueReload. */
  #reloads = new Map<number, DueReload>();
  /** What the hooks say that the open transaction has rewritten. */
  #rewritten = { xid: 0, oids: new Set<number>() };
  /** Tables that the stream describes but the publication does not hold: partitions, whose rows come as the root's. */
  readonly #ignored = new Set<number>();
  /** Tables that adopt() has just seen to. */
  readonly #lookedUp = new Set<number>();
  /** By table, the transaction that changed it last, and those before it of which that one, or the catalog, may know nothing. */
  readonly #changedBy = new Map<number, readonly number[]>();
  /** The same of those that may have changed any table, also one that nobody knows yet: of a type, or before the start. */
  #anyChangedBy: readonly number[] = [];
  #lastChangedBy: number | null = null;
  /** The transaction behind whose commit the catalog was read last, unless hooks have told of something since. */
  #refreshedBy: number | null = null;
  /** What the message that only the catalog can explain tells all the same: something was with these tables here. */
  #uncertain: ReadonlySet<number> = new Set();
  #publication: FollowedPublication | null = null;
  /** Tables that the latest message gave rows which are in the files: with them it is told that they come late. */
  #moved: { readonly xid: number; readonly to: ReadonlySet<number | null> } = { xid: 0, to: new Set() };
  /** Whether what files begin with has all rows of the schema's beginning. */
  #isCopied = false;
  /** Whether the latest message told that the publication was altered: then the state changes, which only goes with a change. */
  #isAltered = false;

  constructor(
    relations: readonly Relation[],
    options: SchemaTrackerOptions,
    publication: FollowedPublication | null = null,
  ) {
    this.#options = options;
    this.#committed = JSON.stringify({ relations, reloads: [], publication } satisfies State);
    this.rollback();
  }

  /** From what `committed` gave before a restart. */
  static restore(state: string, options: SchemaTrackerOptions): SchemaTracker {
    const { changedBy = null } = JSON.parse(state) as State;
    const tracker = new SchemaTracker([], options);
    tracker.#committed = state;
    tracker.rollback();
    tracker.copied();
    tracker.#lastChangedBy = changedBy;
    tracker.#anyChangedBy = tracker.#lastChangedBy === null ? [] : [tracker.#lastChangedBy];
    return tracker;
  }

  /** The initial copy is whole. Before, a table may turn out to be one that it could not read. */
  copied(): void {
    this.#isCopied = true;
  }

  get relations(): readonly Relation[] {
    return [...this.#relations.values()];
  }

  get reloads(): ReadonlyMap<number, DueReload> {
    return this.#reloads;
  }

  relation(oid: number): Relation | undefined {
    return this.#relations.get(oid);
  }

  /** See judgePublication(). */
  get publication(): FollowedPublication | null {
    return this.#publication;
  }

  /** What the state of an earlier version does not have. */
  follow({ oid, alteredBy }: FollowedPublication): void {
    this.#publication = { oid, alteredBy };
  }

  get committed(): string {
    return this.#committed;
  }

  commit(): string {
    const state: State = {
      relations: this.relations,
      reloads: [...this.#reloads.values()],
      changedBy: this.#lastChangedBy,
      publication: this.#publication,
    };
    this.#committed = JSON.stringify(state);
    this.#heaps = null;
    return this.#committed;
  }

  /** Files by heap, as the transactions before this one have left them. */
  get #committedHeaps(): ReadonlyMap<number, string> {
    this.#heaps ??= new Map(
      (JSON.parse(this.#committed) as State).relations.flatMap((each) => [...heapsOf(each)]),
    );
    return this.#heaps;
  }

  rollback(): void {
    this.#refreshedBy = null;
    const { relations, reloads, publication = null } = JSON.parse(this.#committed) as State;
    this.#publication = publication;
    this.#relations = new Map(relations.map((relation) => [relation.oid, relation]));
    this.#reloads = new Map(reloads.map((reload) => [reload.oid, reload]));
  }

  /** In the transaction that is open, the table has been read up to a key; null: all of it. */
  reloaded(oid: number, upTo: KeyText | null): void {
    if (upTo === null) this.#reloads.delete(oid);
    else this.#reloads.get(oid)!.readUpTo = upTo;
  }

  /** Tables that a request of rereadRequest() names, as far as they are still there. */
  reread(json: string, xid: number): SchemaChange | null {
    const request = readRereadRequest(json, this.#options.messageKey());
    if (request === null)
      this.#options.onProblem('a request to read tables again without the key is passed over');
    if (request?.publication !== this.#options.publication) return null;
    const isMoved = (oid: number): boolean => xid === this.#moved.xid && this.#moved.to.has(oid);
    const reloading = request.oids.flatMap((oid) => (isMoved(oid) ? [] : (this.#relations.get(oid) ?? [])));
    return reloading.length === 0 ? null : this.#readAgain(reloading, xid);
  }

  /** A row that is being read got another key, and its other values are nowhere in the stream. */
  losesValues(oid: number, xid: number): SchemaChange | null {
    const due = this.#reloads.get(oid);
    if (due === undefined || due.isWhole) return null;
    return this.#readAgain([this.#relations.get(oid)!], xid, true);
  }

  unread(oid: number, xid: number): SchemaChange | null {
    return this.#reloads.get(oid)?.xid === xid ? null : this.#readAgain([this.#relations.get(oid)!], xid);
  }

  match(message: RelationMessage): Relation | 'unknown' | 'ignored' {
    if (message.schema === 'rivulet') return 'ignored';
    // The server describes a table again once anything of it may have changed. Where nobody announces what, the
    // catalog is asked each time.
    const isLookedUp = this.#lookedUp.delete(message.oid);
    if (!this.#options.isAnnounced() && !isLookedUp) return 'unknown';
    if (this.#ignored.has(message.oid)) return 'ignored';
    const relation = this.#relations.get(message.oid);
    // At this place in the stream it is a partition, whatever the catalog says by now: its rows come as the root's.
    if (relation === undefined && this.#options.isAnnounced() && this.rootsOf(message.oid).length > 0)
      return 'ignored';
    if (relation === undefined) return 'unknown';
    if (!isLookedUp && (relation.schema !== message.schema || relation.name !== message.name))
      return 'unknown';
    return hasColumns(relation.columns, message) && hasIdentity(relation, message) ? relation : 'unknown';
  }

  message(json: string, xid: number): TrackedChange | null | 'unknown' {
    const message = readSchemaMessage(json, this.#options.messageKey());
    this.#uncertain = new Set();
    this.#isAltered = false;
    this.#moved = { xid, to: new Set() };
    if (message.kind === 'foreign') {
      // The catalog that was read has all of the transaction.
      if (this.#refreshedBy === xid) return null;
      this.#options.onProblem(
        "a schema message has not got this set-up's key: the catalog is read instead (after an update, run `rivulet setup`)",
      );
      return 'unknown';
    }
    if (message.kind === 'failed') {
      this.#options.onProblem(
        `a schema hook failed on the server (SQLSTATE ${message.sqlstate}): the catalog is read instead`,
      );
      this.#uncertain = message.touched ?? new Set();
      const { publishers } = message;
      if (publishers !== undefined) this.#followHere(publishers.get(this.#options.publication) ?? null, xid);
      return 'unknown';
    }
    if (message.kind === 'doubtful') {
      if (message.message.kind === 'schema') {
        if (message.message.publication === this.#options.publication) this.#judge(message.message.publisher);
        const change = schemaChange(this.#relations, message.message);
        if (change !== null) this.#uncertain = new Set(oidsOf(change));
      }
      this.#options.onProblem(
        'a schema change may have been rolled back to a savepoint of a large transaction: the catalog is read instead',
      );
      return 'unknown';
    }
    if (xid !== this.#rewritten.xid) this.#rewritten = { xid, oids: new Set() };
    if (message.kind === 'rewritten') {
      this.#rewritten.oids.add(message.oid);
      return null;
    }
    if (message.publication !== this.#options.publication) return null;
    this.#followHere(message.publisher, xid);
    const isSeen = (by: number): boolean =>
      by === xid || message.snapshot === null || isInSnapshot(message.snapshot, by);
    const seesAny = this.#anyChangedBy.every(isSeen);
    if (message.touched === null) this.#anyChangedBy = seesAny ? [xid] : withXid(this.#anyChangedBy, xid);
    this.#refreshedBy = null;
    const change = schemaChange(this.#relations, message);
    if (change === null) {
      // The catalog may have told of it before its turn came; who knows nothing of it must not undo it for that.
      for (const oid of message.touched ?? []) if (this.#relations.has(oid)) this.#changed(oid, xid);
      return this.#isAltered ? { changed: [], dropped: [] } : null;
    }
    const oids = oidsOf(change);
    if (!seesAny || !oids.every((oid) => this.#changedBy.get(oid)?.every(isSeen) ?? true)) {
      this.#options.onProblem(
        'a schema change was made without sight of another that committed before it: the catalog is read instead',
      );
      this.#uncertain = new Set(oids);
      return 'unknown';
    }
    for (const oid of oids) this.#changed(oid, xid);
    const before = new Map(this.#relations);
    const { reload, moves } = touchedRows(before, change, message, {
      rewritten: this.#rewritten.oids,
      isWhole: (oid) => this.#isCopied && !this.#reloads.has(oid) && !this.#ignored.has(oid),
      isFromBefore: (heap, file) => this.#committedHeaps.get(heap) === file,
    });
    this.#moved = { xid, to: new Set(moves.map(({ to }) => to)) };
    // Rows of theirs came before anything was known of them, and the catalog did not have them any more, or as partitions.
    const unsent = change.changed.filter(({ oid }) => this.#ignored.has(oid)).map(({ oid }) => oid);
    const taken = this.#take(change, [...reload, ...unsent], xid);
    const defaults = columnDefaults(before, taken.changed, message.missing);
    return {
      ...taken,
      ...(defaults.length === 0 ? {} : { defaults }),
      ...(moves.length === 0 ? {} : { moves }),
    };
  }

  /**
   * message() could not tell: takes what the catalog says now for the whole schema. The catalog may be ahead of the
   * stream, and back where the stream is, with other rows: so what the message tells something of counts as changed.
   */
  refresh(published: readonly Relation[], xid: number): SchemaChange | null {
    this.#refreshedBy = xid;
    const present = new Set(published.map((relation) => relation.oid));
    const changed = published.filter(
      (relation) =>
        this.#uncertain.has(relation.oid) || !isSameRelation(this.#relations.get(relation.oid), relation),
    );
    const dropped = [...this.#relations.keys()].filter((oid) => !present.has(oid));
    if (changed.length === 0 && dropped.length === 0)
      return this.#isAltered ? { changed: [], dropped: [] } : null;
    for (const oid of oidsOf({ changed, dropped })) this.#changedUnseen(oid, xid);
    // Nobody saw what happened to their rows.
    const oids = changed.map((relation) => relation.oid);
    return this.#take({ changed, dropped }, oids, xid);
  }

  /**
   * Rows come of a table that no hook announced: takes the catalog's word for that one. The catalog may be
   * ahead of the stream, so what the stream's own description says of the columns goes first. `isNew`: it was made by
   * this very transaction. Null: it is none that is mirrored.
   */
  adopt(
    message: RelationMessage,
    { published, isNew, xid }: { published: readonly Relation[]; isNew: boolean; xid: number },
  ): SchemaChange | null {
    const current = published.find((relation) => relation.oid === message.oid);
    const before = this.#relations.get(message.oid);
    this.#lookedUp.add(message.oid);
    this.#changedUnseen(message.oid, xid);
    const isAnnounced = this.#options.isAnnounced();
    const roots = isAnnounced ? [] : this.#rootsWithout(message.oid, published);
    const toReload = roots.map(({ oid }) => oid);
    if (current === undefined && (before === undefined || !isAnnounced)) {
      this.#ignored.add(message.oid);
      if (roots.length === 0 && before === undefined) return null;
      return this.#take(
        { changed: roots, dropped: before === undefined ? [] : [message.oid] },
        toReload,
        xid,
      );
    }
    const found = columnsAsDescribed(before, message) ?? columnsAsDescribed(current, message);
    const columns = (found ?? passingColumns(message)).map((column, index) => ({
      ...column,
      identity: message.identity !== 'f' && message.columns[index]!.identity,
    }));
    const latest = (current ?? before)!;
    // Within a transaction that was open while others renamed it, it may be described under its older name.
    const named = before !== undefined && hasSameName(before, latest) ? latest : message;
    const isKeyed = message.identity === 'd' && !latest.keyIsDeferrable;
    const relation: Relation = {
      ...latest,
      // The message that tells of a rewrite is still to come.
      storage: isAnnounced && before !== undefined ? before.storage : latest.storage,
      schema: named.schema,
      name: named.name,
      replicaIdentity: IDENTITIES[message.identity] ?? 'nothing',
      columns: isKeyed ? withKeyAsDescribed(columns) : withCertainKey(columns, before, current),
    };
    // A table that is being made is filled in the stream, and a name is only a name. Of any other change nobody
    // saw what it did to the rows; and a table that the catalog had dropped already may be back there.
    const isHarmless =
      before === undefined
        ? isAnnounced && isNew && found !== null
        : hasColumns(before.columns, message) && (isAnnounced || before.storage === relation.storage);
    if (!isHarmless) toReload.push(message.oid);
    else if (roots.length === 0 && isSameRelation(before, relation)) return null;
    return this.#take({ changed: [...roots, relation], dropped: [] }, toReload, xid);
  }

  /** Goes on with the publication as it is here, null: gone; undefined: that is not known. */
  #followHere(publisher: PublicationIdentity | null | undefined, xid: number): void {
    this.#judge(publisher);
    // By this transaction, that is, or a part of it: what it sees of others is older than what they have told.
    this.#isAltered =
      publisher != null && publisher.alteredBy >= xid && publisher.alteredBy !== this.#publication?.alteredBy;
    if (this.#isAltered) this.follow(publisher!);
  }

  /** Throws where changes of the publication's tables are missing from here on. */
  #judge(publisher: PublicationIdentity | null | undefined): void {
    if (publisher === undefined) return;
    const { publication } = this.#options;
    const followed = this.#publication === null ? null : { oid: this.#publication.oid, alteredBy: null };
    const gap = judgePublication(publication, followed, publisher);
    if (gap !== null) throw gap;
  }

  /** By a transaction that knew of all changes before. */
  #changed(oid: number, xid: number): void {
    this.#changedBy.set(oid, [xid]);
    this.#lastChangedBy = xid;
  }

  /** The catalog said so, not the transaction: what it tells next may still be without sight of those before. */
  #changedUnseen(oid: number, xid: number): void {
    this.#changedBy.set(oid, withXid(this.#changedBy.get(oid) ?? [], xid));
    this.#lastChangedBy = xid;
  }

  /** The partition has another file, with the rows that it had. */
  moved(root: number, heap: number, file: string): void {
    const relation = this.#relations.get(root);
    if (relation === undefined) return;
    const storage = [...heapsOf(relation)].map(([each, its]) => `${each}:${each === heap ? file : its}`);
    this.#relations.set(root, { ...relation, storage: storage.join(' ') });
  }

  /** Partitioned tables that are known to hold this heap. */
  rootsOf(heap: number): readonly number[] {
    return this.relations.filter((relation) => holds(relation, heap)).map((relation) => relation.oid);
  }

  /** Partitioned tables that this heap has joined or left, with all its rows, of which nobody told. */
  #rootsWithout(heap: number, published: readonly Relation[]): readonly Relation[] {
    return published.flatMap((current) => {
      const known = this.#relations.get(current.oid);
      if (known === undefined || holds(known, heap) === holds(current, heap)) return [];
      // The columns stay those of the stream: the catalog may be ahead of it.
      return [{ ...known, storage: current.storage }];
    });
  }

  /** The change by which these tables are read from their beginning. */
  #readAgain(reloading: readonly Relation[], xid: number, isWhole = false): SchemaChange {
    for (const { oid } of reloading) this.#reloads.set(oid, { oid, xid, readUpTo: null, isWhole });
    return { changed: [], dropped: [], reloading };
  }

  /** The change as followers are to make it: what has to be read again keeps its shape until then. */
  #take({ changed, dropped }: SchemaChange, toReload: readonly number[], xid: number): SchemaChange {
    for (const relation of changed) {
      this.#relations.set(relation.oid, relation);
      this.#ignored.delete(relation.oid);
    }
    for (const oid of dropped) {
      this.#relations.delete(oid);
      this.#reloads.delete(oid);
    }
    // A table that is being read already begins again with any change.
    const isReloading = ({ oid }: Relation): boolean => toReload.includes(oid) || this.#reloads.has(oid);
    const reloading = changed.filter(isReloading);
    this.#readAgain(reloading, xid);
    const live = changed.filter((relation) => !isReloading(relation));
    return reloading.length === 0 ? { changed, dropped } : { changed: live, dropped, reloading };
  }
}

function holds(relation: Relation, heap: number): boolean {
  return relation.oid !== heap && heapsOf(relation).has(heap);
}

function withXid(xids: readonly number[], xid: number): readonly number[] {
  return xids.includes(xid) ? xids : [...xids, xid];
}

function hasSameName(left: Relation, right: Relation): boolean {
  return left.schema === right.schema && left.name === right.name;
}

function oidsOf({ changed, dropped }: SchemaChange): readonly number[] {
  return [...changed.map((relation) => relation.oid), ...dropped];
}

/** Under default identity the key is what old keys come with; the catalog may have another one already. */
function withKeyAsDescribed(columns: readonly Column[]): readonly Column[] {
  if (columns.every((column) => column.identity === (column.keyOrdinal !== null))) return columns;
  let ordinal = 0;
  return columns.map((column) => ({ ...column, keyOrdinal: column.identity ? ++ordinal : null }));
}

/** Nothing in the stream tells of a key that old rows do not come with: it counts where it has not changed. */
function withCertainKey(
  columns: readonly Column[],
  before: Relation | undefined,
  current: Relation | undefined,
): readonly Column[] {
  const key = (relation: Relation | undefined): string =>
    JSON.stringify(
      relation?.columns.flatMap(({ attnum, keyOrdinal }) =>
        keyOrdinal === null ? [] : [[attnum, keyOrdinal]],
      ),
    );
  if (before === undefined || current === undefined || key(before) === key(current)) return columns;
  return columns.map((column) => ({ ...column, keyOrdinal: null }));
}

/** Whether rows that come under this description have these columns, and no others. */
export function hasColumns(columns: readonly Column[], message: RelationMessage): boolean {
  return (
    columns.length === message.columns.length &&
    columns.every((column, index) => isAs(column, message.columns[index]!))
  );
}

/** Whether old keys will come with the columns that the relation says. */
function hasIdentity({ replicaIdentity, columns }: Relation, message: RelationMessage): boolean {
  if (IDENTITIES[message.identity] !== replicaIdentity) return false;
  // Under full identity whole rows come.
  return (
    message.identity === 'f' ||
    columns.every(({ identity }, index) => identity === message.columns[index]!.identity)
  );
}

function isAs(column: Column, described: RelationMessage['columns'][number]): boolean {
  return (
    column.name === described.name &&
    column.typeOid === described.typeOid &&
    column.typeModifier === described.typeModifier
  );
}

/** The described columns among the relation's, in their order; null if it does not have them all like that. */
function columnsAsDescribed(
  relation: Relation | undefined,
  message: RelationMessage,
): readonly Column[] | null {
  // A description has no numbers: it names the columns by rising ones, of which the catalog may have more by now.
  const columns = relation?.columns.filter((column) =>
    message.columns.some((described) => isAs(column, described)),
  );
  return columns !== undefined && hasColumns(columns, message) ? columns : null;
}

/** Columns that changed once more before anybody could look at them: they only count until the table is read again. */
function passingColumns(message: RelationMessage): readonly Column[] {
  return message.columns.map(({ name, typeOid, typeModifier, identity }, index) => ({
    attnum: PASSING_ATTNUM + index,
    name,
    typeName: 'text',
    typeOid,
    typeModifier,
    mapping: 'text',
    notNull: false,
    keyOrdinal: null,
    identity,
  }));
}
