import { setTimeout as delay } from 'node:timers/promises';
import type pg from 'pg';
import { heapsOf, type Relation } from '../change/relation.ts';
import { RivuletError } from '../errors.ts';
import type { Log } from '../log.ts';
import { type Lsn, parseLsn } from '../lsn.ts';
import { isVisible, namesOfReadable, relationsAsJson, relationsFromJson } from '../source/catalog.ts';
import { CATALOG_TIMEOUT_MS, connect, disconnect } from '../source/connection.ts';
import { hasEventTriggers } from '../source/migrate.ts';
import { canCall } from '../source/own-functions.ts';
import { judgeContent, judgePublication, readPublication } from '../source/publication.ts';
import { keepPublishedTables, type MisplacedTable } from '../source/published-tables.ts';
import type { SchemaTracker } from '../source/schema-tracker.ts';
import { PartitionFiles } from './partition-files.ts';

/** Without hooks this is how long a change may go unnoticed that no row follows. */
const UNANNOUNCED_INTERVAL_MS = 1_000;
/** With them only partitions, and tables that are being read again, are looked at that often. */
const ANNOUNCED_INTERVAL_MS = 5_000;
/** And all others, because somebody may have changed the catalogs themselves, or switched the hooks off for a while. */
const WHOLE_INTERVAL_MS = 30_000;
/** A large catalog takes seconds: at most a hundredth of the time. */
const WHOLE_PAUSE_FACTOR = 100;
/** Between two looks, however much is told of; a large catalog is looked at less often: at most a tenth of the time. */
const LEAST_PAUSE_MS = 250;
const LEAST_PAUSE_FACTOR = 10;
/** In a row; one or two are everyday, as when somebody keeps a table locked. */
const TOLD_FAILURES = 3;
/** The commit that tells of a change is streamed a moment before other sessions see it. */
const VISIBLE_MS = 50;
/** How long an announcement waits for the locks with which it keeps the tables as it describes them. */
const LOCK_TIMEOUT_MS = 100;

export interface SchemaWatchOptions {
  readonly url: string;
  readonly publication: string;
  readonly schema: SchemaTracker;
  /** Whether the server has the hooks. */
  readonly isAnnounced: () => boolean;
  /** See readMessageKey(). */
  readonly messageKey: () => string;
  /** How far the stream has come. */
  readonly position: () => Lsn;
  readonly log: Log;
  /** Tables that should be in the publication and are not, or the other way round; after every look. */
  readonly onMisplaced: (tables: readonly MisplacedTable[]) => void;
  /** What else is to be seen to now and then, and when something was found. */
  readonly seeTo: (client: pg.Client) => Promise<void>;
  /** Whether the hooks are there and switched on, after every look. */
  readonly onAnnounced: (isAnnounced: boolean) => void;
  /** The publication is not what it was, of which the stream may tell nothing. */
  readonly onGap: (gap: RivuletError) => void;
}

/**
 * Looks at the catalog for changes that the stream did not tell of: any change where the server has no hooks, TRUNCATE
 * of a single partition, which Postgres does not send, what a table that is read again turns out to be, and now and then
 * everything. What it finds it announces itself, by the same message that the hooks write: so it has its place in the
 * stream, and everything behind it follows. And it makes good what the hooks could not do to the publication.
 *
 * The catalog may be ahead of the stream; only what differs once the stream has come as far counts. And a message
 * is true, because the tables in it are locked as for a SELECT until it is committed.
 */
export class SchemaWatch implements AsyncDisposable {
  readonly #options: SchemaWatchOptions;
  readonly #abort = new AbortController();
  readonly #running: Promise<void>;
  #call = new AbortController();
  /** By performance.now(). */
  #wholeDueMs = 0;
  #seeToDueMs = dueAfter(0);
  readonly #partitions: PartitionFiles;

  constructor(options: SchemaWatchOptions) {
    this.#options = options;
    this.#partitions = new PartitionFiles(options.schema, options.log);
    this.#running = this.#run();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#abort.abort();
    await this.#running;
  }

  /** The stream told of a schema change: looks a moment later whether its hook has left something undone. */
  soon(): void {
    this.#call.abort();
  }

  /** A table came of which no hook told: what a hook would have done for it is done now. */
  unannounced(): void {
    this.#seeToDueMs = 0;
    this.soon();
  }

