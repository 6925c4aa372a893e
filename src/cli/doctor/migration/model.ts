import type { RangeVar, TypeName } from 'libpg-query';
import type { Column, Relation } from '../../../change/relation.ts';
import { IDENTITIES, type SchemaMessage } from '../../../source/catalog.ts';
import { type Partition, partitionBounds } from '../../../source/partition-bounds.ts';
import type { Catalog, CatalogState, ModelColumn, ModelTable } from './catalog-state.ts';
import {
  baseType,
  describeType,
  isSameType,
  mappingOf,
  PG_CATALOG,
  type TypeRef,
  typeFromNode,
  typeKey,
  typeParts,
} from './types.ts';

type SchemaAnnouncement = Extract<SchemaMessage, { kind: 'schema' }>;

/** OIDs of what the migration makes: beyond those of any server. */
const FIRST_NEW_ID = 5_000_000_000;

/** Of types that the judging code knows by these. */
const TYPE_OIDS: Readonly<Record<string, number>> = {
  'pg_catalog.bool': 16,
  'pg_catalog.int8': 20,
  'pg_catalog.int2': 21,
  'pg_catalog.int4': 23,
  'pg_catalog.text': 25,
  'pg_catalog.varchar': 1043,
  'pg_catalog.date': 1082,
  'pg_catalog.timestamp': 1114,
  'pg_catalog.timestamptz': 1184,
  'pg_catalog.bit': 1560,
  'pg_catalog.varbit': 1562,
  'pg_catalog.uuid': 2950,
};

/** Beyond the OIDs of built-in types. */
const FIRST_TYPE_ID = 100_000;

/** The catalog as the statements so far have left it. */
export class Model {
  readonly catalog: Catalog;
  state: CatalogState;
  #nextId = FIRST_NEW_ID;
  readonly #typeIds = new Map<string, number>();
  readonly #savepoints: { readonly name: string; readonly state: CatalogState }[] = [];
  /** Counts transactions; statements outside of BEGIN … COMMIT have one each. */
  transaction = 1;
  isInTransaction = false;
  /** Files by table, as the transaction found them. */
  #files: ReadonlyMap<number, string> = new Map();

  constructor(catalog: Catalog) {
    this.catalog = catalog;
    this.state = catalog.state;
    this.#noteFiles();
    for (const relation of this.published().relations) this.state.known.set(relation.oid, relation);
  }

  newId(): number {
    return this.#nextId++;
  }

  // ---- transactions

  begin(): void {
    this.isInTransaction = true;
    this.savepoint('');
  }

  savepoint(name: string): void {
    this.#savepoints.push({ name, state: structuredClone(this.state) });
  }

  /** To a savepoint, or (without a name) to the beginning; false if there is none. */
  rollback(name: string | null): boolean {
    const index = name === null ? 0 : this.#savepoints.findLastIndex((each) => each.name === name);
    const savepoint = this.#savepoints[index];
    if (savepoint === undefined) return false;
    this.#savepoints.length = name === null ? 0 : index + 1;
    this.state = name === null ? savepoint.state : structuredClone(savepoint.state);
    if (name === null) this.#endTransaction();
    return true;
  }

  commit(): void {
    this.#savepoints.length = 0;
    this.#endTransaction();
  }

  /** After a statement that stands by itself. */
  endStatement(): void {
    if (this.isInTransaction) return;
    this.transaction++;
    this.state.rewritten.clear();
    this.#noteFiles();
  }

  /** Whether the table had this file when the transaction began. */
  isFromBefore(id: number, file: string): boolean {
    return this.#files.get(id) === file;
  }

