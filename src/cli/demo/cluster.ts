import { randomBytes } from 'node:crypto';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { RivuletError } from '../../errors.ts';
import type { FollowerStatus } from '../../fanout/follower-registry.ts';
import { formatLsn, type Lsn } from '../../lsn.ts';
import { ReplicaPositionReader } from '../../read/position-reader.ts';
import { fetchStatus } from '../replicator-client.ts';
import { RivuletChild } from './child.ts';
import type { ReplicaView } from './dashboard.ts';

/** Further behind than this, a replica is shown as catching up. */
const CATCHING_UP_BYTES = 256 * 1024;
const REACH_TIMEOUT_MS = 60_000;

const NOTES_PROGRAM = fileURLToPath(
  new URL(
    import.meta.url.endsWith('.ts') ? '../../../examples/notes/app.ts' : '../../examples/notes/app.js',
    import.meta.url,
  ),
);

export interface DemoReplica {
  readonly name: string;
  readonly file: string;
  child: RivuletChild;
  state: ReplicaView['state'];
}

/** The demo's processes: one replicator, and the replicas that follow it. */
export class Cluster implements AsyncDisposable {
  readonly #dir: string;
  readonly #environment: Readonly<Record<string, string>>;
  readonly #token = randomBytes(18).toString('base64url');
  readonly #replicas: DemoReplica[] = [];
  #replicator: RivuletChild | null = null;
  #notes: RivuletChild | null = null;
  #url = '';
  #followers: readonly FollowerStatus[] = [];

  constructor(dir: string, postgresUrl: string) {
    this.#dir = dir;
    // Not as flags: the list of processes would show them.
    this.#environment = { RIVULET_POSTGRES: postgresUrl, RIVULET_TOKEN: this.#token };
  }

  get replicas(): readonly DemoReplica[] {
    return this.#replicas;
  }

  get url(): string {
    return this.#url;
  }

  async startReplicator(signal: AbortSignal): Promise<void> {
    this.#replicator = new RivuletChild({
      args: ['replicator', '--data', join(this.#dir, 'replicator'), '--listen', '127.0.0.1:0'],
      environment: this.#environment,
      logFile: join(this.#dir, 'replicator.log'),
    });
    this.#url = urlIn(await this.#replicator.ready(signal));
  }

  /** The example app, with a file of its own; gives its URL. */
  async startNotes(postgresUrl: string, signal: AbortSignal): Promise<string> {
    this.#notes = new RivuletChild({
      program: NOTES_PROGRAM,
      args: [],
      environment: {
        DATABASE_URL: postgresUrl,
        REPLICATOR_URL: this.#url,
        RIVULET_TOKEN: this.#token,
        NOTES_FILE: join(this.#dir, 'notes.db'),
        PORT: '0',
      },
      logFile: join(this.#dir, 'notes.log'),
    });
    return urlIn(await this.#notes.ready(signal));
  }

  /** Starts replica number `index`, for the first time or again. Does not wait for it. */
  startReplica(index: number): DemoReplica {
    const name = `node-${index + 1}`;
    const file = join(this.#dir, `${name}.db`);
    const child = new RivuletChild({
      args: ['replica', '--file', file, '--replicator', this.#url, '--name', name],
      environment: { RIVULET_TOKEN: this.#token },
      logFile: join(this.#dir, `${name}.log`),
    });
    const replica = this.#replicas[index] ?? { name, file, child, state: 'starting' };
    replica.child = child;
    replica.state = 'starting';
    this.#replicas[index] = replica;
    return replica;
  }

  /** Asks the replicator how the replicas are; what it said last stays if it does not answer. */
  async refresh(signal: AbortSignal): Promise<void> {
    const status = await fetchStatus(this.#url, { token: this.#token, signal }).catch(() => null);
    if (status !== null) this.#followers = status.followers;
  }

  view(walEnd: Lsn | null): ReplicaView[] {
    return this.#replicas.map((replica) => {
      const follower = this.#followers.find((each) => each.name === replica.name);
      const position = this.position(replica);
      const lagBytes = walEnd === null || position === null ? null : Math.max(0, Number(walEnd - position));
      const isBehind = replica.state === 'live' && lagBytes !== null && lagBytes > CATCHING_UP_BYTES;
      return {
        name: replica.name,
        pid: replica.child.pid,
        state: isBehind ? 'catching up' : replica.state,
        position: position === null ? null : formatLsn(position),
        lagMs: follower?.lagMs ?? { p50: null, p99: null },
        lagBytes,
      };
    });
  }

  /** What the file itself says. */
  position(replica: DemoReplica): Lsn | null {
    try {
      using reader = new ReplicaPositionReader(replica.file);
      return reader.read().lsn;
    } catch {
      return null;
    }
  }

  /** Resolves once the file contains everything up to `target`. */
  async reached(replica: DemoReplica, target: Lsn, signal: AbortSignal): Promise<void> {
    const deadline = performance.now() + REACH_TIMEOUT_MS;
    for (;;) {
      const position = this.position(replica);
      if (position !== null && position >= target) return;
      signal.throwIfAborted();
      this.checkAlive();
      if (performance.now() > deadline) {
        throw new RivuletError(
          'WAIT_TIMEOUT',
          `${replica.name} did not reach ${formatLsn(target)} within ${REACH_TIMEOUT_MS / 1000} s, but ${position === null ? 'nothing' : formatLsn(position)}`,
        );
      }
      await delay(5, undefined, { signal });
    }
  }

  /** Throws if a process has ended that nobody killed. */
  checkAlive(): void {
    if (this.#replicator?.isRunning === false)
      throw new RivuletError('CLOSED', 'the replicator process ended by itself');
    if (this.#notes?.isRunning === false)
      throw new RivuletError('CLOSED', 'the process of the notes app ended by itself');
    const dead = this.#replicas.find((replica) => replica.state !== 'killed' && !replica.child.isRunning);
    if (dead !== undefined) throw new RivuletError('CLOSED', `the process of ${dead.name} ended by itself`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([this.#notes?.stop(), ...this.#replicas.map((replica) => replica.child.stop())]);
    await this.#replicator?.stop();
  }
}

function urlIn(line: string): string {
  const url = /https?:\/\/\S+/.exec(line)?.[0];
  if (url === undefined) throw new RivuletError('PROTOCOL', `a ready line without an address: ${line}`);
  return url.replace(/\/+$/, '');
}