  async #run(): Promise<void> {
    const { signal } = this.#abort;
    const { url, isAnnounced, log } = this.#options;
    let client: pg.Client | null = null;
    let failures = 0;
    const pause = (ms: number, ...calls: AbortSignal[]): Promise<void> =>
      delay(ms, undefined, { signal: AbortSignal.any([signal, ...calls]), ref: false }).catch(
        () => undefined,
      );
    const untilDue = (): Promise<void> =>
      pause(isAnnounced() ? ANNOUNCED_INTERVAL_MS : UNANNOUNCED_INTERVAL_MS, this.#call.signal);
    for (await untilDue(); !signal.aborted; await untilDue()) {
      await pause(VISIBLE_MS);
      this.#call = new AbortController();
      let busyMs = 0;
      try {
        client ??= await connect(url, {
          applicationName: 'rivulet schema',
          lockTimeoutMs: LOCK_TIMEOUT_MS,
          queryTimeoutMs: CATALOG_TIMEOUT_MS,
          signal,
        });
        busyMs = await this.#look(client);
        failures = 0;
      } catch (error) {
        if (signal.aborted) break;
        // The next look comes anyway; that Postgres is out of reach is said by the stream.
        log[++failures === TOLD_FAILURES ? 'warn' : 'debug']({ err: error }, 'looking at the catalog failed');
        if (client !== null) await disconnect(client);
        client = null;
      }
      await pause(Math.max(LEAST_PAUSE_MS, busyMs * LEAST_PAUSE_FACTOR));
    }
    if (client !== null) await disconnect(client);
  }

  /** Returns how long one look took, ms; waiting for the stream to come as far is none of it. */
  async #look(client: pg.Client): Promise<number> {
    const { publication, isAnnounced, schema, log, onMisplaced, onAnnounced, onGap } = this.#options;
    onAnnounced(await hasEventTriggers(client));
    const gap = await this.#gap(client);
    if (gap !== null) {
      onGap(gap);
      return 0;
    }
    const isWhole = !isAnnounced() || performance.now() >= this.#wholeDueMs;
    const find = async (): Promise<Found> =>
      new Map([
        ...(await this.#partitions.emptied(client)),
        ...(await this.#changed(client, isWhole ? null : [...schema.reloads.keys()])),
      ]);
    let busyMs = 0;
    if (performance.now() >= this.#seeToDueMs) {
      // Whatever comes of it, the next look goes on.
      this.#seeToDueMs = dueAfter(0);
      const startedMs = performance.now();
      await this.#options.seeTo(client);
      busyMs += performance.now() - startedMs;
      this.#seeToDueMs = dueAfter(busyMs);
    }
    const said = (message: string): void => log.info(message);
    onMisplaced(await keepPublishedTables({ client, publication, log: said, attempts: 1 }));
    const startedMs = performance.now();
    const found = await find();
    const foundMs = performance.now() - startedMs;
    busyMs += foundMs;
    if (isWhole) this.#wholeDueMs = dueAfter(foundMs);
    if (found.size === 0) return busyMs;
    this.#seeToDueMs = 0;
    await this.#caughtUp(client);
    // What has changed once more meanwhile is about to be told of.
    const oids = [...(await find())].flatMap(([oid, how]) => (found.get(oid) === how ? oid : []));
    if (oids.length === 0) return busyMs;
    await client.query('begin');
    try {
      await lockTables(client, oids);
      const emptied = await this.#partitions.lockEmpty(client, oids);
      const relations = await relationsAsJson(client, publication, oids);
      const message = {
        v: 1,
        key: this.#options.messageKey(),
        publication,
        command: '',
        touched: oids,
        relations,
        emptied,
        unannounced: isWhole,
      };
      if (!isAnnounced() && (await canCall(client, 'forget_routes')))
        await client.query('select rivulet.forget_routes()');
      await client.query("select pg_logical_emit_message(true, 'rivulet', convert_to($1, 'UTF8'))", [
        JSON.stringify(message),
      ]);
      await client.query('commit');
    } catch (error) {
      await client.query('rollback').catch(() => undefined);
      if (isLockTimeout(error)) return busyMs;
      throw error;
    }
    const tables = oids.map((oid) => {
      const relation = schema.relation(oid);
      return relation === undefined ? String(oid) : `${relation.schema}.${relation.name}`;
    });
    log.info({ tables }, 'a change that the stream did not tell of was found in the catalog');
    return busyMs;
  }

  /** Whether something was done to the publication of which the stream does not tell. */
  async #gap(client: pg.Client): Promise<RivuletError | null> {
    const { publication, schema } = this.#options;
    let now = await readPublication(client, publication);
    for (;;) {
      const bereft = judgeContent(publication, schema.relations, now);
      if (bereft !== null) return bereft;
      if (schema.publication === null && now !== null) schema.follow(now);
      if (judgePublication(publication, schema.publication, now) === null) return null;
      await this.#caughtUp(client);
      const followed = schema.publication;
      // A commit that waits for a standby is streamed long before other sessions see it.
      if (followed !== null && followed.alteredBy !== null)
        await this.#untilVisible(client, followed.alteredBy);
      const before = now;
      now = await readPublication(client, publication);
      // Of what was done to it in between the stream may be yet to tell.
      if (now?.oid === before?.oid && now?.alteredBy === before?.alteredBy)
        return judgePublication(publication, followed, now);
    }
  }