  #noteFiles(): void {
    this.#files = new Map([...this.state.tables.values()].map(({ id, file }) => [id, String(file)]));
  }

  #endTransaction(): void {
    this.isInTransaction = false;
    this.endStatement();
  }

  // ---- finding

  /** Null if there is none. Without a server a table that is only mentioned is guessed to be an ordinary one. */
  find(name: RangeVar | undefined): ModelTable | null {
    if (name?.relname === undefined) return null;
    const found = this.lookUp(name.schemaname ?? null, name.relname);
    if (found !== null || this.catalog.isComplete) return found;
    const guess = this.add(
      { schema: name.schemaname ?? this.creationSchema(), name: name.relname, kind: 'table' },
      true,
    );
    const relation = this.published().relations.find(({ oid }) => oid === guess.id);
    if (relation !== undefined) this.state.known.set(guess.id, relation);
    return guess;
  }

  lookUp(schema: string | null, name: string): ModelTable | null {
    const tables = [...this.state.tables.values()];
    for (const each of schema === null ? this.state.searchPath : [schema]) {
      const found = tables.find((table) => table.schema === each && table.name === name);
      if (found !== undefined) return found;
    }
    return null;
  }

  findIndex(
    schema: string | null,
    name: string,
  ): { table: ModelTable; index: ModelTable['indexes'][number] } | null {
    for (const table of this.state.tables.values()) {
      if (schema !== null ? table.schema !== schema : !this.state.searchPath.includes(table.schema)) continue;
      const index = table.indexes.find((each) => each.name === name);
      if (index !== undefined) return { table, index };
    }
    return null;
  }

  creationSchema(): string {
    return this.state.searchPath.find((schema) => this.state.schemas.has(schema)) ?? 'public';
  }

  add(
    table: Pick<ModelTable, 'schema' | 'name' | 'kind'> & Partial<ModelTable>,
    isGuess = false,
  ): ModelTable {
    const id = this.newId();
    const made: ModelTable = {
      id,
      persistence: 'p',
      columns: [],
      hasKnownColumns: !isGuess,
      partitionOf: null,
      partitionValues: null,
      partitionKey: null,
      inherits: [],
      file: isGuess ? this.newId() : id,
      madeIn: isGuess ? null : this.transaction,
      rows: isGuess ? null : 0,
      key: null,
      identity: 'd',
      identityIndex: null,
      indexes: [],
      sentAs: null,
      ...table,
    };
    this.state.tables.set(id, made);
    return made;
  }

  /** The table, and below it partitions and, if asked for, tables that inherit from it. */
  family(table: ModelTable, withInheritance = true): ModelTable[] {
    const members = [table];
    for (const member of members) {
      for (const other of this.state.tables.values()) {
        const isChild =
          other.partitionOf === member.id || (withInheritance && other.inherits.includes(member.id));
        if (isChild && !members.includes(other)) members.push(other);
      }
    }
    return members;
  }

  /** The table itself and the partitioned tables above it. */
  ancestors(table: ModelTable): ModelTable[] {
    const line = [table];
    for (let at = table; at.partitionOf !== null; ) {
      const parent = this.state.tables.get(at.partitionOf);
      if (parent === undefined) break;
      line.push(parent);
      at = parent;
    }
    return line;
  }

  /** Estimated rows of a table with its partitions; null if nobody knows. */
  rowsOf(table: ModelTable): number | null {
    const leaves = this.family(table, false).filter((member) => member.kind === 'table');
    return leaves.some(({ rows }) => rows === null) ? null : leaves.reduce((sum, { rows }) => sum + rows!, 0);
  }

  // ---- types

  resolveType(node: TypeName | undefined): TypeRef | null {
    if (node === undefined) return null;
    return typeFromNode(node, (name) => {
      const path = [PG_CATALOG, ...this.state.searchPath];
      return path.find((schema) => this.state.types.has(typeKey({ schema, name }))) ?? PG_CATALOG;
    });
  }

  /** Columns of such a type, in whatever way it is used. */
  tablesWithType(key: string): ModelTable[] {
    const uses = (type: TypeRef): boolean => {
      if (typeKey(type) === key) return true;
      const base = this.state.types.get(typeKey(type))?.base;
      return base != null && uses(base);
    };
    return [...this.state.tables.values()].filter((table) =>
      table.columns.some((column) => uses(column.type)),
    );
  }

  // ---- what is published

  /** The mirrored table that this one's rows go to: itself, its partitioned table, or null. */
  mirrorOf(table: ModelTable): ModelTable | null {
    const { publication } = this.state;
    if (publication === null || table.persistence !== 'p') return null;
    if (table.kind !== 'table' && table.kind !== 'partitioned') return null;
    const line = this.ancestors(table).filter(
      (each) => each.schema !== 'rivulet' && each.persistence === 'p',
    );
    const published = line.filter(
      (each) =>
        publication.allTables || publication.tables.has(each.id) || publication.schemas.has(each.schema),
    );
    if (published.length === 0 || line.some((each) => publication.leftOut.has(each.id))) return null;
    if (!publication.viaRoot) return table.kind === 'table' ? table : null;
    return published.at(-1)!;
  }

  /** What the subscriber gets, in the shape that the hooks announce it in. */
  published(): Pick<SchemaAnnouncement, 'relations' | 'created' | 'missing'> {
    const relations: Relation[] = [];
    const created = new Set<number>();
    const missing = new Map<number, Map<number, string | null>>();
    for (const table of this.state.tables.values()) {
      if (this.mirrorOf(table) !== table) continue;
      const columns = this.publishedColumns(table);
      if (columns.length === 0 && table.hasKnownColumns) continue;
      const heaps = this.family(table, false).filter((each) => each.kind === 'table');
      for (const heap of heaps) {
        const isWhole = heap.sentAs === null || heap.sentAs === table.id;
        if (heap.madeIn === this.transaction && heap.file === heap.id && isWhole) created.add(heap.id);
      }
      const isMissing = columns.filter((column) => column.missing !== 'no');
      missing.set(
        table.id,
        new Map(isMissing.map((column) => [column.attnum, column.missing === 'told' ? '' : null])),
      );
      const described = columns.map((column) => this.#column(column, table));
      relations.push({
        oid: table.id,
        schema: table.schema,
        name: table.name,
        replicaIdentity: IDENTITIES[table.identity] ?? 'nothing',
        keyIsDeferrable: table.key?.isDeferrable ?? false,
        storage: [
          ...(this.state.publication?.parts.has(table.id)
            ? [`0:${this.state.publication.parts.get(table.id)}`]
            : []),
          ...heaps.map((heap) => `${heap.id}:${heap.file}`),
        ].join(' '),
        ...partitionBounds(this.#partitions(table), described),
        columns: described,
        hidden: table.columns.filter((column) => !columns.includes(column)).map(({ attnum }) => attnum),
        indexes: table.indexes
          .filter(({ isExpressible }) => isExpressible)
          .map(({ id, name, isUnique }) => ({ oid: id, name, unique: isUnique, columns: [] })),
      });
    }
    return { relations, created, missing };
  }

  #partitions(root: ModelTable): Partition[] {
    return this.family(root, false).flatMap(({ id, partitionOf, partitionValues }) =>
      id === root.id || partitionOf === null || partitionValues === null
        ? []
        : {
            oid: id,
            parent: partitionOf,
            column: this.state.tables.get(partitionOf)?.partitionKey ?? null,
            values: partitionValues,
          },
    );
  }

  #column({ attnum, name, type }: ModelColumn, table: ModelTable): Column {
    const { types } = this.state;
    const parts = typeParts(type, types);
    const base = baseType(type, types);
    return {
      attnum,
      name,
      typeName: describeType(type),
      typeOid: this.#typeId(type),
      ...(isSameType(base, type) ? {} : { baseTypeOid: this.#typeId(base) }),
      typeModifier: 0,
      mapping: mappingOf(type, types),
      ...(parts.length === 0 ? {} : { typeParts: parts }),
      notNull: false,
      keyOrdinal: keyOrdinal(table, name),
      identity: false,
    };
  }

  /** The type's OID, or what stands for it: the same type has the same one. */
  #typeId(type: TypeRef): number {
    const key = `${typeKey(type)}${type.isArray ? '[]' : ''}`;
    const id = TYPE_OIDS[key] ?? this.#typeIds.get(key) ?? FIRST_TYPE_ID + this.#typeIds.size;
    this.#typeIds.set(key, id);
    return id;
  }

  /** A renamed type is the same type. */
  renameType(from: string, to: string): void {
    for (const suffix of ['', '[]']) {
      const id = this.#typeIds.get(from + suffix);
      if (id !== undefined) this.#typeIds.set(to + suffix, id);
    }
  }

  publishedColumns(table: ModelTable): ModelColumn[] {
    const { publication } = this.state;
    const list = publication?.columnLists.get(table.id);
    // Generated columns are sent from 18 on, stored ones only, and where a list names them in any case.
    const sendsGenerated =
      this.catalog.version >= 180_000 && (publication?.sendsGenerated === true || list !== undefined);
    const isSent = ({ generated }: ModelColumn): boolean =>
      generated === '' || (generated === 's' && sendsGenerated);
    return table.columns.filter(
      (column) => isSent(column) && (list === undefined || list.includes(column.name)),
    );
  }

  /** Whether Postgres takes UPDATE and DELETE of the table while it is published. */
  hasUsableIdentity(table: ModelTable): boolean {
    if (!table.hasKnownColumns) return true;
    switch (table.identity) {
      case 'f':
        return !table.columns.some(({ generated }) => generated === 'v');
      case 'd':
        return table.key !== null && !table.key.isDeferrable;
      case 'i':
        return (
          table.indexes.some(({ name }) => name === table.identityIndex) ||
          table.key?.name === table.identityIndex
        );
      default:
        return false;
    }
  }
}

function keyOrdinal(table: ModelTable, column: string): number | null {
  const index = table.key?.columns.indexOf(column) ?? -1;
  return index < 0 ? null : index + 1;
}
