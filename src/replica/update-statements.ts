import type { Statement } from 'better-sqlite3';
import type { WrittenTable } from './written-table.ts';

/** UPDATE statements of one table for different sets of columns; more shapes than this are rare. */
const MAX_STATEMENTS = 64;

/** The UPDATE statements of one table that set some of its columns, prepared when they are first needed. */
export class UpdateStatements {
  readonly #table: WrittenTable;
  readonly #statements = new Map<string, Statement>();

  constructor(table: WrittenTable) {
    this.#table = table;
  }

  /** Sets these columns; the locator's values stand behind theirs. */
  byLocator(columns: readonly number[]): Statement {
    return this.#get(columns, 'locator', `WHERE ${this.#table.whereLocators}`);
  }

  /** Sets these columns of one of the rows that `where` finds. */
  byRow(columns: readonly number[], where: string): Statement {
    return this.#get(columns, 'row', `${where} LIMIT 1`);
  }

  #get(columns: readonly number[], how: string, where: string): Statement {
    const shape = `${how} ${columns.join()}`;
    let statement = this.#statements.get(shape);
    if (statement === undefined) {
      if (this.#statements.size >= MAX_STATEMENTS)
        this.#statements.delete(this.#statements.keys().next().value!);
      statement = this.#table.db.prepare(
        `UPDATE ${this.#table.name} SET ${this.#assignments(columns)} ${where}`,
      );
    } else {
      this.#statements.delete(shape);
    }
    // Last in the Map is the most recently used.
    this.#statements.set(shape, statement);
    return statement;
  }

  #assignments(columns: readonly number[]): string {
    const { columns: names, locators } = this.#table;
    // With nothing to set the row must be found all the same.
    const own = names[locators[0] ?? 0];
    return columns.length === 0
      ? `${own} = ${own}`
      : columns.map((column) => `${names[column]} = ?`).join(', ');
  }
}
