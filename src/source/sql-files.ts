import { readdirSync, readFileSync } from 'node:fs';

/** `sql/` lies beside both `src/` and `dist/`, so the same step up finds it from either. */
const SQL_DIRECTORY = new URL('../../sql/', import.meta.url);

export interface SqlFile {
  readonly number: number;
  readonly name: string;
  readonly text: string;
}

/** The numbered files of `sql/`, in order. */
export function readSqlFiles(): SqlFile[] {
  return readdirSync(SQL_DIRECTORY)
    .filter((name) => /^\d{3}_\w+\.sql$/.test(name))
    .sort()
    .map((name) => ({
      number: Number(name.slice(0, 3)),
      name,
      text: readFileSync(new URL(name, SQL_DIRECTORY), 'utf8'),
    }));
}

/**
 * The query that is the body of a SQL function, so that it has one text and can still be run where functions
 * cannot be made. Its parameters are $1, $2 … in both uses.
 */
export function readFunctionBody(fileName: string): string {
  const text = readFileSync(new URL(fileName, SQL_DIRECTORY), 'utf8');
  const body = /\bas \$query\$(.*?)\$query\$;/s.exec(text)?.[1];
  if (body === undefined) throw new Error(`${fileName} has no $query$ body`);
  return body;
}
