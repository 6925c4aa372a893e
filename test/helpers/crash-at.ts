/**
 * Preloaded into every thread of a process that is to die at one exact point (see crash-point.ts): wraps the
 * calls that the point lies at, so that the sources need to know nothing of it.
 */
import fs from 'node:fs';
import { syncBuiltinESMExports } from 'node:module';
import { Socket } from 'node:net';
import Database from 'better-sqlite3';
import { type CrashPoint, NO_SYNC_RETURNS } from './crash-point.ts';

const POLL_MS = 10;

/** Of a SQLite file. */
const PAGE_BYTES = 4096;

const APPEND = /^INSERT INTO batch /;

const point = JSON.parse(process.env.RIVULET_TEST_CRASH_AT!) as CrashPoint;
const nth = point.nth ?? 1;
let seen = 0;

function die(): never {
  process.kill(process.pid, 'SIGKILL');
  throw new Error('not reached');
}

/** Calls `run`, unless this is the call at which the process dies before, or behind, it. */
function pass<T>(when: 'before' | 'after', isHere: boolean, run: () => T): T {
  if (!isHere || ++seen !== nth) return run();
  if (when === 'before') die();
  run();
  return die();
}

/** Wraps what runs SQL. `onRun` is given the statement, the file and its arguments. */
function wrapStatements(
  onRun: (sql: string, file: string, args: readonly unknown[], run: () => unknown) => unknown,
): void {
  const probe = new Database(':memory:');
  const statements = Object.getPrototypeOf(probe.prepare('select 1')) as Database.Statement;
  probe.close();
  const { run } = statements;
  statements.run = function wrapped(this: Database.Statement, ...args: unknown[]) {
    return onRun(this.source, this.database.name, args, () => run.apply(this, args)) as Database.RunResult;
  };
  const { exec } = Database.prototype;
  Database.prototype.exec = function wrapped(this: Database.Database, sql: string) {
    return onRun(sql, this.name, [], () => exec.call(this, sql)) as Database.Database;
  };
}

switch (point.at) {
  case 'statement': {
    const sql = new RegExp(point.sql);
    const file = new RegExp(point.file);
    wrapStatements((source, name, _args, run) => pass(point.when, sql.test(source) && file.test(name), run));
    break;
  }
  case 'acknowledgement': {
    let endLsn: bigint | null = null;
    wrapStatements((source, _name, args, run) => {
      if (APPEND.test(source) && ++seen === nth) endLsn = args[1] as bigint;
      return run();
    });
    const { write } = Socket.prototype;
    Socket.prototype.write = function wrapped(this: Socket, ...args: Parameters<typeof write>) {
      const [bytes] = args as readonly unknown[];
      // A standby status update in its CopyData message.
      const isStatus =
        Buffer.isBuffer(bytes) && bytes.length === 39 && bytes[0] === 0x64 && bytes[5] === 0x72;
      if (endLsn !== null && isStatus && bytes.readBigUInt64BE(6) >= endLsn) die();
      return write.apply(this, args);
    } as typeof write;
    break;
  }
  case 'power cut': {
    let file = '';
    let syncedBytes = 0;
    let isHeld = false;
    const { when } = point;
    wrapStatements((source, name, _args, run) => {
      if (APPEND.test(source)) {
        seen++;
        file = `${name}-wal`;
      }
      return run();
    });
    const { fdatasync, fdatasyncSync } = fs;
    fs.fdatasyncSync = (fd) => {
      syncedBytes = fs.fstatSync(fd).size;
      fdatasyncSync(fd);
    };
    fs.fdatasync = ((fd: number, done: fs.NoParamCallback) => {
      if (seen < nth) {
        const { size } = fs.fstatSync(fd);
        fdatasync(fd, (error) => {
          if (error === null) syncedBytes = size;
          done(error);
        });
        return;
      }
      if (isHeld) return;
      isHeld = true;
      console.error(NO_SYNC_RETURNS);
      setInterval(() => {
        if (!fs.existsSync(when)) return;
        fs.truncateSync(file, syncedBytes);
        die();
      }, POLL_MS);
    }) as typeof fs.fdatasync;
    break;
  }
  case 'failed sync': {
    const { fdatasync } = fs;
    fs.fdatasync = ((fd: number, done: fs.NoParamCallback) => {
      if (++seen !== nth) fdatasync(fd, done);
      else setImmediate(done, Object.assign(new Error('EIO: i/o error, fdatasync'), { code: 'EIO' }));
    }) as typeof fs.fdatasync;
    break;
  }
  case 'rename': {
    const file = new RegExp(point.file);
    const { renameSync } = fs;
    fs.renameSync = (from, to) => pass(point.when, file.test(String(from)), () => renameSync(from, to));
    break;
  }
  case 'page write': {
    const { writeSync } = fs;
    fs.writeSync = ((fd: number, bytes: Uint8Array, offset: number, length: number, position: number) =>
      pass('after', length >= PAGE_BYTES && position !== undefined, () =>
        writeSync(fd, bytes, offset, length, position),
      )) as typeof writeSync;
    break;
  }
  case 'file write': {
    const { write, writev } = fs;
    fs.write = ((...args: Parameters<typeof write>) =>
      pass('after', true, () => write(...args))) as typeof write;
    fs.writev = ((...args: Parameters<typeof writev>) =>
      pass('after', true, () => writev(...args))) as typeof writev;
    break;
  }
}
syncBuiltinESMExports();
