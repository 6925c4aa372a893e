import { spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  appendFileSync,
  chmodSync,
  cpSync,
  lchownSync,
  mkdtempSync,
  readdirSync,
  readlinkSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import pg from 'pg';
import { waitUntil } from './wait-until.ts';

/** Settings that a standby must have at least as high as its primary. */
const SHARED_SETTINGS = [
  'max_connections',
  'max_wal_senders',
  'max_worker_processes',
  'max_prepared_transactions',
  'max_locks_per_transaction',
];

/** What neither belongs to another server nor is needed by it. */
const LEFT_OUT = /\/(postmaster\.(pid|opts)|pg_replslot\/.+|pg_stat_tmp\/.+)$/;

export interface HotStandby extends AsyncDisposable {
  readonly url: string;
  readonly client: pg.Client;
}

/** A physical standby of a server on this machine (Linux): copied from it, streaming from it, open for reading. */
export async function startHotStandby(primary: {
  readonly url: string;
  readonly dataDir: string;
  readonly pid: number | null;
}): Promise<HotStandby> {
  const postgres = readlinkSync(`/proc/${primary.pid}/exe`);
  const { uid, gid } = statSync(primary.dataDir);
  const scratch = mkdtempSync(join(tmpdir(), 'rivulet-standby-'));
  const dataDir = join(scratch, 'data');
  const from = new pg.Client({ connectionString: primary.url });
  await from.connect();
  const settings: string[] = [];
  try {
    const { rows: version } = await from.query(
      "select current_setting('server_version_num')::int < 150000 as is_old",
    );
    const [start, stop] = version[0].is_old
      ? ["pg_start_backup('standby', true, false)", 'pg_stop_backup(false)']
      : ["pg_backup_start('standby', true)", 'pg_backup_stop(false)'];
    await from.query(`select ${start}`);
    cpSync(primary.dataDir, dataDir, { recursive: true, filter: (path) => !LEFT_OUT.test(path) });
    const { rows } = await from.query(`select labelfile from ${stop}`);
    writeFileSync(join(dataDir, 'backup_label'), rows[0].labelfile);
    for (const name of SHARED_SETTINGS) {
      const shown = await from.query(`show ${name}`);
      settings.push('-c', `${name}=${shown.rows[0][name]}`);
    }
  } finally {
    await from.end();
  }
  const { hostname, port, username, password } = new URL(primary.url);
  writeFileSync(join(dataDir, 'standby.signal'), '');
  appendFileSync(
    join(dataDir, 'postgresql.auto.conf'),
    `\nprimary_conninfo = 'host=${hostname} port=${port} user=${username} password=${password}'\n`,
  );
  for (const path of readdirSync(scratch, { recursive: true, encoding: 'utf8' }))
    lchownSync(join(scratch, path), uid, gid);
  lchownSync(scratch, uid, gid);
  chmodSync(dataDir, 0o700);
  const ownPort = await freePort();
  const child = spawn(
    postgres,
    [
      ...[
        '-D',
        dataDir,
        '-p',
        `${ownPort}`,
        '-c',
        'listen_addresses=127.0.0.1',
        '-c',
        'unix_socket_directories=',
      ],
      ...settings,
    ],
    { uid, gid, cwd: scratch, stdio: ['ignore', 'ignore', 'pipe'] },
  );
  const kill = (): unknown => child.kill('SIGQUIT');
  process.once('exit', kill);
  let said = '';
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    said = (said + text).slice(-4000);
  });
  const url = new URL(primary.url);
  url.port = `${ownPort}`;
  let client: pg.Client | null = null;
  const close = async (): Promise<void> => {
    await client?.end().catch(() => undefined);
    process.off('exit', kill);
    if (child.exitCode === null && child.signalCode === null) {
      const exited = once(child, 'exit');
      child.kill('SIGINT');
      await exited;
    }
    rmSync(scratch, { recursive: true, force: true });
  };
  try {
    client = await waitUntil('the standby to take connections', async () => {
      if (child.exitCode !== null) throw new Error(`the standby ended:\n${said}`);
      const made = new pg.Client({ connectionString: url.href });
      made.on('error', () => undefined);
      return made.connect().then(
        () => made,
        () => null,
      );
    });
    return { url: url.href, client, [Symbol.asyncDispose]: close };
  } catch (error) {
    await close();
    throw error;
  }
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const address = server.address();
  server.close();
  await once(server, 'close');
  if (address === null || typeof address === 'string') throw new Error('no TCP port was given');
  return address.port;
}
