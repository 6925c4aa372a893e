/**
 * The terms with AND between them, as a balanced tree: a chain of 1,600 would be deeper than the 1,000 levels that
 * SQLite takes. https://www.sqlite.org/limits.html#max_expr_depth
 */
export function conjunction(terms: readonly string[]): string {
  if (terms.length <= 2) return terms.join(' AND ');
  const half = terms.length >> 1;
  return `(${conjunction(terms.slice(0, half))}) AND (${conjunction(terms.slice(half))})`;
}
