import type { AlterPublicationStmt, PublicationObjSpec } from 'libpg-query';
import type { ModelPublication } from './catalog-state.ts';
import { collect, type Step } from './step.ts';
import { stringOf } from './types.ts';

export function alterPublication(statement: AlterPublicationStmt, step: Step): void {
  const { publication } = step.model.state;
  if (publication === null || statement.pubname !== publication.name) return;
  step.changeAll();
  for (const node of statement.options ?? []) {
    if ('DefElem' in node)
      setOption(
        publication,
        node.DefElem.defname ?? '',
        node.DefElem.arg === undefined ? 'true' : stringOf(node.DefElem.arg),
        step,
      );
  }
  const specs = (statement.pubobjects ?? []).flatMap((node) =>
    'PublicationObjSpec' in node ? [node.PublicationObjSpec] : [],
  );
  if (specs.length === 0) return;
  if (publication.allTables && !publication.isKept) {
    step.add('refused', `the publication ${publication.name} is for all tables already`);
    return;
  }
  if (statement.action === 'AP_SetObjects') {
    publication.tables.clear();
    publication.schemas.clear();
    publication.columnLists.clear();
  }
  for (const spec of specs) setObject(publication, spec, statement.action === 'AP_DropObjects', step);
}

function setOption(publication: ModelPublication, name: string, value: string, step: Step): void {
  if (name === 'publish') {
    const missing = ['insert', 'update', 'delete', 'truncate'].filter(
      (each) => !value.split(',').some((part) => part.trim() === each),
    );
    if (missing.length > 0)
      step.add(
        'dangerous',
        `the publication leaves out ${missing.join(', ')}: replicas keep what they had, until it is as it was, and then start from a new copy`,
      );
  } else if (name === 'publish_via_partition_root') {
    const isOn = value === 'true' || value === 'on';
    const { model } = step;
    const isPartitioned = [...model.state.tables.values()].some(
      (table) => table.kind === 'partitioned' && model.mirrorOf(table) === table,
    );
    if (!isOn && publication.isTied && isPartitioned)
      step.add('refused', 'set-up has given partitioned tables row filters, with which it has to stay on');
    else publication.viaRoot = isOn;
  } else if (name === 'publish_generated_columns') {
    publication.sendsGenerated = value !== 'none';
  }
}

function setObject(
  publication: ModelPublication,
  spec: PublicationObjSpec,
  isDrop: boolean,
  step: Step,
): void {
  if (spec.pubobjtype === 'PUBLICATIONOBJ_TABLES_IN_SCHEMA' && spec.name !== undefined) {
    if (isDrop) publication.schemas.delete(spec.name);
    else publication.schemas.add(spec.name);
    return;
  }
  const table = step.find(spec.pubtable?.relation);
  if (table === null) return;
  if (isDrop) {
    publication.tables.delete(table.id);
    publication.columnLists.delete(table.id);
    return;
  }
  const wasPublished = publication.tables.has(table.id) || step.model.state.known.has(table.id);
  publication.tables.add(table.id);
  const columns = (spec.pubtable?.columns ?? []).map(stringOf);
  const isPart = columns.length > 0 || collect(spec.pubtable?.whereClause, 'ColumnRef').length > 0;
  if (columns.length > 0) publication.columnLists.set(table.id, columns);
  else publication.columnLists.delete(table.id);
  if (isPart || publication.parts.has(table.id)) publication.parts.set(table.id, step.model.newId());
  step.because(
    table,
    wasPublished
      ? 'another part of it is published'
      : isPart
        ? 'a part of it comes into the publication'
        : 'it comes into the publication with rows in it',
  );
}
