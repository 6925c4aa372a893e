import { foldName } from './naming.ts';
import { isWord, nameOf, type SqlStatement, type SqlToken } from './sql-script.ts';

export type LocalType = 'table' | 'index' | 'view' | 'trigger';

/** One CREATE statement. */
export interface LocalObject {
  readonly kind: 'object';
  readonly type: LocalType;
  readonly name: string;
  readonly sql: string;
  /** All behind its name, without comments, white space and the quotes of names: by this two texts are compared. */
  readonly rest: string;
  readonly line: number;
  /** The module of a virtual table. */
  readonly module: string | null;
  /** What an index or trigger stands on. */
  readonly on: string | null;
  readonly isUnique: boolean;
  readonly trigger: TriggerFacts | null;
}

export interface TriggerFacts {
  readonly event: 'INSERT' | 'UPDATE' | 'DELETE';
  /** Columns of UPDATE OF. */
  readonly columns: readonly string[];
  /** Tables that its statements write into. */
  readonly writes: readonly string[];
}

/** An INSERT that fills a table of the script when that is made. */
export interface LocalFill {
  readonly kind: 'fill';
  readonly table: string;
  readonly sql: string;
  readonly line: number;
}

/** Raises an error at a line. */
export type Fail = (line: number, message: string, hint?: string) => never;

const ALLOWED = 'CREATE INDEX, VIEW, VIRTUAL TABLE, TABLE and TRIGGER, and INSERT into a table of the file';

/** What one statement makes or fills, by its words alone. Also for the text of an object that is in the file. */
export function parseStatement(statement: SqlStatement, fail: Fail): LocalObject | LocalFill {
  const { sql, line } = statement;
  const words = new Words(statement, fail);
  if (words.take('INSERT', 'REPLACE')) {
    if (words.take('OR')) words.next();
    words.expect('INTO');
    return { kind: 'fill', table: words.name(), sql, line };
  }
  if (!words.take('CREATE'))
    return fail(line, `${words.text()} is not allowed here`, `allowed are: ${ALLOWED}`);
  if (words.take('TEMP', 'TEMPORARY'))
    return fail(line, 'something temporary would belong to one connection only', 'leave TEMP out');
  const isUnique = words.take('UNIQUE');
  const isVirtual = words.take('VIRTUAL');
  const type = words.text().toLowerCase();
  if (!words.take(...(isUnique ? ['INDEX'] : isVirtual ? ['TABLE'] : ['TABLE', 'INDEX', 'VIEW', 'TRIGGER'])))
    return fail(line, `CREATE ${words.text()} is not allowed here`, `allowed are: ${ALLOWED}`);
  if (words.take('IF')) words.next('NOT', 'EXISTS');
  const name = words.name();
  const object = {
    kind: 'object',
    name,
    sql,
    rest: words.rest(),
    line,
    isUnique,
    module: null,
    on: null,
    trigger: null,
  } as const;
  switch (type as LocalType) {
    case 'table':
      if (isVirtual) {
        words.expect('USING');
        return { ...object, type: 'table', module: words.name() };
      }
      if (words.take('AS'))
        fail(line, `the table ${name} is made from a query`, 'name its columns, and fill it with an INSERT');
      return { ...object, type: 'table' };
    case 'index':
      words.expect('ON');
      return { ...object, type: 'index', on: words.name() };
    case 'view':
      return { ...object, type: 'view' };
    case 'trigger':
      return { ...object, type: 'trigger', ...parseTrigger(words) };
  }
}

function parseTrigger(words: Words): Pick<LocalObject, 'on' | 'trigger'> {
  if (words.take('INSTEAD')) words.expect('OF');
  else words.take('BEFORE', 'AFTER');
  const event = words.text().toUpperCase() as TriggerFacts['event'];
  words.expect('INSERT', 'UPDATE', 'DELETE');
  const columns: string[] = [];
  if (words.take('OF')) {
    do columns.push(words.name());
    while (words.takeOther(','));
  }
  words.expect('ON');
  const on = words.name();
  return { on, trigger: { event, columns, writes: words.writtenTables() } };
}

/** Takes a statement's tokens one after the other. */
class Words {
  readonly #tokens: readonly SqlToken[];
  readonly #fail: Fail;
  #at = 0;

  constructor({ tokens }: SqlStatement, fail: Fail) {
    this.#tokens = tokens;
    this.#fail = fail;
  }

  text(): string {
    return this.#tokens[this.#at]?.text ?? 'the end';
  }

  take(...words: readonly string[]): boolean {
    if (!isWord(this.#tokens[this.#at], ...words)) return false;
    this.#at++;
    return true;
  }

  takeOther(text: string): boolean {
    if (this.#tokens[this.#at]?.text !== text) return false;
    this.#at++;
    return true;
  }

  expect(...words: readonly string[]): void {
    if (!this.take(...words)) this.#syntaxError();
  }

  /** One token of any kind, or these words. */
  next(...words: readonly string[]): void {
    if (words.length === 0) this.#at++;
    for (const word of words) this.expect(word);
  }

  /** A name, alone or behind `main.` */
  name(): string {
    const first = this.#one();
    if (!this.takeOther('.')) return first;
    const second = this.#one();
    if (foldName(first) === 'main') return second;
    return this.#fail(
      this.#line(),
      `there is no database ${first}`,
      `a table of another schema is one name with a dot in it: "${first}.${second}", in quotes`,
    );
  }

  #one(): string {
    const name = nameOf(this.#tokens[this.#at]);
    if (name === null) this.#syntaxError();
    this.#at++;
    return name!;
  }

  rest(): string {
    return this.#tokens
      .slice(this.#at)
      .map((token) => (token.kind === 'name' ? nameOf(token) : token.text))
      .join(' ');
  }

  /** Of a trigger: its statements begin behind BEGIN and behind every semicolon. */
  writtenTables(): readonly string[] {
    const tables: string[] = [];
    let isBody = false;
    for (; this.#at < this.#tokens.length; this.#at++) {
      const token = this.#tokens[this.#at]!;
      const isStart = isBody ? token.text === ';' : this.#isBegin();
      if (isWord(token, 'RAISE') && isWord(this.#tokens[this.#at + 2], 'IGNORE')) {
        this.#fail(token.line, 'RAISE(IGNORE) would leave a row of Postgres out');
      }
      if (!isStart) continue;
      isBody = true;
      const before = this.#at++;
      if (this.take('INSERT', 'REPLACE', 'UPDATE', 'DELETE')) {
        if (this.take('OR')) this.next();
        this.take('INTO', 'FROM');
        tables.push(this.name());
        this.#at--;
      } else {
        this.#at = before;
      }
    }
    return tables;
  }

  /** The word may also be a column's name in the trigger's condition. */
  #isBegin(): boolean {
    return (
      isWord(this.#tokens[this.#at], 'BEGIN') &&
      this.#tokens[this.#at - 1]?.text !== '.' &&
      isWord(this.#tokens[this.#at + 1], 'INSERT', 'REPLACE', 'UPDATE', 'DELETE', 'SELECT', 'WITH', 'VALUES')
    );
  }

  #line(): number {
    return (this.#tokens[this.#at] ?? this.#tokens.at(-1)!).line;
  }

  #syntaxError(): never {
    const token = this.#tokens[this.#at];
    return this.#fail(
      this.#line(),
      token === undefined ? 'the statement is not complete' : `near "${token.text}": syntax error`,
    );
  }
}
