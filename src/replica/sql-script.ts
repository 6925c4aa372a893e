/** A piece of SQL that means something: comments and white space are left out. */
export interface SqlToken {
  /** A bare word, a name in quotes, a text in single quotes, or anything else (an operator, a number, …). */
  readonly kind: 'word' | 'name' | 'string' | 'other';
  /** As it stands in the script. */
  readonly text: string;
  /** 1-based. */
  readonly line: number;
  readonly start: number;
  readonly end: number;
}

export interface SqlStatement {
  /** Without the semicolon and what stands around it. */
  readonly sql: string;
  readonly line: number;
  /** Never empty. */
  readonly tokens: readonly SqlToken[];
}

/** A comment or text without its end runs to the end of the script, where SQLite finds it and says so. */
const TOKEN =
  /(?<space>\s+|--[^\n]*|\/\*[\s\S]*?(?:\*\/|$))|(?<word>[\p{L}_\u0080-\uffff][\p{L}\p{N}_$\u0080-\uffff]*)|(?<name>"(?:[^"]|"")*"?|`(?:[^`]|``)*`?|\[[^\]]*\]?)|(?<string>'(?:[^']|'')*'?)|(?<other>\d[\w.]*|[\s\S])/uy;

/**
 * Cuts a script into its statements, at the semicolons that end one. A trigger ends at the first `; END ;`, as
 * SQLite's own command line has it (https://www.sqlite.org/c3ref/complete.html).
 */
export function splitScript(script: string): readonly SqlStatement[] {
  const statements: SqlStatement[] = [];
  let tokens: SqlToken[] = [];
  const finish = (): void => {
    const first = tokens[0];
    if (first !== undefined) {
      statements.push({ sql: script.slice(first.start, tokens.at(-1)!.end), line: first.line, tokens });
    }
    tokens = [];
  };
  for (const token of tokenize(script)) {
    if (token.text !== ';') tokens.push(token);
    else if (!isTrigger(tokens) || endsTrigger(tokens)) finish();
    else tokens.push(token);
  }
  finish();
  return statements;
}

function* tokenize(script: string): Generator<SqlToken> {
  let line = 1;
  TOKEN.lastIndex = 0;
  for (let match = TOKEN.exec(script); match !== null; match = TOKEN.exec(script)) {
    const text = match[0];
    const { space, word, name, string } = match.groups!;
    if (space === undefined) {
      const kind =
        word !== undefined ? 'word' : name !== undefined ? 'name' : string !== undefined ? 'string' : 'other';
      yield { kind, text, line, start: match.index, end: match.index + text.length };
    }
    for (const character of text) if (character === '\n') line++;
  }
}

/** Whether the token is this keyword, in whatever case. */
export function isWord(token: SqlToken | undefined, ...words: readonly string[]): boolean {
  return token?.kind === 'word' && words.includes(token.text.toUpperCase());
}

/** The name that a token stands for: SQLite takes words, quoted names and texts as such. Null for anything else. */
export function nameOf(token: SqlToken | undefined): string | null {
  if (token === undefined || token.kind === 'other') return null;
  const { text } = token;
  if (token.kind === 'word') return text;
  if (text.startsWith('[')) return text.slice(1, -1);
  const quote = text[0]!;
  return text.slice(1, -1).replaceAll(quote + quote, quote);
}

function isTrigger(tokens: readonly SqlToken[]): boolean {
  return (
    isWord(tokens[0], 'CREATE') && isWord(tokens[isWord(tokens[1], 'TEMP', 'TEMPORARY') ? 2 : 1], 'TRIGGER')
  );
}

function endsTrigger(tokens: readonly SqlToken[]): boolean {
  return isWord(tokens.at(-1), 'END') && tokens.at(-2)?.text === ';';
}