  /**
   * Tables (of these OIDs; null: of all) that are not as the stream left them. One that is read again would wait for
   * ever for the shape that the stream tells of, if that were wrong.
   */
  async #changed(client: pg.Client, oids: readonly number[] | null): Promise<Found> {
    if (oids?.length === 0) return new Map();
    const { publication, schema, isAnnounced } = this.#options;
    // Of a rewrite the hooks tell; VACUUM FULL and CLUSTER look the same. Partitions are looked at by themselves.
    const text = (relation: Relation | undefined): string =>
      JSON.stringify(
        relation === undefined || !isAnnounced()
          ? relation
          : {
              ...relation,
              storage: [...heapsOf(relation)].map(([heap, file]) => heap || `0:${file}`).join(' '),
              // REINDEX CONCURRENTLY, of which no event trigger tells, gives the same index another OID.
              indexes: relation.indexes.map(({ oid: _, ...index }) => JSON.stringify(index)).sort(),
            },
      ) ?? '';
    const published = relationsFromJson(await relationsAsJson(client, publication, oids));
    const present = new Set(published.map(({ oid }) => oid));
    const known = oids ?? schema.relations.map(({ oid }) => oid);
    return new Map([
      ...published.flatMap((relation): [number, string][] => {
        const now = text(relation);
        return now === text(schema.relation(relation.oid)) ? [] : [[relation.oid, now]];
      }),
      ...known.flatMap((oid): [number, string][] => (present.has(oid) ? [] : [[oid, 'gone']])),
    ]);
  }

  async #untilVisible(client: pg.Client, xid: number): Promise<void> {
    const { signal } = this.#abort;
    while (!(await isVisible(client, xid))) await delay(10, undefined, { signal });
  }

  /** Waits until the stream has come as far as the server is now. */
  async #caughtUp(client: pg.Client): Promise<void> {
    const { signal } = this.#abort;
    const { rows } = await client.query('select pg_current_wal_insert_lsn()::text as lsn');
    const lsn = parseLsn(rows[0].lsn);
    while (this.#options.position() < lsn) await delay(10, undefined, { signal });
  }
}

/** By performance.now(): when what took so long is due again. */
function dueAfter(busyMs: number): number {
  return performance.now() + Math.max(WHOLE_INTERVAL_MS, busyMs * WHOLE_PAUSE_FACTOR);
}

/** Tables (OIDs) that differ from what the stream has told, and how they are. */
type Found = ReadonlyMap<number, string>;

/**
 * As for a SELECT: nobody can change them until the transaction ends. Those that are gone need none; those that nobody
 * here may read are not kept as they are, but reading them again fails, and is shown.
 */
async function lockTables(client: pg.Client, oids: readonly number[]): Promise<void> {
  for (const name of await namesOfReadable(client, oids))
    await client.query(`lock table ${name} in access share mode`);
}

function isLockTimeout(error: unknown): boolean {
  return error instanceof RivuletError
    ? isLockTimeout(error.cause)
    : (error as { code?: string }).code === '55P03';
}
