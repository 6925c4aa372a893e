const ORDINARY = /^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)(?:\.(\d{1,6}))?(\+00)?$/;

/**
 * Six digits behind the seconds always, and `Z` for UTC, so that text order is time order. Infinity, BC and
 * years past 9999 stay as Postgres prints them. The byte version for whole columns is in value-mapping.ts.
 */
export function normalizeTimestamp(text: string): string {
  const match = ORDINARY.exec(text);
  if (match === null) return text;
  return `${match[1]}.${(match[2] ?? '').padEnd(6, '0')}${match[3] === undefined ? '' : 'Z'}`;
}
