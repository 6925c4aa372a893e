import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { basename } from 'node:path';
import { ConfigError } from '../errors.ts';
import { type Fail, type LocalFill, type LocalObject, parseStatement } from './local-statement.ts';
import { checkSyntax } from './local-syntax.ts';
import { foldName, RESERVED_PREFIX } from './naming.ts';
import { splitScript } from './sql-script.ts';

/** Objects of the user's own, as text: they are made in the replica file and kept there. */
export interface LocalSql {
  readonly text: string;
  /** What messages call it: the file's name. */
  readonly source: string;
}

export interface LocalScript {
  readonly source: string;
  /** In the order of the file, in which they are run. */
  readonly statements: readonly (LocalObject | LocalFill)[];
  readonly objects: readonly LocalObject[];
  /** Of an object with its fills, by folded name: what changes with anything but white space and comments. */
  readonly hashes: ReadonlyMap<string, string>;
}

export const NO_LOCAL_OBJECTS: LocalScript = {
  source: '',
  statements: [],
  objects: [],
  hashes: new Map(),
};

export function readLocalSql(path: string): LocalSql {
  try {
    return { text: readFileSync(path, 'utf8'), source: basename(path) };
  } catch (cause) {
    throw new ConfigError(
      `the file of local objects ${path} cannot be read: ${(cause as NodeJS.ErrnoException).code ?? cause}`,
      { cause, hint: 'check the path and who may read it' },
    );
  }
}

/**
 * Reads the script and refuses what can be refused without the file that it is for: what is no SQL, statements
 * that make nothing, and those that would write into tables which are not the script's own. Throws ConfigError
 * with the line.
 */
export function parseLocalSql({ text, source }: LocalSql): LocalScript {
  const fail: Fail = (line, message, hint = SYNTAX_HINT) => {
    throw new ConfigError(`${source} line ${line}: ${message}`, { hint });
  };
  const known = new Map<string, LocalObject>();
  const statements = splitScript(text).map((statement) => {
    const parsed = parseStatement(statement, fail);
    if (parsed.kind === 'object') {
      checkObject(parsed, known, fail);
      known.set(foldName(parsed.name), parsed);
    } else if (known.get(foldName(parsed.table))?.type !== 'table') {
      fail(
        parsed.line,
        `the INSERT writes into ${parsed.table}, which is not a table of this file`,
        OWN_TABLES,
      );
    }
    return parsed;
  });
  checkSyntax(statements, fail);
  return {
    source,
    statements,
    objects: statements.filter((each) => each.kind === 'object'),
    hashes: hashesOf(statements),
  };
}

const SYNTAX_HINT = "mend that line; the language is SQLite's, see https://www.sqlite.org/lang.html";
const OWN_TABLES = 'only tables that the file itself has made before may be written';
const MODULES = ['fts5', 'fts5vocab', 'rtree', 'rtree_i32', 'geopoly'];

function checkObject(object: LocalObject, known: ReadonlyMap<string, LocalObject>, fail: Fail): void {
  const { line, type, name, on, module, trigger } = object;
  const other = known.get(foldName(name));
  if (other !== undefined)
    fail(line, `the name ${name} is taken already by the ${other.type} of line ${other.line}`);
  if (isReserved(name))
    fail(line, `the name ${name} is reserved`, 'SQLite and Rivulet use these for themselves');
  if (on !== null && isReserved(on))
    fail(line, `${on} is not for ${type === 'index' ? 'indexes' : 'triggers'}`);
  if (object.isUnique && known.get(foldName(on!))?.type !== 'table') {
    fail(
      line,
      `the index ${name} cannot be unique`,
      'Postgres has checked uniqueness; SQLite would check it too early, in the middle of a transaction: leave UNIQUE out',
    );
  }
  if (module !== null && !MODULES.includes(module.toLowerCase()))
    fail(
      line,
      `a virtual table of the module ${module} is not allowed`,
      `allowed are: ${MODULES.join(', ')}`,
    );
  for (const table of trigger?.writes ?? []) {
    if (known.get(foldName(table))?.type !== 'table')
      fail(line, `the trigger ${name} writes into ${table}, which is not a table of this file`, OWN_TABLES);
  }
}

function isReserved(name: string): boolean {
  return foldName(name).startsWith(RESERVED_PREFIX) || foldName(name).startsWith('sqlite_');
}

function hashesOf(statements: readonly (LocalObject | LocalFill)[]): ReadonlyMap<string, string> {
  const texts = new Map<string, string[]>();
  for (const statement of statements) {
    const text = splitScript(statement.sql)
      .flatMap(({ tokens }) => tokens.map((token) => token.text))
      .join(' ');
    const name = foldName(statement.kind === 'object' ? statement.name : statement.table);
    if (statement.kind === 'object') texts.set(name, [text]);
    else texts.get(name)!.push(text);
  }
  return new Map(
    [...texts].map(([name, parts]) => [name, createHash('sha256').update(parts.join('\n')).digest('hex')]),
  );
}
