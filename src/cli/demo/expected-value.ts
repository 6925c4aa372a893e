import { RivuletError } from '../../errors.ts';

/** What better-sqlite3 gives back with safe integers on. */
export type SqliteValue = bigint | number | string | Buffer | null;

const INTEGERS = new Set(['smallint', 'integer', 'bigint', 'oid']);
const FLOATS = new Set(['real', 'double precision']);

/**
 * What SQLite should hold for a value that Postgres prints as `text`: the type table of the README, written a
 * second time and as simply as it can be. The comparison would prove little if it shared the code it checks.
 */
export function expectedValue(text: string | null, typeName: string): SqliteValue {
  if (text === null) return null;
  if (typeName.endsWith('[]')) return toJson(parseArray(text), baseName(typeName.slice(0, -2)));
  const type = baseName(typeName);
  if (type === 'boolean') return text === 't' ? 1n : 0n;
  if (INTEGERS.has(type)) return BigInt(text);
  if (FLOATS.has(type)) return text === 'NaN' ? text : Number(text);
  if (type === 'numeric') return expectedNumeric(text);
  if (type === 'bytea') return Buffer.from(text.slice(2), 'hex');
  return expectedText(text, type);
}

/** 'numeric(8,5)' -> 'numeric', 'timestamp(3) with time zone' -> 'timestamp with time zone' */
function baseName(typeName: string): string {
  return typeName.replace(/\(.*?\)/, '');
}

function expectedText(text: string, type: string): string {
  const isUtc = type === 'timestamp with time zone';
  if (!isUtc && type !== 'timestamp without time zone') return text;
  const match = /^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)(?:\.(\d+))?(\+00)?$/.exec(text);
  if (match === null) return text;
  return `${match[1]}.${(match[2] ?? '').padEnd(6, '0')}${isUtc ? 'Z' : ''}`;
}

function expectedNumeric(text: string): SqliteValue {
  const match = /^(-?)0*(\d+?)(?:\.(\d*?)0*)?$/.exec(text);
  if (match === null) return text;
  const [, sign, whole, fraction = ''] = match;
  if (fraction === '') {
    const integer = BigInt(`${sign}${whole}`);
    return BigInt.asIntN(64, integer) === integer ? integer : text;
  }
  const digits = `${whole}${fraction}`.replace(/^0+/, '');
  return digits.length <= 15 ? Number(text) : text;
}

type ArrayTree = string | null | ArrayTree[];

/** Reads Postgres's array output: {1,NULL,"a \"b\"",{…}}. */
function parseArray(text: string): ArrayTree {
  let at = text.indexOf('{');
  if (at < 0) throw new RivuletError('PROTOCOL', 'an array without braces');
  const parse = (): ArrayTree => {
    if (text[at] === '{') {
      at++;
      const items: ArrayTree[] = [];
      while (text[at] !== '}') {
        items.push(parse());
        if (text[at] === ',') at++;
      }
      at++;
      return items;
    }
    let value = '';
    if (text[at] === '"') {
      for (at++; text[at] !== '"'; at++) {
        if (text[at] === '\\') at++;
        value += text[at];
      }
      at++;
      return value;
    }
    while (text[at] !== ',' && text[at] !== '}') value += text[at++];
    return value === 'NULL' ? null : value;
  };
  return parse();
}

function toJson(tree: ArrayTree, type: string): string {
  if (tree === null) return 'null';
  if (Array.isArray(tree)) return `[${tree.map((each) => toJson(each, type)).join(',')}]`;
  if (type === 'boolean') return tree === 't' ? 'true' : 'false';
  const isNumber = INTEGERS.has(type) || FLOATS.has(type) || type === 'numeric';
  if (isNumber && /^[-\d]/.test(tree) && !tree.includes('Inf')) return tree;
  if (type === 'json' || type === 'jsonb') return tree;
  return JSON.stringify(expectedText(tree, type));
}
