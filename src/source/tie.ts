const TIE = String.raw`\('"?rivulet"?\."?tie_\d+"?\(\)'::regprocedure IS NOT NULL\)`;
const ALONE = new RegExp(`^${TIE}$`);
const LAST = new RegExp(` AND ${TIE}\\)$`);

/**
 * A row filter, as pg_get_expr() prints it, without what ties its table to the publication and lets every row pass; null
 * if nothing is left. See sql/007_published_tables.sql.
 */
export function withoutTie(filter: string): string | null {
  return ALONE.test(filter) ? null : filter.replace(LAST, ')');
}
