/** A column as the comparison needs it: pg_type's own names of the base type and, of arrays, of the element's. */
export interface ExpectedType {
  /** Domains down to what they are made of; `pg_catalog` types by their bare name, all others qualified. */
  readonly base: string;
  /** Base type of the elements, or null for what is no array. */
  readonly element: string | null;
  /** What Postgres puts between the elements. */
  readonly delimiter: string;
  /** Rows are found by it. */
  readonly isKey?: boolean;
}

const INTEGERS = new Set(['int2', 'int4', 'int8', 'oid']);
const FLOATS = new Set(['float4', 'float8']);
const TIMESTAMPS = new Set(['timestamp', 'timestamptz']);

/**
 * What SQLite should hold for a value that Postgres prints as `text`, as `storage class:value`: README's type
 * table, written once more for the tests and in another way than the code that they check.
 */
export function expectedValue(
  text: string | null,
  { base, element, delimiter, isKey }: ExpectedType,
): string {
  if (text === null) return 'null';
  if (element !== null && isKey === true && (/^\[/.test(text) || /^jsonb?$/.test(element)))
    return `text:${text}`;
  if (element !== null) return `text:${arrayJson(text, element, delimiter)}`;
  if (base === 'bool') return `integer:${Number(text === 't')}`;
  if (INTEGERS.has(base)) return `integer:${BigInt(text)}`;
  if (FLOATS.has(base)) return text === 'NaN' ? 'text:NaN' : `real:${bits(Number(text))}`;
  if (base === 'numeric') return expectedNumeric(text);
  if (base === 'bytea') return `blob:${text.replace(/^\\x/, '')}`;
  return `text:${TIMESTAMPS.has(base) ? sixDigits(text) : text}`;
}

/** What SQLite does hold, in the same form. Takes what better-sqlite3 gives with safe integers on. */
export function actualValue(value: unknown): string {
  if (value === null) return 'null';
  if (typeof value === 'bigint') return `integer:${value}`;
  if (typeof value === 'number') return `real:${bits(value)}`;
  if (Buffer.isBuffer(value)) return `blob:${value.toString('hex')}`;
  return `text:${String(value)}`;
}

/** The eight bytes of a double: the sign of a zero counts, and no two NaNs are mixed up. */
function bits(value: number): string {
  const bytes = Buffer.alloc(8);
  bytes.writeDoubleBE(value);
  return bytes.toString('hex');
}

function expectedNumeric(text: string): string {
  if (!/^-?\d/.test(text)) return `text:${text}`;
  const [whole = '', fraction = ''] = text.split('.');
  const short = fraction.replace(/0+$/, '');
  if (short === '') {
    if (whole.length > 20) return `text:${text}`;
    const integer = BigInt(whole);
    return BigInt.asIntN(64, integer) === integer ? `integer:${integer}` : `text:${text}`;
  }
  const digits = `${whole}${short}`.replace(/^-?0*/, '');
  // Where doubles become subnormal they hold fewer than 15 digits; well before that, all digits are kept.
  const isTiny = /^-?0$/.test(whole) && /^0{290}/.test(short);
  return digits.length <= 15 && !isTiny ? `real:${bits(Number(text))}` : `text:${text}`;
}

function sixDigits(text: string): string {
  const [, date, time, fraction, zone] =
    /^(\d{4}-\d\d-\d\d) (\d\d:\d\d:\d\d)(?:\.(\d+))?(\+00)?$/.exec(text) ?? [];
  if (date === undefined) return text;
  return `${date} ${time}.${(fraction ?? '').padEnd(6, '0')}${zone === undefined ? '' : 'Z'}`;
}

/** https://www.postgresql.org/docs/current/arrays.html#ARRAYS-IO, token by token. */
function arrayJson(text: string, element: string, delimiter: string): string {
  const between = delimiter.replace(/[.*+?^${}()|[\]\\]/g, '\\$&');
  const token = new RegExp(`[{}${between}]|"((?:[^"\\\\]|\\\\[\\s\\S])*)"|[^{}${between}"]+`, 'gy');
  token.lastIndex = text.startsWith('[') ? text.indexOf('=') + 1 : 0;
  const parts: string[] = [];
  for (let match = token.exec(text); match !== null; match = token.exec(text)) {
    const [raw, quoted] = match;
    if (raw === '{') parts.push('[');
    else if (raw === '}') parts.push(']');
    else if (raw === delimiter) parts.push(',');
    else if (quoted !== undefined) parts.push(elementJson(quoted.replace(/\\([\s\S])/g, '$1'), element));
    else parts.push(raw === 'NULL' ? 'null' : elementJson(raw, element));
  }
  return parts.join('');
}

function elementJson(text: string, element: string): string {
  if (element === 'bool') return String(text === 't');
  if (element === 'json' || element === 'jsonb') return text;
  const isNumber = INTEGERS.has(element) || FLOATS.has(element) || element === 'numeric';
  if (isNumber && !/[a-z]{2}/i.test(text)) return text;
  return JSON.stringify(TIMESTAMPS.has(element) ? sixDigits(text) : text);
}
