import Database from 'better-sqlite3';
import pg from 'pg';
import { Percentiles } from './percentiles.ts';

const READS_PER_ROUND = 20;
const WINDOW = 2_000;

const SQL_COLUMNS = 'select name, country, population, updated_at from city';

/** Measures one and the same read, by primary key: from a replica file in this process, and from Postgres. */
export class ReadProbe {
  readonly sqlite = new Percentiles(WINDOW);
  readonly postgres = new Percentiles(WINDOW);
  readonly #client: pg.Client;
  readonly #database: Database.Database;
  readonly #statement: Database.Statement;
  readonly #cityIds: readonly number[];

  private constructor(client: pg.Client, database: Database.Database, cityIds: readonly number[]) {
    this.#client = client;
    this.#database = database;
    this.#statement = database.prepare(`${SQL_COLUMNS} where id = ?`);
    this.#cityIds = cityIds;
  }

  static async open(url: string, file: string, cityIds: readonly number[]): Promise<ReadProbe> {
    const client = new pg.Client({ connectionString: url, application_name: 'demo reads' });
    client.on('error', () => undefined);
    await client.connect();
    return new ReadProbe(client, new Database(file, { readonly: true, fileMustExist: true }), cityIds);
  }

  /** A few reads of each, on random cities. */
  async round(): Promise<void> {
    for (let index = 0; index < READS_PER_ROUND; index++) {
      const id = this.#cityIds[Math.floor(Math.random() * this.#cityIds.length)]!;
      const startedAt = performance.now();
      this.#statement.get(id);
      this.sqlite.add(performance.now() - startedAt);
    }
    for (let index = 0; index < READS_PER_ROUND; index++) {
      const id = this.#cityIds[Math.floor(Math.random() * this.#cityIds.length)]!;
      const startedAt = performance.now();
      await this.#client.query({ name: 'city-by-id', text: `${SQL_COLUMNS} where id = $1`, values: [id] });
      this.postgres.add(performance.now() - startedAt);
    }
  }

  async close(): Promise<void> {
    this.#database.close();
    await this.#client.end().catch(() => undefined);
  }
}
