import { setTimeout as delay } from 'node:timers/promises';
import type { Nodes } from './nodes.ts';

/** Where a random wait lies between, ms. */
type Range = readonly [from: number, to: number];

interface Fault {
  readonly name: string;
  /** How often it comes, beside the others. */
  readonly weight: number;
  readonly happen: () => Promise<void>;
}

/** Between two faults. */
const PAUSE_MS: Range = [30, 300];

/** Breaks what can break, at moments and places that nobody chose, one at a time and some beside each other. */
export class Faults {
  readonly counts: Record<string, number> = {};
  readonly #nodes: Nodes;
  readonly #log: (line: string) => void;
  readonly #faults: readonly Fault[];

  constructor(nodes: Nodes, log: (line: string) => void) {
    this.#nodes = nodes;
    this.#log = log;
    this.#faults = this.#all();
  }

  /** Until the signal; what was stopped goes on then, what was killed has been started again. */
  async run(signal: AbortSignal): Promise<void> {
    const underWay = new Set<Promise<void>>();
    while (!signal.aborted) {
      const fault = this.#choose();
      this.counts[fault.name] = (this.counts[fault.name] ?? 0) + 1;
      this.#log(fault.name);
      const happening = fault.happen().finally(() => underWay.delete(happening));
      underWay.add(happening);
      // Up to two at a time: three of five processes gone is no test of anything but patience.
      if (underWay.size >= 2) await Promise.race(underWay);
      await delay(random(PAUSE_MS), undefined, { signal }).catch(() => undefined);
    }
    await Promise.all(underWay);
  }

  #choose(): Fault {
    let ticket = Math.random() * this.#faults.reduce((sum, { weight }) => sum + weight, 0);
    for (const fault of this.#faults) {
      ticket -= fault.weight;
      if (ticket < 0) return fault;
    }
    return this.#faults[0]!;
  }

  #all(): readonly Fault[] {
    const { links, cluster } = this.#nodes;
    const link = () => pick(links);
    return [
      {
        name: 'a link is slow',
        weight: 50,
        happen: async () => {
          const connections = link().connections;
          for (const each of connections) each.stall('to client');
          await delay(random([5, 200]));
          for (const each of connections) each.resume('to client');
        },
      },
      { name: 'a link is cut', weight: 12, happen: async () => link().cutAll() },
      {
        name: 'a link is away',
        weight: 6,
        happen: async () => {
          const chosen = link();
          chosen.refuse(true);
          chosen.cutAll();
          await delay(random([50, 500]));
          chosen.refuse(false);
        },
      },
      { name: 'a process stands still', weight: 12, happen: () => this.#stop() },
      { name: 'kill -9', weight: 3, happen: () => this.#kill(false) },
      { name: 'kill -9, and its files are gone', weight: 1.5, happen: () => this.#kill(true) },
      {
        name: 'kill -9 of the replicator',
        weight: 1,
        happen: () => this.#nodes.restartReplicator({ withoutData: false }),
      },
      {
        name: "the replicator's connection to Postgres is ended",
        weight: 2,
        happen: async () => {
          await cluster.postgres.sql(
            'select pg_terminate_backend(active_pid) from pg_replication_slots where active',
          );
        },
      },
      {
        name: "an app's connection to Postgres is ended",
        weight: 4,
        happen: async () => {
          await cluster.postgres.sql(
            `select pg_terminate_backend(pid) from (select pid from pg_stat_activity
               where application_name ~ '^(app|behind)-|^rivulet proxy' order by random() limit 1) one`,
          );
        },
      },
    ];
  }

  async #stop(): Promise<void> {
    const processes = this.#nodes.parts.filter(({ isDown }) => !isDown).map((part) => part.process);
    const chosen = pick([...processes, this.#nodes.cluster.replicator!]);
    if (chosen === undefined) return;
    await chosen.kill('SIGSTOP');
    await delay(random([20, 300]));
    await chosen.kill('SIGCONT');
  }

  async #kill(withoutFiles: boolean): Promise<void> {
    const { parts } = this.#nodes;
    const candidates = parts.filter(({ isDown, files }) => !isDown && (!withoutFiles || files.length > 0));
    const part = pick(candidates);
    if (part !== undefined) await this.#nodes.killAndRestart(part, { withoutFiles });
  }
}

function random([from, to]: Range): number {
  return from + Math.random() * (to - from);
}

function pick<T>(all: readonly T[]): T {
  return all[Math.floor(Math.random() * all.length)]!;
}
