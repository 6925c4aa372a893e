import type pg from 'pg';
import { RivuletError } from '../errors.ts';
import { readPublishedSchema } from './catalog.ts';
import { findTables, parseTableName, readPublication } from './publication.ts';

/** So many names are shown of what is too much. */
const MAX_NAMES = 10;

export interface ListProblem {
  /** Of a table that is not published: once it is, this is over. */
  readonly oid: number | null;
  readonly problem: string;
}

/**
 * Where the publication is not what `--tables` says. The list counts only for what set-up makes or adds; a publication
 * that is there decides what is mirrored.
 */
export async function readListProblems(
  client: pg.ClientBase,
  { publication, tables }: { readonly publication: string; readonly tables: readonly string[] },
): Promise<readonly ListProblem[]> {
  const state = await readPublication(client, publication);
  if (state === null) return [];
  // A partition of its own, or one of a root that is published so. From the catalog: the view opens every table.
  const oidsPublished = (await readPublishedSchema(client, publication)).map(({ oid }) => oid);
  const { rows } = await client.query<{ oids: number[]; label: string }>(
    `select c.oid::int8::float8 || array(select a.relid::oid::int8::float8 from pg_partition_ancestors(c.oid) a) as oids,
            format('%I.%I', m.nspname, root.relname) as label
       from pg_class c
       join pg_class root on root.oid = coalesce(pg_partition_root(c.oid), c.oid)
       join pg_namespace m on m.oid = root.relnamespace
      where c.oid = any ($1) order by 2`,
    [oidsPublished],
  );
  const published = new Set(rows.flatMap(({ oids }) => oids));
  const listed = new Set<number>();
  const problems: ListProblem[] = [];
  const other = publication === 'rivulet' ? '' : ` --publication ${publication}`;
  for (const text of tables) {
    try {
      const [table] = await findTables(client, [parseTableName(text)]);
      listed.add(table!.oid);
      if (state.wantsAll || published.has(table!.oid)) continue;
      const mend = state.isOurs
        ? `run \`rivulet setup --tables ${tables.join(',')}${other}\``
        : 'set-up did not make it, so add the table there';
      problems.push({
        oid: table!.oid,
        problem: `${table!.label} is not mirrored: --tables names it, but the publication ${publication} was made before and lacks it; ${mend}`,
      });
    } catch (error) {
      if (!(error instanceof RivuletError)) throw error;
      problems.push({ oid: null, problem: `--tables: ${error.message}` });
    }
  }
  const surplus = [
    ...new Set(rows.filter(({ oids }) => !oids.some((oid) => listed.has(oid))).map(({ label }) => label)),
  ];
  if (state.wantsAll) {
    problems.push({
      oid: null,
      problem: `the publication ${publication} is of all tables, so --tables changes nothing; for these tables only, stop this replicator, run \`rivulet teardown${other}\`, and start it again`,
    });
  } else if (surplus.length > 0) {
    const names = surplus.slice(0, MAX_NAMES).join(', ');
    const more = surplus.length > MAX_NAMES ? ` and ${surplus.length - MAX_NAMES} more` : '';
    problems.push({
      oid: null,
      problem: `--tables does not name ${names}${more}, but the publication ${publication} was made before and has them; ALTER PUBLICATION … DROP TABLE takes them out`,
    });
  }
  return problems;
}
