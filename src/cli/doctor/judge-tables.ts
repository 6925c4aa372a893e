import { type Column, keyColumns, type Relation, type ValueMapping } from '../../change/relation.ts';
import { assignColumnNames, foldName, RESERVED_PREFIX } from '../../replica/naming.ts';
import { layoutRelations } from '../../replica/schema.ts';
import { canEnforceKey, type TableLayout } from '../../replica/table-layout.ts';
import type { WeakIdentity } from '../../source/identity.ts';
import { type Finding, type Severity, worst } from './finding.ts';
import type { TableFacts, TableIndex, TablesReport } from './table-facts.ts';

export interface ColumnReport {
  readonly name: string;
  readonly sqliteName: string;
  readonly type: string;
  /** How its values are stored, as README's type table has it. */
  readonly storage: string;
  readonly keyOrdinal: number | null;
}

/** How one table is mirrored, or would be. */
export interface TableReport {
  readonly table: string;
  readonly sqliteName: string;
  readonly severity: Severity;
  readonly columns: readonly ColumnReport[];
  /** `primary key (id)`, or what else its rows are found by. */
  readonly identity: string;
  /** After set-up; the same where set-up changes nothing. */
  readonly identityAfterSetup: string;
  readonly partitions: number | null;
  /** As Postgres estimates; null if it was never analysed. */
  readonly rows: number | null;
  readonly bytes: number;
  readonly findings: readonly Finding[];
}

export interface JudgeTablesOptions {
  readonly isPublished: boolean;
  /** Tables are named, so one that cannot be had is left out; otherwise set-up would stop. */
  readonly isListed: boolean;
}

export function judgeTables(report: TablesReport, options: JudgeTablesOptions): TableReport[] {
  const layouts = new Map(layoutRelations(report.relations).map((layout) => [layout.relation.oid, layout]));
  const weak = groupBy(report.weak, ({ rootOid }) => rootOid);
  const unreadable = new Map(report.unreadable.map(({ table, reason }) => [table, reason]));
  return report.tables.map((facts) => {
    const layout = layouts.get(facts.oid)!;
    const weaknesses = weak.get(facts.oid) ?? [];
    const findings = [
      ...names(layout, layouts),
      ...identityFindings(facts, weaknesses, report, options),
      ...keyFindings(layout.relation),
      ...columnFindings(facts, layout.relation),
      ...ownershipFindings(facts, options),
      ...partFindings(facts, unreadable.get(facts.label)),
      ...indexFindings(facts, layout.relation),
    ];
    const now = identityText(layout.relation, facts.identity);
    const wanted = weaknesses.find(({ oid }) => oid === facts.oid)?.wanted;
    return {
      table: facts.label,
      sqliteName: layout.sqliteName,
      severity: worst(findings),
      columns: layout.relation.columns.map(
        (column, index): ColumnReport => ({
          name: column.name,
          sqliteName: layout.columnNames[index]!,
          type: column.typeName,
          storage: storage(column.mapping),
          keyOrdinal: column.keyOrdinal,
        }),
      ),
      identity: now,
      identityAfterSetup: wanted == null ? now : identityText(layout.relation, wanted),
      partitions: facts.partitions,
      rows: facts.rows,
      bytes: facts.bytes,
      findings,
    };
  });
}

/** How SQLite stores the values of such a column; each word exact, see README's type table. */
export function storage(mapping: ValueMapping): string {
  switch (mapping) {
    case 'bool':
      return 'INTEGER 0/1';
    case 'int':
      return 'INTEGER';
    case 'float':
      return 'REAL (NaN as TEXT)';
    case 'numeric':
      return 'INTEGER, REAL or TEXT, whichever is exact';
    case 'bytea':
      return 'BLOB';
    case 'text':
    case 'json':
    case 'date':
    case 'timestamp':
    case 'timestamptz':
      return 'TEXT';
    default:
      return 'TEXT, a JSON array';
  }
}

