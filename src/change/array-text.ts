import { ProtocolError } from '../errors.ts';
import type { ScalarMapping } from './relation.ts';
import { normalizeTimestamp } from './timestamp-text.ts';

/** https://www.postgresql.org/docs/current/arrays.html#ARRAYS-IO: lower bounds that are not 1 stand in front. */
const BOUNDS = /^(?:\[[+-]?\d+:[+-]?\d+\])+=/;

const JSON_NUMBER = /^-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?$/;

/**
 * Postgres's text of an array as a JSON array, nested as the array is. Numbers keep all their digits, so
 * nothing goes through a JavaScript number.
 */
export function arrayTextToJson(text: string, element: ScalarMapping, delimiter: string): string {
  let at = BOUNDS.exec(text)?.[0].length ?? 0;
  let json = '';
  let depth = 0;
  let separate = false;
  while (at < text.length) {
    const char = text[at]!;
    if (char === '{') {
      json += separate ? ',[' : '[';
      separate = false;
      depth++;
      at++;
    } else if (char === '}') {
      json += ']';
      separate = true;
      depth--;
      at++;
      if (depth === 0) break;
    } else if (char === delimiter) {
      at++;
    } else {
      if (separate) json += ',';
      separate = true;
      if (char === '"') {
        let value = '';
        at++;
        for (;;) {
          // Runs without an escape are taken whole: values may be megabytes long.
          let end = at;
          while (end < text.length && text[end] !== '"' && text[end] !== '\\') end++;
          if (end >= text.length) throw unterminated();
          value += text.slice(at, end);
          if (text[end] === '"') {
            at = end + 1;
            break;
          }
          value += text[end + 1] ?? '';
          at = end + 2;
        }
        json += elementToJson(value, element);
      } else {
        let end = at;
        while (end < text.length && text[end] !== delimiter && text[end] !== '}') end++;
        const value = text.slice(at, end);
        at = end;
        json += value === 'NULL' ? 'null' : elementToJson(value, element);
      }
    }
  }
  if (depth !== 0 || at !== text.length || json === '') throw unterminated();
  return json;
}

function elementToJson(value: string, element: ScalarMapping): string {
  switch (element) {
    case 'bool':
      return value === 't' ? 'true' : 'false';
    case 'int':
    case 'float':
    case 'numeric':
      return JSON_NUMBER.test(value) ? value : JSON.stringify(value);
    case 'json':
      return value;
    case 'timestamp':
    case 'timestamptz':
      return JSON.stringify(normalizeTimestamp(value));
    case 'text':
    case 'date':
    case 'bytea':
      return JSON.stringify(value);
  }
}

function unterminated(): ProtocolError {
  return new ProtocolError('Postgres sent an array whose text does not end where it should');
}
