import { parentPort, workerData } from 'node:worker_threads';
import Database from 'better-sqlite3';
import { formatChecksum } from '../replica/page-checksum.ts';
import { checksumOf, readChecksum, writeChecksum } from './file-checksum.ts';

export interface CheckTask {
  readonly file: string;
}

/** `damage`: what is wrong with the file, or null. */
export interface CheckReply {
  readonly checksum: string;
  readonly damage: string | null;
}

/** A process that ended while it changed the file left no checksum: then SQLite's own check has to do. */
function structuralDamage(file: string): string | null {
  try {
    const db = new Database(file, { fileMustExist: true });
    try {
      db.pragma('wal_checkpoint(TRUNCATE)');
      const answer = db.pragma('quick_check(1)', { simple: true }) as string;
      return answer === 'ok' ? null : answer;
    } finally {
      db.close();
    }
  } catch (error) {
    return (error as Error).message;
  }
}

const { file } = workerData as CheckTask;
const expected = readChecksum(file);
const structural = expected === null ? structuralDamage(file) : null;
const checksum = formatChecksum(checksumOf(file));
const damage =
  expected === null || expected === checksum ? structural : 'its content is not what was written';
if (expected === null && damage === null) writeChecksum(file, checksum);
parentPort!.postMessage({ checksum, damage } satisfies CheckReply);