function names(layout: TableLayout, all: ReadonlyMap<number, TableLayout>): Finding[] {
  const { relation, sqliteName } = layout;
  const findings: Finding[] = [];
  const plain = relation.schema === 'public' ? relation.name : `${relation.schema}.${relation.name}`;
  if (sqliteName !== plain) {
    const twin = [...all.values()].find(
      (other) => other !== layout && foldName(other.sqliteName) === foldName(plain),
    );
    findings.push({
      check: 'name',
      severity: 'note',
      says: `is ${quoted(sqliteName)} in SQLite, which ${twin === undefined ? `reserves ${quoted(plain)}` : `cannot tell it from ${quoted(twin.sqliteName)}`}`,
    });
  }
  const given = assignColumnNames(relation.columns);
  const renamed = relation.columns.filter((column) => given.get(column.attnum) !== column.name);
  for (const column of renamed) {
    const reason = foldName(column.name).startsWith(RESERVED_PREFIX)
      ? 'the prefix is reserved'
      : 'SQLite folds upper and lower case';
    findings.push({
      check: 'column_name',
      severity: 'note',
      says: `its column ${quoted(column.name)} is ${quoted(given.get(column.attnum)!)} in SQLite: ${reason}`,
    });
  }
  return findings;
}

function identityFindings(
  facts: TableFacts,
  weaknesses: readonly WeakIdentity[],
  report: TablesReport,
  options: JudgeTablesOptions,
): Finding[] {
  const { isPublished } = options;
  if (weaknesses.length === 0) {
    const isOurs = report.madeFull.has(facts.oid);
    if (facts.identity !== 'f') return [];
    return [
      {
        check: 'replica_identity',
        severity: 'note',
        says: `has REPLICA IDENTITY FULL${isOurs ? ', which set-up gave it' : ''}: every UPDATE and DELETE writes the whole old row into the WAL`,
        advice: isOurs
          ? 'give it a primary key, and it goes back to that by itself'
          : 'a primary key is cheaper, if it can have one',
      },
    ];
  }
  const own = weaknesses.find(({ oid }) => oid === facts.oid) ?? weaknesses[0]!;
  const isHopeless = weaknesses.some(({ wanted }) => wanted === null);
  const why =
    own.oid === facts.oid ? own.reason : `of its partition ${own.schema}.${own.name}: ${own.reason}`;
  if (isPublished) {
    return [
      {
        check: 'replica_identity',
        severity: 'problem',
        says: `Postgres refuses its UPDATE and DELETE: published, and ${why}`,
        advice: isHopeless
          ? 'give it a primary key, or take it out of the publication'
          : 'run `rivulet setup` again',
      },
    ];
  }
  if (isHopeless) {
    return [
      {
        check: 'replica_identity',
        severity: 'warning',
        says: `is left out: published, its UPDATE and DELETE would be refused, because ${why}, and REPLICA IDENTITY FULL does not help`,
        advice: 'give it a primary key',
      },
    ];
  }
  const clause = own.wanted === 'f' ? 'FULL' : 'DEFAULT';
  return [
    {
      check: 'replica_identity',
      severity: 'note',
      says: `set-up gives it REPLICA IDENTITY ${clause}, because ${why}${clause === 'FULL' ? ': every UPDATE and DELETE then writes the whole old row into the WAL' : ''}`,
      ...(clause === 'FULL' ? { advice: 'a primary key is cheaper, if it can have one' } : {}),
    },
  ];
}

/** For all tables it takes a superuser, which is said of the server. */
function ownershipFindings(facts: TableFacts, { isPublished, isListed }: JudgeTablesOptions): Finding[] {
  if (isPublished || !isListed || facts.isOwned) return [];
  return [
    {
      check: 'owner',
      severity: 'problem',
      says: 'cannot be published by this user, who does not own it',
      advice: 'run `rivulet setup` as its owner or a superuser',
    },
  ];
}

function keyFindings(relation: Relation): Finding[] {
  if (!relation.keyIsDeferrable) return [];
  return [
    {
      check: 'key',
      severity: 'note',
      says: 'its primary key is deferrable: in SQLite it is a plain index, and rows are found by their whole content',
    },
  ];
}

