import Database from 'better-sqlite3';
import { CHANGE, CHANGE_HEADER_BYTES, FRAME, TAG, TRANSACTION_HEADER_BYTES } from '../../src/change/frame.ts';

/**
 * When the replicator put each commit of createPacedTables() into its log, ms since 1970: by session, and in that by the
 * number of the commit. The log itself says so, for every batch, without costing the run anything.
 */
export function logTimes(file: string, sessions: number): readonly (readonly number[])[] {
  const logged: number[][] = Array.from({ length: sessions }, () => []);
  const db = new Database(file, { readonly: true });
  try {
    const batches = db.prepare<[], { readonly at: number; readonly bytes: Buffer }>(
      'select appended_at as at, bytes from batch order by seq',
    );
    for (const { at, bytes } of batches.iterate()) {
      for (let from = 0, to = 0; from < bytes.length; from = to) {
        to = from + bytes.readUInt32LE(from);
        if (bytes[from + 4] !== FRAME.transaction) continue;
        for (let change = from + TRANSACTION_HEADER_BYTES; change < to; ) {
          const body = change + CHANGE_HEADER_BYTES;
          const [session, commits] = bytes[change] === CHANGE.update ? twoNumbers(bytes, body) : [];
          // A second run counts from 1 again.
          if (session !== undefined) logged[session]![commits!] ??= at;
          change = body + bytes.readUInt32LE(body - 4);
        }
      }
    }
  } finally {
    db.close();
  }
  return logged;
}

/** A row of bench_session. */
function twoNumbers(bytes: Buffer, tuple: number): readonly [number, number] | readonly [] {
  if (bytes.readUInt16LE(tuple) !== 2 || bytes[tuple + 2] !== TAG.int32) return [];
  return [bytes.readInt32LE(tuple + 3), bytes.readInt32LE(tuple + 8)];
}
