import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync } from 'node:fs';
import { basename, extname, join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import Database from 'better-sqlite3';
import type { BenchContext } from './bench-case.ts';
import type { Goal } from './bench-server.ts';
import { monotonicMs } from './monotonic-clock.ts';
import { groupUsage } from './process-usage.ts';
import type { RunningSystem, System, SystemOptions } from './system.ts';

/** Content costs more to look at than a position. */
const POLL_INTERVAL_MS = 20;
const DEADLINE_MS = 600_000;
const SHOWN_STDERR_LENGTH = 8000;

/** What Node runs itself; anything else is executed. */
const SCRIPTS = new Set(['.ts', '.js', '.mjs', '.cjs']);

/**
 * Other programs that keep a SQLite file like a Postgres database, from `--peer-script`. Such a program is given
 *
 *   BENCH_POSTGRES_URL  the server, with wal_level=logical; publication and slot are its own to make
 *   BENCH_SLOT          a name for its replication slot
 *   BENCH_FILE          the SQLite file: tables under the names that they have in the schema `public`
 *   BENCH_DIRECTORY     for whatever else it keeps
 *
 * and has to copy what is there, follow what comes, end on SIGTERM, and go on from where it was when it is started
 * again. All processes of its group count.
 */
export function peers(options: SystemOptions & Pick<BenchContext, 'peerScripts'>): System[] {
  return options.peerScripts.map((script, index) => {
    const directory = `${options.directory}-${index}`;
    const file = join(directory, 'peer.db');
    const name = basename(script, extname(script));
    const slot = `${options.slot}_${index}`;
    return {
      name,
      slot,
      file,
      async start() {
        mkdirSync(directory, { recursive: true });
        return run(name, script, file, {
          BENCH_POSTGRES_URL: options.url,
          BENCH_SLOT: slot,
          BENCH_FILE: file,
          BENCH_DIRECTORY: directory,
        });
      },
    };
  });
}

function run(
  name: string,
  script: string,
  file: string,
  env: Readonly<Record<string, string>>,
): RunningSystem {
  const startedMs = monotonicMs();
  const [command, args] = SCRIPTS.has(extname(script)) ? [process.execPath, [script]] : [script, []];
  const child = spawn(command, args, {
    // A group of its own, whatever it starts.
    detached: true,
    stdio: ['ignore', 'ignore', 'pipe'],
    env: { ...process.env, NODE_OPTIONS: '', ...env },
  });
  let said = '';
  let isStopping = false;
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    said = (said + text).slice(-SHOWN_STDERR_LENGTH);
  });
  const exited = once(child, 'close');
  const died = exited.then(([code]) => {
    if (!isStopping) throw new Error(`${name} ended by itself with ${code}:\n${said}`);
  });
  died.catch(() => undefined);
  const killGroup = (signal: NodeJS.Signals): void => {
    try {
      process.kill(-child.pid!, signal);
    } catch {
      // It has ended.
    }
  };
  const killAtExit = (): void => killGroup('SIGKILL');
  process.once('exit', killAtExit);
  const usage = () => [groupUsage(name, child.pid!)];

  async function end(signal: NodeJS.Signals): Promise<void> {
    isStopping = true;
    killGroup(signal);
    await exited;
    process.off('exit', killAtExit);
  }

  return {
    replicatorUrl: null,
    usage,
    async reached({ content }: Goal) {
      const deadlineMs = monotonicMs() + DEADLINE_MS;
      while (monotonicMs() < deadlineMs) {
        if (readNumber(file, content.sql) >= content.atLeast) return monotonicMs() - startedMs;
        await Promise.race([delay(POLL_INTERVAL_MS), died]);
      }
      throw new Error(`${name} did not get to ${content.sql} = ${content.atLeast}\n${said}`);
    },
    async stop() {
      // One that has ended by itself would not have kept up either.
      await Promise.race([died, Promise.resolve()]);
      const used = usage();
      await end('SIGTERM');
      return used;
    },
    [Symbol.asyncDispose]: () => end('SIGKILL'),
  };
}

/** -1 while there is no such file or table. */
function readNumber(file: string, sql: string): number {
  try {
    const db = new Database(file, { readonly: true, fileMustExist: true });
    try {
      return Number(db.prepare(sql).pluck().get() ?? -1);
    } finally {
      db.close();
    }
  } catch {
    return -1;
  }
}