function columnFindings(facts: TableFacts, relation: Relation): Finding[] {
  const sent = new Set(relation.columns.map(({ name }) => name));
  const absent = facts.columns.filter(({ name }) => !sent.has(name));
  const findings: Finding[] = [];
  const generated = absent.filter((column) => column.generated !== '');
  if (generated.length > 0) {
    findings.push({
      check: 'generated_column',
      severity: 'warning',
      says: `Postgres does not send the generated columns ${list(generated.map(({ name }) => name))}`,
      advice: generated.some((column) => column.generated === 's')
        ? 'Postgres 18 sends stored ones; until then compute them in a view on the replica'
        : 'make them STORED, or compute them in a view on the replica',
    });
  }
  const listed = absent.filter((column) => column.generated === '');
  if (listed.length > 0) {
    findings.push({
      check: 'column_list',
      severity: 'warning',
      says: `the publication's column list leaves out ${list(listed.map(({ name }) => name))}`,
    });
  }
  return findings;
}

function partFindings(facts: TableFacts, unreadable: string | undefined): Finding[] {
  const findings: Finding[] = [];
  if (facts.rowFilter !== null) {
    findings.push({
      check: 'row_filter',
      severity: 'warning',
      says: `only rows with ${facts.rowFilter} are published`,
    });
  }
  if (facts.partitions !== null) {
    findings.push({
      check: 'partitions',
      severity: 'ok',
      says: `its partitions (${facts.partitions}) arrive as one table`,
    });
  }
  if (facts.unloggedPartitions > 0) {
    findings.push({
      check: 'unlogged',
      severity: 'warning',
      says: `of its partitions ${facts.unloggedPartitions} ${facts.unloggedPartitions === 1 ? 'is' : 'are'} unlogged: those rows do not arrive`,
      advice: 'ALTER TABLE … SET LOGGED',
    });
  }
  if (facts.hasInheritanceChildren) {
    findings.push({
      check: 'inheritance',
      severity: 'note',
      says: 'others inherit from it: each arrives as a table of its own, with its own rows only',
    });
  }
  if (unreadable !== undefined) {
    findings.push({
      check: 'select_right',
      severity: 'problem',
      says: `cannot be copied: ${unreadable}`,
      advice: 'GRANT SELECT on it to the user; where row-level security is on, give it BYPASSRLS',
    });
  }
  return findings;
}

function indexFindings(facts: TableFacts, relation: Relation): Finding[] {
  const made = new Set(relation.indexes.map(({ oid }) => oid));
  const absent = facts.indexes.filter((index) => !index.isPrimary && !made.has(index.oid));
  if (absent.length === 0) return [];
  const texts = absent.map((index) => `${index.name} (${whyNotMade(index)})`);
  return [
    {
      check: 'index',
      severity: 'note',
      says: `${absent.length === 1 ? 'an index is' : `${absent.length} indexes are`} not made in SQLite: ${texts.join(', ')}`,
    },
  ];
}

function whyNotMade(index: TableIndex): string {
  if (!index.isValid) return 'invalid';
  if (index.method !== 'btree') return index.method;
  if (index.hasExpressions) return 'of an expression';
  if (index.isPartial) return 'partial';
  return 'of columns that are not published';
}

function identityText(relation: Relation, identity: string): string {
  if (identity === 'f') return 'the whole row (FULL)';
  if (identity === 'n') return 'none (NOTHING)';
  if (identity === 'i')
    return `unique index (${columnNames(relation.columns.filter((column) => column.identity))})`;
  const key = keyColumns(relation).map((index) => relation.columns[index]!);
  if (key.length === 0) return 'none';
  return `${canEnforceKey(relation) ? '' : 'deferrable '}primary key (${columnNames(key)})`;
}

function columnNames(columns: readonly Column[]): string {
  return columns.map(({ name }) => name).join(', ');
}

const MAX_NAMES_SHOWN = 8;

function list(names: readonly string[]): string {
  const shown = names.slice(0, MAX_NAMES_SHOWN).join(', ');
  return names.length > MAX_NAMES_SHOWN ? `${shown} and ${names.length - MAX_NAMES_SHOWN} more` : shown;
}

function quoted(name: string): string {
  return `"${name}"`;
}

function groupBy<T>(values: readonly T[], key: (value: T) => number): Map<number, T[]> {
  const groups = new Map<number, T[]>();
  for (const value of values) groups.set(key(value), [...(groups.get(key(value)) ?? []), value]);
  return groups;
}
