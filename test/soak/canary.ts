import Database from 'better-sqlite3';
import type pg from 'pg';
import { waitUntil } from '../helpers/wait-until.ts';
import type { RawSlot } from './raw-slot.ts';

/** Milliseconds over one phase. */
export interface Delays {
  readonly p50: number;
  readonly p99: number;
  readonly max: number;
}

export interface PhaseReport {
  /** How long the application's COMMIT took. */
  readonly commitMs: Delays;
  /** From the return of COMMIT to the row in the replica's file; 0 if it was there already. */
  readonly visibleMs: Delays;
}

/** What of that is the server's part, and what is not. */
export interface SharedPhaseReport extends PhaseReport {
  /** From the return of COMMIT until the server sent the row to a slot that does nothing with it. */
  readonly sentMs: Delays;
  /** From there to the row in the replica's file. */
  readonly behindSentMs: Delays;
}

const INTERVAL_MS = 25;

/** Writes rows to a table of its own, one at a time, and watches how soon each is in a replica's file. */
export class Canary {
  readonly #client: pg.Client;
  readonly #file: Database.Database;
  readonly #newest: Database.Statement<[], number | null>;
  #id = 0;

  /** Before the replica's file is made. */
  static async createTable(client: pg.Client): Promise<void> {
    await client.query('create table canary (id int primary key)');
  }

  constructor(client: pg.Client, file: string) {
    this.#client = client;
    this.#file = new Database(file, { readonly: true });
    this.#newest = this.#file.prepare<[], number | null>('select max(id) from canary').pluck();
  }

  /** Until the condition holds; `beside` runs along with each row. */
  async watch(
    until: () => boolean,
    beside: () => Promise<unknown> = async () => undefined,
  ): Promise<PhaseReport> {
    const { commitMs, visibleMs } = await this.#watch(until, beside, null);
    return { commitMs: delays(commitMs), visibleMs: delays(visibleMs) };
  }

  /** The same, with the server's part: `slot` watches the table. */
  async watchBeside(slot: RawSlot, until: () => boolean): Promise<SharedPhaseReport> {
    const { commitMs, visibleMs, sentMs } = await this.#watch(until, async () => undefined, slot);
    return {
      commitMs: delays(commitMs),
      visibleMs: delays(visibleMs),
      sentMs: delays(sentMs),
      behindSentMs: delays(visibleMs.map((ms, index) => Math.max(0, ms - sentMs[index]!))),
    };
  }

  async #watch(until: () => boolean, beside: () => Promise<unknown>, slot: RawSlot | null) {
    const commitMs: number[] = [];
    const visibleMs: number[] = [];
    const sentMs: number[] = [];
    while (!until()) {
      const id = ++this.#id;
      const other = beside();
      const startedMs = performance.now();
      await this.#client.query('insert into canary values ($1)', [id]);
      const committedMs = performance.now();
      commitMs.push(committedMs - startedMs);
      await waitUntil(`row ${id} in the replica`, () => (this.#newest.get() ?? 0) >= id, { intervalMs: 1 });
      visibleMs.push(performance.now() - committedMs);
      await other;
      if (slot !== null) {
        const arrivedMs = await waitUntil(`row ${id} in the second slot`, () => slot.arrivedMs(id), {
          intervalMs: 1,
        });
        sentMs.push(Math.max(0, arrivedMs - committedMs));
      }
      await waitUntil('the next round', () => performance.now() - startedMs >= INTERVAL_MS, {
        intervalMs: 5,
      });
    }
    return { commitMs, visibleMs, sentMs };
  }

  close(): void {
    this.#file.close();
  }
}

function delays(values: number[]): Delays {
  const sorted = values.toSorted((a, b) => a - b);
  const at = (part: number): number =>
    Math.round(10 * (sorted[Math.min(sorted.length - 1, Math.floor(part * sorted.length))] ?? 0)) / 10;
  return { p50: at(0.5), p99: at(0.99), max: at(1) };
}
