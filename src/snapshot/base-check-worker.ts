import { parentPort, workerData } from 'node:worker_threads';
import Database from 'better-sqlite3';
import { formatChecksum } from '../replica/page-checksum.ts';
import { loadSqlite } from '../replica/sqlite-thread.ts';
import { checksumOf, readChecksum, writeChecksum } from './file-checksum.ts';

export interface CheckTask {
  readonly file: string;
}

/** `damage`: what is wrong with the file, or null. */
export interface CheckReply {
  readonly checksum: string;
  readonly damage: string | null;
}

/** https://www.sqlite.org/rescode.html */
const DAMAGE = /^SQLITE_(CORRUPT|NOTADB)/;

/**
 * A process that ended while it changed the file left no checksum: then SQLite's own check has to do. Throws what
 * says nothing of the file, and only keeps it from being looked at: the disk is full, somebody else has it.
 */
function structuralDamage(file: string): string | null {
  try {
    const db = new Database(file, { fileMustExist: true });
    try {
      const [{ busy }] = db.pragma('wal_checkpoint(TRUNCATE)') as [{ busy: number }];
      // The checksum is to be that of a file without a WAL.
      if (busy !== 0) throw new Error('another program has the file open');
      const answer = db.pragma('quick_check(1)', { simple: true }) as string;
      return answer === 'ok' ? null : answer;
    } finally {
      db.close();
    }
  } catch (error) {
    const { code, message } = error as { readonly code?: unknown; readonly message: string };
    if (!DAMAGE.test(String(code))) throw error;
    return message;
  }
}

const { file } = workerData as CheckTask;
loadSqlite(parentPort!);
const expected = readChecksum(file);
const structural = expected === null ? structuralDamage(file) : null;
const checksum = formatChecksum(checksumOf(file));
const damage =
  expected === null || expected === checksum ? structural : 'its content is not what was written';
if (expected === null && damage === null) writeChecksum(file, checksum);
parentPort!.postMessage({ checksum, damage } satisfies CheckReply);
