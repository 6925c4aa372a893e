import { setTimeout as delay } from 'node:timers/promises';
import type { ChangeLog } from '../changelog/change-log.ts';
import { type Lsn, parseLsn } from '../lsn.ts';
import type { BaseWriter } from '../snapshot/base-writer.ts';
import type { RereadRequest } from '../source/catalog.ts';
import { connect, disconnect } from '../source/connection.ts';
import { hasReloads, type SchemaTracker } from '../source/schema-tracker.ts';
import { REREAD_PREFIX } from '../source/transaction-encoder.ts';

const POLL_MS = 20;
/** How much of the log is read at a time. */
const READ_BYTES = 1024 * 1024;

export interface CopyAnewOptions {
  readonly url: string;
  readonly publication: string;
  /** See readMessageKey(). */
  readonly messageKey: string;
  /** Tables (OIDs) of which the initial copy has not got the rows. */
  readonly oids: readonly number[];
  /** The base file that is being built, up to where the log begins. */
  readonly builder: BaseWriter;
  readonly changeLog: ChangeLog;
  /** Moved along by the stream, which goes into the log meanwhile. */
  readonly schema: SchemaTracker;
  readonly signal: AbortSignal;
}

/**
 * Has tables that the initial copy could not read read again beside the stream, and brings the base file forward
 * until they are whole in it: it must not be anybody's before that.
 */
export async function copyAnew(options: CopyAnewOptions): Promise<void> {
  const { builder, changeLog, schema, signal } = options;
  const cursor = changeLog.openCursor(changeLog.oldestPosition);
  const askedAt = await ask(options);
  for (let isWhole = false; !isWhole; ) {
    signal.throwIfAborted();
    // The tracker knows first; what counts is that the log has the last row.
    isWhole =
      changeLog.position >= askedAt && schema.reloads.size === 0 && !hasReloads(changeLog.sourceState);
    for (let frames = cursor.next(READ_BYTES); frames !== null; frames = cursor.next(READ_BYTES)) {
      await builder.write(frames);
      // Reading the log is synchronous; the stream must not wait for all of it.
      await new Promise((resolve) => setImmediate(resolve));
    }
    if (!isWhole) await delay(POLL_MS, undefined, { signal });
  }
}

/** Writes the request into the stream; resolves with a position behind it. */
async function ask({ url, publication, messageKey, oids }: CopyAnewOptions): Promise<Lsn> {
  const client = await connect(url, { applicationName: 'rivulet copy' });
  try {
    const request: RereadRequest = { publication, oids };
    // With an asynchronous commit it would be sent only when the WAL writer comes by.
    await client.query('set synchronous_commit = local');
    await client.query("select pg_logical_emit_message(true, $1, convert_to($2, 'UTF8'))", [
      REREAD_PREFIX,
      JSON.stringify({ key: messageKey, ...request }),
    ]);
    const { rows } = await client.query('select pg_current_wal_flush_lsn()::text as lsn');
    return parseLsn(rows[0].lsn);
  } finally {
    await disconnect(client);
  }
}
