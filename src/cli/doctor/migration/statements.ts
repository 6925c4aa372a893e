/** One statement of a file, or a line that is psql's own. */
export interface FilePart {
  readonly kind: 'sql' | 'psql';
  readonly text: string;
  /** 1-based line of its first character that is neither space nor comment. */
  readonly line: number;
  /** Of COPY … FROM stdin: how many lines of data stood below it, up to the `\.`. */
  readonly copyRows: number;
}

/**
 * Splits a file into statements as psql does (src/fe_utils/psqlscan.l): at semicolons outside of quotes, dollar
 * quotes, comments, parentheses and the bodies of SQL functions (BEGIN ATOMIC … END). Lines that begin with a
 * backslash between statements are psql's; the data below COPY … FROM stdin is passed over.
 */
export function splitStatements(text: string): FilePart[] {
  return new Splitter(text.replaceAll('\r\n', '\n')).split();
}

const DOLLAR_TAG = /\$(?:[A-Za-z_\u0080-\uffff][A-Za-z0-9_\u0080-\uffff]*)?\$/y;
const WORD = /[A-Za-z_\u0080-\uffff][A-Za-z0-9_$\u0080-\uffff]*/y;
const COPY_FROM_STDIN = /^copy\b[\s\S]*\bfrom\s+stdin\b/i;

class Splitter {
  readonly #text: string;
  #at = 0;
  readonly #parts: FilePart[] = [];
  /** Where the statement at hand begins; -1 between statements. */
  #start = -1;
  #parentheses = 0;
  /** Of BEGIN ATOMIC bodies, with the CASEs inside. */
  #blocks = 0;
  #words: string[] = [];

  constructor(text: string) {
    this.#text = text;
  }

  split(): FilePart[] {
    const text = this.#text;
    while (this.#at < text.length) {
      const char = text[this.#at]!;
      if (/\s/.test(char) || this.#skipComment()) {
        if (/\s/.test(char)) this.#at++;
        continue;
      }
      if (this.#start < 0 && char === '\\') {
        this.#psqlLine();
        continue;
      }
      if (char === ';' && this.#parentheses === 0 && this.#blocks === 0) {
        this.#end();
        continue;
      }
      if (this.#start < 0) this.#start = this.#at;
      this.#token(char);
    }
    this.#end();
    return this.#parts;
  }

  #token(char: string): void {
    const text = this.#text;
    if (char === "'" || char === '"') {
      const escapes = char === "'" && /[eE]/.test(text[this.#at - 1] ?? '') && this.#words.at(-1) === 'e';
      this.#quoted(char, escapes);
      return;
    }
    if (char === '$') {
      const tag = match(DOLLAR_TAG, text, this.#at);
      if (tag !== null) {
        const end = text.indexOf(tag, this.#at + tag.length);
        this.#at = end < 0 ? text.length : end + tag.length;
        return;
      }
    }
    const word = match(WORD, text, this.#at);
    if (word !== null) {
      this.#word(word.toLowerCase());
      this.#at += word.length;
      return;
    }
    if (char === '(') this.#parentheses++;
    if (char === ')' && this.#parentheses > 0) this.#parentheses--;
    this.#at++;
  }

  #word(word: string): void {
    const isRoutine =
      this.#words[0] === 'create' && this.#words.some((each) => each === 'function' || each === 'procedure');
    if (isRoutine && this.#words.at(-1) === 'begin' && word === 'atomic') this.#blocks++;
    else if (this.#blocks > 0 && word === 'case') this.#blocks++;
    else if (this.#blocks > 0 && word === 'end') this.#blocks--;
    this.#words.push(word);
  }

  #quoted(quote: string, escapes: boolean): void {
    const text = this.#text;
    for (this.#at++; this.#at < text.length; this.#at++) {
      if (escapes && text[this.#at] === '\\') this.#at++;
      else if (text[this.#at] === quote) {
        if (text[this.#at + 1] !== quote) break;
        this.#at++;
      }
    }
    this.#at++;
  }

  #skipComment(): boolean {
    const text = this.#text;
    if (text.startsWith('--', this.#at)) {
      const end = text.indexOf('\n', this.#at);
      this.#at = end < 0 ? text.length : end;
      return true;
    }
    if (!text.startsWith('/*', this.#at)) return false;
    // They nest, unlike in C.
    let depth = 0;
    do {
      if (text.startsWith('/*', this.#at)) {
        depth++;
        this.#at += 2;
      } else if (text.startsWith('*/', this.#at)) {
        depth--;
        this.#at += 2;
      } else this.#at++;
    } while (depth > 0 && this.#at < text.length);
    return true;
  }

  #psqlLine(): void {
    const end = this.#lineEnd();
    this.#add('psql', this.#text.slice(this.#at, end), this.#at, 0);
    this.#at = end;
  }

  #end(): void {
    const from = this.#start;
    const statement = from < 0 ? '' : this.#text.slice(from, this.#at).trimEnd();
    this.#at++;
    this.#start = -1;
    this.#parentheses = 0;
    this.#blocks = 0;
    this.#words = [];
    if (statement === '') return;
    this.#add('sql', statement, from, COPY_FROM_STDIN.test(statement) ? this.#copyData() : 0);
  }

  /** Passes over the data below a COPY, and counts its lines. */
  #copyData(): number {
    let rows = 0;
    this.#at = this.#lineEnd() + 1;
    while (this.#at < this.#text.length) {
      const end = this.#lineEnd();
      const line = this.#text.slice(this.#at, end);
      this.#at = end + 1;
      if (line === '\\.') break;
      rows++;
    }
    return rows;
  }

  #lineEnd(): number {
    const end = this.#text.indexOf('\n', this.#at);
    return end < 0 ? this.#text.length : end;
  }

  #add(kind: FilePart['kind'], text: string, at: number, copyRows: number): void {
    this.#parts.push({ kind, text, line: lineAt(this.#text, at), copyRows });
  }
}

/** 1-based. */
export function lineAt(text: string, at: number): number {
  let line = 1;
  for (let index = text.indexOf('\n'); index >= 0 && index < at; index = text.indexOf('\n', index + 1))
    line++;
  return line;
}

function match(pattern: RegExp, text: string, at: number): string | null {
  pattern.lastIndex = at;
  return pattern.exec(text)?.[0] ?? null;
}
