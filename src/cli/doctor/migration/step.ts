import type { Node, RangeVar } from 'libpg-query';
import { schemaChange } from '../../../source/catalog.ts';
import { touchedRows } from '../../../source/touched-rows.ts';
import type { ModelPublication, ModelTable } from './catalog-state.ts';
import type { Consequence, Effect } from './effects.ts';
import type { Model } from './model.ts';

/** One statement on its way through the model: what it does to the catalog, and what that does to the replicas. */
export class Step {
  readonly model: Model;
  readonly consequences: Consequence[] = [];
  /** Tables that it locks against schema changes, as sql/004_announce.sql finds them. */
  readonly touched = new Set<number>();
  isAllTouched = false;
  /** Others go on with its tables meanwhile. */
  isConcurrent = false;
  #isSchemaChange = false;
  readonly #reasons = new Map<number, Set<string>>();

  constructor(model: Model) {
    this.model = model;
  }

  add(effect: Effect, says: string, table?: ModelTable, rows?: number | null): void {
    this.consequences.push({
      effect,
      says,
      ...(table === undefined ? {} : { table: label(table) }),
      ...(rows === undefined ? {} : { rows }),
    });
  }

  /** The table that a statement names; says so and gives null where there is none. */
  find(name: RangeVar | undefined, missingOk = false): ModelTable | null {
    const table = this.model.find(name);
    if (table !== null || name === undefined) return table;
    const text = [name.schemaname, name.relname].filter((part) => part !== undefined).join('.');
    if (missingOk) this.add('none', `${text} does not exist`);
    else this.add('refused', `${text} does not exist`);
    return null;
  }

  /** A change of schema that the hooks announce, and the tables that it locks. */
  change(...tables: readonly ModelTable[]): void {
    this.#isSchemaChange = true;
    this.lock(...tables);
  }

  changeAll(): void {
    this.#isSchemaChange = true;
    this.isAllTouched = true;
  }

  lock(...tables: readonly ModelTable[]): void {
    for (const table of tables) for (const each of this.model.ancestors(table)) this.touched.add(each.id);
  }

  /** Why the rows of the table are read again, should it come to that. */
  because(table: ModelTable, reason: string): void {
    const id = (this.model.mirrorOf(table) ?? table).id;
    this.#reasons.set(id, (this.#reasons.get(id) ?? new Set()).add(reason));
  }

  /** Postgres writes the rows anew, into another file, and nothing of it into the stream. */
  rewrite(table: ModelTable, reason: string): void {
    if (table.kind !== 'table') return;
    table.file = this.model.newId();
    for (const column of table.columns) column.missing = 'no';
    this.model.state.rewritten.add(table.id);
    this.because(table, reason);
  }

