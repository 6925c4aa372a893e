import type pg from 'pg';
import { connect, disconnect } from './connection.ts';

/** The connection is kept for so long after somebody waited. */
const IDLE_MS = 30_000;

/** Who waits does not wait for this: the server's own WAL writer comes by. */
const FLUSH_TIMEOUT_MS = 10_000;

/** What waits shorter than this in any case need not ask the server. */
const LEAST_MS_BETWEEN_LOOKS = 2;

/** Not the hooks' prefix: the stream passes over these. */
const PREFIX = 'rivulet flush';

/**
 * Makes the server flush what is in its WAL buffers. With synchronous_commit = off a commit is sent on only after
 * the WAL writer has come by (wal_writer_delay, and up to three times that): a reader who waits for it would pay
 * some 200 ms. Whoever commits pays nothing here, and a server that has nothing to flush is only asked.
 *
 * https://www.postgresql.org/docs/current/wal-async-commit.html
 */
export class WalFlusher {
  readonly #url: string;
  #client: pg.Client | null = null;
  #sql: string | null = null;
  #running: Promise<boolean> | null = null;
  #lookedAtMs = Number.NEGATIVE_INFINITY;
  #idle: NodeJS.Timeout | undefined;
  readonly #abort = new AbortController();

  constructor(url: string) {
    this.#url = url;
  }

  /** True if there was something to flush, and it was flushed. Never rejects: the stream says what is wrong. */
  flush(): Promise<boolean> {
    if (this.#abort.signal.aborted) return Promise.resolve(false);
    if (this.#running === null && performance.now() - this.#lookedAtMs < LEAST_MS_BETWEEN_LOOKS)
      return Promise.resolve(false);
    this.#running ??= this.#flush()
      .catch(() => {
        this.#drop();
        return false;
      })
      .finally(() => {
        this.#running = null;
        this.#lookedAtMs = performance.now();
      });
    return this.#running;
  }

  async close(): Promise<void> {
    this.#abort.abort();
    await this.#running;
    this.#drop();
  }

  async #flush(): Promise<boolean> {
    clearTimeout(this.#idle);
    this.#client ??= await this.#connect();
    const { rowCount } = await this.#client.query({ name: 'flush', text: this.#sql! });
    this.#idle = setTimeout(() => this.#drop(), IDLE_MS);
    this.#idle.unref();
    return rowCount !== 0;
  }

  async #connect(): Promise<pg.Client> {
    const client = await connect(this.#url, {
      applicationName: 'rivulet flush',
      queryTimeoutMs: FLUSH_TIMEOUT_MS,
      signal: this.#abort.signal,
    });
    const { rows } = await client.query(`select current_setting('server_version_num')::int as version`);
    // Before 17 a message cannot be flushed by itself; the commit of a transaction that holds one can.
    const flushes =
      rows[0].version >= 170000
        ? `pg_logical_emit_message(false, '${PREFIX}', '', true)`
        : `set_config('synchronous_commit', 'local', true), pg_logical_emit_message(true, '${PREFIX}', '')`;
    this.#sql = `select ${flushes} where pg_current_wal_insert_lsn() > pg_current_wal_flush_lsn()`;
    return client;
  }

  #drop(): void {
    clearTimeout(this.#idle);
    const client = this.#client;
    this.#client = null;
    if (client !== null) void disconnect(client);
  }
}
