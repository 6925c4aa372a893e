import { readdirSync, rmSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { TestCluster } from '../helpers/cluster.ts';
import type { Major } from '../helpers/postgres.ts';
import { nodeProgram, type RivuletProcess, rivulet } from '../helpers/processes.ts';
import { TcpProxy } from '../helpers/tcp-proxy.ts';
import { waitUntil } from '../helpers/wait-until.ts';
import { createTables } from './database.ts';
import type { NodeConfig } from './wire.ts';

const PROGRAM = fileURLToPath(new URL('./node-program.ts', import.meta.url));

/** How the checker comes to what a node answers. */
export type Path = 'library' | 'middleware' | 'proxy';

export interface NodesOptions {
  readonly major: Major;
  readonly sessions: number;
  /** App processes that keep their replicas themselves, with so many each. */
  readonly libraryNodes: readonly number[];
  /** Apps that know nothing, behind a proxy that knows its replica by file or by process. */
  readonly proxyNodes: readonly ('file' | 'process')[];
  /** A read waits for its token at most so long. */
  readonly timeoutMs?: number;
}

/** Longer than any fault but a restart. */
const TOKEN_TIMEOUT_MS = 4_000;

/** A process that can be killed and started again in the same place. */
interface Part {
  readonly name: string;
  process: RivuletProcess;
  readonly start: () => RivuletProcess;
  /** Files that may be gone when it starts again. */
  readonly files: readonly string[];
  isDown: boolean;
}

export interface AppNode {
  readonly name: string;
  readonly path: Path;
  readonly url: string;
  readonly replicas: number;
}

/** Postgres, a replicator, and nodes: every process killable, every link to the replicator breakable. */
export class Nodes implements AsyncDisposable {
  readonly cluster: TestCluster;
  readonly apps: AppNode[] = [];
  /** Between each replica and the replicator. */
  readonly links: TcpProxy[] = [];
  readonly parts: Part[] = [];
  readonly #options: NodesOptions;
  #restarting: Promise<void> = Promise.resolve();
  /** Of the next check: above all that rows have had before. */
  firstVersion = 1;

  private constructor(cluster: TestCluster, options: NodesOptions) {
    this.cluster = cluster;
    this.#options = options;
  }

  get sessions(): number {
    return this.#options.sessions;
  }

  get #timeoutMs(): number {
    return this.#options.timeoutMs ?? TOKEN_TIMEOUT_MS;
  }

  static async start(options: NodesOptions): Promise<Nodes> {
    const cluster = await TestCluster.start({ major: options.major });
    const nodes = new Nodes(cluster, options);
    try {
      await createTables({ query: (text: string) => cluster.postgres.sql(text) } as never, options.sessions);
      await cluster.startReplicator();
      await Promise.all([
        ...options.libraryNodes.map((replicas, index) =>
          nodes.#startLibraryNode(`app-${index + 1}`, replicas),
        ),
        ...options.proxyNodes.map((known, index) => nodes.#startProxyNode(`behind-${index + 1}`, known)),
      ]);
      return nodes;
    } catch (error) {
      await nodes[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** SIGKILL, and a new start once it has ended; without its files where that is asked for. */
  async killAndRestart(part: Part, { withoutFiles }: { readonly withoutFiles: boolean }): Promise<void> {
    part.isDown = true;
    await part.process.kill('SIGKILL');
    if (withoutFiles) for (const file of part.files) removeReplica(file);
    // As whoever looks after a process does: a proxy gives up while the file of its replica is not there.
    await waitUntil(`${part.name} to be ready again`, () => {
      part.process = part.start();
      return part.process.ready.then(
        () => true,
        () => false,
      );
    });
    part.isDown = false;
  }

  /** SIGKILL, and a new start; without its data as after the loss of its disk: a new copy, a new history. */
  async restartReplicator({ withoutData }: { readonly withoutData: boolean }): Promise<void> {
    const { cluster } = this;
    const restart = async (): Promise<void> => {
      await cluster.replicator!.kill('SIGKILL');
      if (withoutData) rmSync(join(cluster.dir, 'data'), { recursive: true, force: true });
      await cluster.startReplicator(withoutData ? { RIVULET_TAKEOVER: 'true' } : {});
    };
    // One after the other.
    this.#restarting = this.#restarting.then(restart);
    await this.#restarting;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const part of this.parts) await part.process[Symbol.asyncDispose]();
    await this.cluster[Symbol.asyncDispose]();
    for (const link of this.links) await link[Symbol.asyncDispose]();
  }

  async #link(): Promise<string> {
    const { replicatorUrl } = this.cluster;
    const link = await TcpProxy.start({ port: Number(new URL(replicatorUrl).port) });
    this.links.push(link);
    return link.through(replicatorUrl);
  }

  /** Starts it, and gives its URL, which it keeps. */
  async #start(
    name: string,
    files: readonly string[],
    start: (port: number) => RivuletProcess,
  ): Promise<string> {
    const first = start(0);
    const part: Part = { name, files, process: first, start: () => start(port), isDown: false };
    this.parts.push(part);
    const url = await first.ready;
    const port = Number(new URL(url).port);
    return url;
  }

  #program(config: NodeConfig): RivuletProcess {
    return nodeProgram(PROGRAM, [JSON.stringify(config)]);
  }

  #config(name: string, port: number): Omit<NodeConfig, 'replicas' | 'plainFile'> {
    return { name, port, postgres: this.cluster.postgres.url, timeoutMs: this.#timeoutMs };
  }

  async #startLibraryNode(name: string, count: number): Promise<void> {
    const replicas: { file: string; replicator: string }[] = [];
    for (let index = 0; index < count; index++)
      replicas.push({ file: this.cluster.file(`${name}-${index}`), replicator: await this.#link() });
    const files = replicas.map(({ file }) => file);
    const url = await this.#start(name, files, (port) =>
      this.#program({ ...this.#config(name, port), replicas, plainFile: null }),
    );
    this.apps.push({ name, path: 'library', url, replicas: count });
    this.apps.push({ name: `${name} (middleware)`, path: 'middleware', url, replicas: 1 });
  }

  async #startProxyNode(name: string, known: 'file' | 'process'): Promise<void> {
    const { cluster } = this;
    const file = cluster.file(name);
    const replicator = await this.#link();
    const replica = await this.#start(`${name} replica`, [file], (port) =>
      rivulet(['replica', '--file', file, '--replicator', replicator, '--listen', `${port}`]),
    );
    const app = await this.#start(`${name} app`, [], (port) =>
      this.#program({ ...this.#config(name, port), replicas: [], plainFile: file }),
    );
    const where = known === 'file' ? ['--file', file] : ['--replica', replica];
    const timeout = ['--timeout', `${this.#timeoutMs}ms`];
    const url = await this.#start(`${name} proxy`, [], (port) =>
      rivulet(
        ['proxy', '--target', app, '--listen', `${port}`, ...where, ...timeout, '--log-level', 'error'],
        {
          RIVULET_POSTGRES: cluster.postgres.url,
        },
      ),
    );
    this.apps.push({ name: `${name} (${known})`, path: 'proxy', url, replicas: 1 });
  }
}

/** The file, its journal, and the generations that it is a link to. */
function removeReplica(file: string): void {
  const name = basename(file);
  for (const entry of readdirSync(dirname(file)))
    if (entry.startsWith(name) && !entry.endsWith('-lock'))
      rmSync(join(dirname(file), entry), { force: true });
}