  /**
   * Compares what is published now with what the replicator knows, by the very code with which it does so itself.
   * `touched`: of the whole transaction so far. Without event triggers all that differs is found in the catalog.
   */
  settle(touched: ReadonlySet<number>): void {
    const { state } = this.model;
    const isUnannounced = !state.isAnnounced;
    if (!this.#isSchemaChange && !isUnannounced) return;
    this.#keepIdentities(touched);
    const message = {
      kind: 'schema' as const,
      publication: '',
      command: '',
      touched: this.isAllTouched || isUnannounced ? null : touched,
      isUnannounced,
      emptied: new Set<number>(),
      exclusive: this.isConcurrent ? new Set<number>() : touched,
      publisher: undefined,
      snapshot: null,
      ...this.model.published(),
    };
    const change = schemaChange(state.known, message);
    if (change === null) return;
    const { rewritten } = state;
    const { reload } = touchedRows(state.known, change, message, {
      rewritten,
      isWhole: () => true,
      isFromBefore: (heap, file) => this.model.isFromBefore(heap, file),
    });
    const reloads = new Set(reload);
    for (const relation of change.changed) {
      const before = state.known.get(relation.oid);
      const table = state.tables.get(relation.oid)!;
      if (reloads.has(relation.oid)) this.#backfill(table);
      else if (before === undefined) this.add('live', 'appears in the replicas', table);
      else this.#live(table, before, relation);
      state.known.set(relation.oid, relation);
    }
    for (const oid of change.dropped) {
      const { schema, name } = state.known.get(oid)!;
      this.consequences.push({
        effect: 'leaves',
        says: 'leaves the replicas',
        table: label({ schema, name }),
      });
      state.known.delete(oid);
    }
  }

  /** Rows change without a word in the stream, which the replicator finds in the catalog by itself. */
  addUnsent(table: ModelTable, why: string): void {
    this.consequences.push({
      effect: 'backfill',
      says: 'is read again',
      table: label(table),
      rows: this.model.rowsOf(table),
      why,
    });
    const relation = this.model.published().relations.find(({ oid }) => oid === table.id);
    if (relation !== undefined) this.model.state.known.set(table.id, relation);
  }

  #backfill(table: ModelTable): void {
    const reasons = [...(this.#reasons.get(table.id) ?? [])];
    this.consequences.push({
      effect: 'backfill',
      says: 'is read again',
      table: label(table),
      rows: this.model.rowsOf(table),
      why:
        reasons.length > 0
          ? reasons.join('; ')
          : 'its rows are in another file, which without event triggers looks like a rewrite',
    });
  }

  #live(
    table: ModelTable,
    before: { name: string; schema: string; columns: readonly Keyed[] },
    now: { columns: readonly Keyed[] },
  ): void {
    const key = (columns: readonly Keyed[]): string =>
      JSON.stringify(
        columns
          .filter(({ keyOrdinal }) => keyOrdinal !== null)
          .map(({ attnum, keyOrdinal }) => [attnum, keyOrdinal]),
      );
    if (before.name !== table.name || before.schema !== table.schema)
      this.add('live', `is ${label(table)} in the replicas from then on`, table);
    else if (key(before.columns) !== key(now.columns))
      this.add(
        'live',
        'its key changes: each replica rebuilds the table within its own file',
        table,
        this.model.rowsOf(table),
      );
    else this.add('live', 'changes in place', table);
  }

  /** What the hooks do about tables that lost their replica identity, and what happens without them. */
  #keepIdentities(touched: ReadonlySet<number>): void {
    const { model } = this;
    const { publication } = model.state;
    for (const table of model.state.tables.values()) {
      if (!touched.has(table.id) && !this.isAllTouched) continue;
      if (model.hasUsableIdentity(table)) publication?.leftOut.delete(table.id);
      if (model.mirrorOf(table) === null || model.hasUsableIdentity(table)) continue;
      const before = table.identity;
      if (model.state.isAnnounced) {
        table.identity = 'f';
        if (model.hasUsableIdentity(table)) {
          this.add(
            'live',
            'gets REPLICA IDENTITY FULL at once, because nothing else identifies its rows',
            table,
          );
          continue;
        }
        table.identity = before;
        if (publication?.isOurs === true) {
          this.#leaveOut(table, publication);
          continue;
        }
      }
      this.add(
        'refused',
        'has no usable replica identity then: Postgres refuses its UPDATE and DELETE',
        table,
      );
    }
  }

  #leaveOut(table: ModelTable, publication: ModelPublication): void {
    publication.leftOut.add(this.model.mirrorOf(table)?.id ?? table.id);
    this.add('none', 'is not mirrored, for it has a virtual generated column and no usable key', table);
  }
}

interface Keyed {
  readonly attnum: number;
  readonly keyOrdinal: number | null;
}

export function label({ schema, name }: { readonly schema: string; readonly name: string }): string {
  const quote = (part: string): string =>
    /^[a-z_][a-z0-9_$]*$/.test(part) ? part : `"${part.replaceAll('"', '""')}"`;
  return `${quote(schema)}.${quote(name)}`;
}

/** Names of functions called anywhere inside. */
export function calledFunctions(node: unknown): string[] {
  return collect(node, 'FuncCall').map((call) => {
    const names = (call as { funcname?: Node[] }).funcname ?? [];
    const last = names.at(-1);
    return last !== undefined && 'String' in last ? (last.String.sval ?? '') : '';
  });
}

/** All nodes of one kind, at any depth. */
export function collect(node: unknown, kind: string): unknown[] {
  if (typeof node !== 'object' || node === null) return [];
  return Object.entries(node).flatMap(([key, value]) => [
    ...(key === kind ? [value] : []),
    ...collect(value, kind),
  ]);
}
