import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/** A user without privileges: PgBouncer refuses to run as root. */
const NOBODY = 65534;

/** Whether the machine has PgBouncer; the registry has none. */
export const hasPgBouncer: boolean = spawnSync('pgbouncer', ['--version']).status === 0;

export interface PgBouncer extends AsyncDisposable {
  readonly url: string;
}

/** PgBouncer in transaction mode before a server: each transaction gets whichever of `size` connections is free. */
export async function startPgBouncer(postgresUrl: string, size: number): Promise<PgBouncer> {
  const { hostname, port, username, password, pathname } = new URL(postgresUrl);
  const dir = mkdtempSync(join(tmpdir(), 'rivulet-pgbouncer-'));
  chmodSync(dir, 0o755);
  const own = await freePort();
  const config = join(dir, 'pgbouncer.ini');
  writeFileSync(
    config,
    `[databases]
${pathname.slice(1)} = host=${hostname} port=${port} user=${username} password=${decodeURIComponent(password)}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = ${own}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = ${size}
server_round_robin = 1
`,
    { mode: 0o644 },
  );
  const identity = process.getuid?.() === 0 ? { uid: NOBODY, gid: NOBODY } : {};
  const child = spawn('pgbouncer', [config], { ...identity, stdio: ['ignore', 'ignore', 'pipe'] });
  await said(child, 'process up');
  return {
    url: `postgres://any@127.0.0.1:${own}${pathname}`,
    async [Symbol.asyncDispose]() {
      if (child.exitCode === null) {
        const exited = once(child, 'exit');
        child.kill('SIGQUIT');
        await exited;
      }
      rmSync(dir, { recursive: true, force: true });
    },
  };
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as { port: number };
  server.close();
  await once(server, 'close');
  return port;
}

function said(child: ChildProcess, words: string): Promise<void> {
  let text = '';
  return new Promise((resolve, reject) => {
    child.stderr!.setEncoding('utf8').on('data', (chunk: string) => {
      text += chunk;
      if (text.includes(words)) resolve();
    });
    child.once('exit', () => reject(new Error(`PgBouncer ended: ${text}`)));
  });
}
