import type pg from 'pg';
import { formatLsn, type Lsn, parseLsn } from '../lsn.ts';
import { readMirrorReport } from '../source/catalog.ts';
import { CATALOG_TIMEOUT_MS, connect, disconnect } from '../source/connection.ts';
import { readSlot, type SlotState } from '../source/slot.ts';
import type { PostgresConnection, SlotStatus, TablesStatus } from './status.ts';

const POLL_INTERVAL_MS = 5_000;
/** The rate at which WAL is written is taken over this span. */
const RATE_SPAN_MS = 60_000;
/** Tables come and go rarely; the report of those that are not mirrored is read every so many polls. */
const POLLS_PER_REPORT = 6;
/** A slot that will be lost within this time is a warning, ms. */
const LOSS_WARNING_MS = 60 * 60 * 1000;

interface Sample {
  readonly atMs: number;
  readonly walEnd: Lsn;
}

/** WAL written per millisecond over the samples, or null while there are too few. */
export function walRate(samples: readonly Sample[]): number | null {
  const first = samples[0];
  const last = samples.at(-1);
  if (first === undefined || last === undefined || last.atMs <= first.atMs) return null;
  return Number(last.walEnd - first.walEnd) / (last.atMs - first.atMs);
}

/** Watches the server from the outside: what the slot retains, how long that can go on, what is not mirrored. */
export class SourceMonitor {
  readonly #options: { readonly url: string; readonly slot: string; readonly publication: string };
  readonly #timer: NodeJS.Timeout;
  readonly #abort = new AbortController();
  #client: pg.Client | null = null;
  #polling: Promise<void> | null = null;
  #polls = 0;
  #samples: Sample[] = [];
  #version: string | null = null;
  #database: string | null = null;
  #walEnd: Lsn | null = null;
  #asOf: string | null = null;
  #slot: SlotState | null = null;
  #notMirrored: TablesStatus['notMirrored'] = [];

  constructor(options: { readonly url: string; readonly slot: string; readonly publication: string }) {
    this.#options = options;
    this.#timer = setInterval(() => this.poll(), POLL_INTERVAL_MS);
    this.#timer.unref();
  }

  get current(): {
    readonly postgres: Pick<PostgresConnection, 'version' | 'database' | 'walEnd' | 'asOf'>;
    readonly slot: SlotStatus;
    readonly notMirrored: TablesStatus['notMirrored'];
  } {
    const slot = this.#slot;
    return {
      postgres: {
        version: this.#version,
        database: this.#database,
        walEnd: this.#walEnd === null ? null : formatLsn(this.#walEnd),
        asOf: this.#asOf,
      },
      slot: {
        name: this.#options.slot,
        active: slot?.active ?? null,
        walStatus: slot?.walStatus ?? null,
        retainedBytes: slot?.retainedBytes ?? null,
        safeWalBytes: slot?.safeWalBytes ?? null,
        lostInMs: this.#lostInMs(),
      },
      notMirrored: this.#notMirrored,
    };
  }

  get warnings(): readonly string[] {
    const lostInMs = this.#lostInMs();
    if (this.#slot?.walStatus === 'lost') return [`the slot ${this.#options.slot} is lost`];
    if (lostInMs !== null && lostInMs < LOSS_WARNING_MS) {
      return [
        `the slot ${this.#options.slot} will be lost in about ${Math.round(lostInMs / 60_000)} min at the present rate`,
      ];
    }
    return [];
  }

  /** Reads the server's state now; polls never overlap. A server that is away leaves the last state standing. */
  poll(): Promise<void> {
    this.#polling ??= this.#poll().finally(() => {
      this.#polling = null;
    });
    return this.#polling;
  }

  async close(): Promise<void> {
    clearInterval(this.#timer);
    this.#abort.abort();
    await this.#polling;
    await this.#disconnect();
  }

  async #poll(): Promise<void> {
    const { url, slot, publication } = this.#options;
    try {
      if (this.#client === null) {
        const made = await connect(url, {
          applicationName: 'rivulet monitor',
          queryTimeoutMs: CATALOG_TIMEOUT_MS,
          signal: this.#abort.signal,
        });
        made.on('error', () => {
          this.#client = null;
        });
        this.#client = made;
      }
      const client = this.#client;
      const { rows } = await client.query(
        `select current_setting('server_version') as version, current_database() as database,
                (case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end)::text as wal_end`,
      );
      this.#version = rows[0].version;
      this.#database = rows[0].database;
      this.#walEnd = parseLsn(rows[0].wal_end);
      this.#slot = await readSlot(client, slot);
      const atMs = performance.now();
      this.#samples = [
        ...this.#samples.filter((sample) => atMs - sample.atMs < RATE_SPAN_MS),
        { atMs, walEnd: this.#walEnd },
      ];
      if (this.#polls++ % POLLS_PER_REPORT === 0)
        this.#notMirrored = (await readMirrorReport(client, publication)).notMirrored;
      this.#asOf = new Date().toISOString();
    } catch {
      // The pipeline says why Postgres cannot be reached; here the last state simply grows old.
      this.#slot = this.#slot === null ? null : { ...this.#slot, active: false };
      await this.#disconnect();
    }
  }

  async #disconnect(): Promise<void> {
    if (this.#client !== null) await disconnect(this.#client);
    this.#client = null;
  }

  #lostInMs(): number | null {
    const safe = this.#slot?.safeWalBytes ?? null;
    const rate = walRate(this.#samples);
    if (safe === null || rate === null || rate <= 0) return null;
    return Math.max(0, Math.round(safe / rate));
  }
}
