/** What a statement that the server has completed can have done to the database. */
export type StatementKind =
  /** Nothing. */
  | 'reads'
  /** Something, or it may have: nobody else can have such a tag without it. */
  | 'writes'
  /** A row set, and functions that it called may have written. */
  | 'may-write'
  | 'commits'
  | 'rolls-back'
  /** PREPARE TRANSACTION: what was written waits for COMMIT PREPARED, which may come from anywhere. */
  | 'prepares';

const READING_TAGS = new Set([
  'BEGIN',
  'START TRANSACTION',
  'SAVEPOINT',
  'RELEASE',
  'SET',
  'RESET',
  'SHOW',
  'LISTEN',
  'UNLISTEN',
  'NOTIFY',
  'PREPARE',
  'DEALLOCATE',
  'DEALLOCATE ALL',
  'DISCARD',
  'DISCARD ALL',
  'DECLARE CURSOR',
  'CLOSE CURSOR',
  'CLOSE CURSOR ALL',
  'LOCK TABLE',
  'SET CONSTRAINTS',
  'LOAD',
  'CHECKPOINT',
]);

/**
 * By the tag of CommandComplete, which does not depend on how the statement was written. `hasRows`: the server
 * described a row set before; CREATE TABLE AS and SELECT INTO have a SELECT's tag and none.
 *
 * https://www.postgresql.org/docs/current/protocol-message-formats.html
 */
export function statementKind(tag: string, hasRows: boolean): StatementKind {
  const command = tag.replace(/[ \d]+$/, '');
  switch (command) {
    case 'SELECT':
      return hasRows ? 'may-write' : 'writes';
    case 'FETCH':
    case 'MOVE':
    case 'EXPLAIN':
      return 'may-write';
    case 'COMMIT':
      return 'commits';
    case 'ROLLBACK':
      return 'rolls-back';
    case 'PREPARE TRANSACTION':
      return 'prepares';
    default:
      return READING_TAGS.has(command) ? 'reads' : 'writes';
  }
}

/** Comments in front, as query taggers put them there. */
const LEAD = String.raw`^(?:\s|\(|--[^\n]*\n|/\*(?:[^*]|\*(?!/))*\*/)*`;
const IS_QUERY = new RegExp(String.raw`${LEAD}(?:select|with|values|table)\b`, 'i');
const IS_COMMIT = new RegExp(String.raw`${LEAD}(?:commit|end)\b(?!\s+prepared\b)`, 'i');
const IS_PROCEDURE = new RegExp(String.raw`${LEAD}(?:call|do)\b`, 'i');
const WRITING_WORD = /\b(?:insert|update|delete|merge|into|execute|analy[sz]e)\b/i;
/** The schema with its point, or the point behind what is no plain name; then the name. */
const CALL = /((?:[\p{L}_][\p{L}\p{N}_$]*\s*)?\.\s*)?([\p{L}_][\p{L}\p{N}_$]*|")\s*\(/giu;
const HAS_SEVERAL = /;\s*\S/;

/** Words that stand before a parenthesis without being a call, and functions of the server that only compute. */
const HARMLESS_CALLS = new Set(
  `all any array as and asc between by case check coalesce cross cube cume_dist delete desc distinct else end except
   exists extract filter first for from full group grouping having if ilike in inner intersect is join lateral left
   like limit materialized not nothing null nulls offset on only or order outer over overlay partition position range
   recursive right rollup row rows select sets similar some substring table then ties to trim union using values when
   where window with within
   abs age array_agg array_length array_to_json array_to_string array_position avg bool_and bool_or btrim cardinality
   cast ceil ceiling char_length concat concat_ws count current_setting date_part date_trunc dense_rank encode every
   first_value floor format gen_random_uuid generate_series greatest initcap isfinite json_agg json_array_elements
   json_array_elements_text json_array_length json_build_array json_build_object json_each json_each_text
   json_object_agg jsonb_agg jsonb_array_elements jsonb_array_elements_text jsonb_array_length jsonb_build_array
   jsonb_build_object jsonb_each jsonb_each_text jsonb_extract_path jsonb_extract_path_text jsonb_object_agg
   jsonb_path_exists jsonb_path_query jsonb_set jsonb_typeof json_typeof lag last_value lead least left length lower
   lpad ltrim make_date make_interval max md5 min mod now nth_value ntile nullif numeric octet_length
   pg_current_wal_insert_lsn pg_current_xact_id_if_assigned percent_rank percentile_cont percentile_disc phraseto_tsquery plainto_tsquery power
   quote_ident quote_literal random rank regexp_match regexp_matches regexp_replace regexp_split_to_array
   regexp_split_to_table repeat replace reverse right round row_number row_to_json rpad rtrim setweight sign
   split_part sqrt starts_with string_agg string_to_array strpos substr sum timezone to_char to_date to_json to_jsonb
   to_number to_timestamp to_tsquery to_tsvector translate trunc ts_headline ts_rank ts_rank_cd unaccent unnest upper
   varchar width_bucket websearch_to_tsquery`.split(/\s+/),
);

/**
 * Whether a statement that answers with rows may have written, as far as its text shows: it holds a writing word
 * (in a WITH, behind EXPLAIN ANALYZE), or calls a function that is not known to be harmless. Wrong only where a
 * view, a rule, a policy or an operator hides such a call.
 */
export function mayHideWrite(text: string): boolean {
  if (!IS_QUERY.test(text) || WRITING_WORD.test(text)) return true;
  for (const [, schema, name] of text.matchAll(CALL))
    if (!isHarmless(schema, name!.toLowerCase())) return true;
  return false;
}

/** In a schema of the application's own, a function may have any name and do anything. */
function isHarmless(schema: string | undefined, name: string): boolean {
  switch (schema?.replace(/\s/g, '').toLowerCase()) {
    case undefined:
    case 'pg_catalog.':
      return HARMLESS_CALLS.has(name);
    case 'rivulet.':
      return name === 'token';
    default:
      return false;
  }
}

/** One SELECT and the like: may be sent in the extended protocol, with another statement behind it. */
export function isSingleQuery(text: string): boolean {
  return IS_QUERY.test(text) && !HAS_SEVERAL.test(text);
}

/** COMMIT and nothing else. */
export function isCommit(text: string): boolean {
  return IS_COMMIT.test(text) && !HAS_SEVERAL.test(text);
}

/** A procedure may commit a part of its work before it fails. */
export function isProcedure(text: string): boolean {
  return IS_PROCEDURE.test(text);
}
