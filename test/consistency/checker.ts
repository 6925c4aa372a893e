import { Agent, request } from 'node:http';
import { setTimeout as delay } from 'node:timers/promises';
import { Faults } from './faults.ts';
import { SessionHistory, type Violation, type ViolationKind } from './history.ts';
import type { AppNode, Nodes, Path } from './nodes.ts';
import type { BatchRequest, Script, ScriptResult, Step } from './wire.ts';

export interface CheckOptions {
  /** Reads and writes to be answered on each path before it ends. */
  readonly operations: Readonly<Record<Path, number>>;
  /** Off: nobody carries a token, and violations must be found. */
  readonly usesTokens?: boolean;
  /** On: rows are read one by one, and violations must be found. */
  readonly isTorn?: boolean;
  readonly hasFaults?: boolean;
  /** So often all replicas are made anew, as a new history. */
  readonly newHistories?: number;
  /** Ends as soon as each of these has been found. */
  readonly until?: readonly ViolationKind[];
  /** Ends by then, however few operations there were: on a busy machine. */
  readonly maxMs?: number;
  readonly log?: (line: string) => void;
}

export interface CheckReport {
  /** Answered operations. */
  readonly operations: Readonly<Record<Path, { reads: number; writes: number }>>;
  /** Operations that had no answer, by what was said: no promise is broken by that. */
  readonly unanswered: Readonly<Record<string, number>>;
  readonly faults: Readonly<Record<string, number>>;
  readonly violations: Readonly<Record<ViolationKind, number>>;
  /** The first of them. */
  readonly examples: readonly Violation[];
  readonly seconds: number;
}

/** A lane whose node is away tries again after so long. */
const AWAY_MS = 50;

/** Library operations come in batches: so many sessions in one at most, each with so many steps. */
const SESSIONS_PER_BATCH = 40;
const STEPS_PER_SCRIPT = 30;
const WRITE_SHARE = 0.08;
const LANES: Record<Path, number> = { library: 3, middleware: 2, proxy: 4 };
const REQUEST_TIMEOUT_MS = 30_000;
const EXAMPLES = 20;
/** Of a check that is given no end. */
const LONGEST_MS = 12 * 60 * 60 * 1000;

/**
 * Sessions write and read through nodes that they change all the time, while everything between Postgres and the
 * files breaks. Every read is held against what its session has written and seen before.
 */
export async function checkConsistency(nodes: Nodes, options: CheckOptions): Promise<CheckReport> {
  return await new Checker(nodes, options).run();
}

/** No session writes so often in one check. */
const VERSIONS_PER_CHECK = 10_000_000;

class Checker {
  readonly #nodes: Nodes;
  readonly #options: CheckOptions;
  readonly #idle: SessionHistory[];
  readonly #agent = new Agent({ keepAlive: true });
  readonly #operations: Record<Path, { reads: number; writes: number }> = {
    library: { reads: 0, writes: 0 },
    middleware: { reads: 0, writes: 0 },
    proxy: { reads: 0, writes: 0 },
  };
  readonly #unanswered: Record<string, number> = {};
  readonly #violations: Record<ViolationKind, number> = {
    'read-your-writes': 0,
    'monotonic-reads': 0,
    atomicity: 0,
  };
  readonly #examples: Violation[] = [];
  readonly #over = new AbortController();
  #histories = 0;

  constructor(nodes: Nodes, options: CheckOptions) {
    this.#nodes = nodes;
    this.#options = options;
    const { sessions, firstVersion } = nodes;
    this.#idle = Array.from({ length: sessions }, (_, index) => new SessionHistory(index + 1, firstVersion));
    nodes.firstVersion += VERSIONS_PER_CHECK;
  }

  async run(): Promise<CheckReport> {
    const { hasFaults = true, log = () => undefined } = this.#options;
    const startedMs = performance.now();
    const stopFaults = new AbortController();
    const faults = new Faults(this.#nodes, log);
    const breaking = hasFaults ? faults.run(stopFaults.signal) : Promise.resolve();
    breaking.catch(() => this.#over.abort());
    const timer = setTimeout(() => this.#over.abort(), this.#options.maxMs ?? LONGEST_MS);
    const lanes = this.#nodes.apps.flatMap((node) =>
      Array.from({ length: LANES[node.path] }, () => this.#lane(node)),
    );
    try {
      await Promise.all(lanes);
    } finally {
      clearTimeout(timer);
      this.#over.abort();
      stopFaults.abort();
      await breaking;
      this.#agent.destroy();
    }
    return {
      operations: this.#operations,
      unanswered: this.#unanswered,
      faults: { ...faults.counts, ...(this.#histories > 0 ? { 'a new history': this.#histories } : {}) },
      violations: this.#violations,
      examples: this.#examples,
      seconds: Math.round((performance.now() - startedMs) / 1000),
    };
  }

  /** Half of the sessions are left for the other paths, however few there are. */
  get #sessionsPerBatch(): number {
    const { apps, sessions } = this.#nodes;
    const lanes = apps.filter(({ path }) => path === 'library').length * LANES.library;
    return Math.min(SESSIONS_PER_BATCH, Math.ceil(sessions / (2 * lanes)));
  }

  #done(path: Path): number {
    const { reads, writes } = this.#operations[path];
    return reads + writes;
  }

  async #lane(node: AppNode): Promise<void> {
    const { until, newHistories = 0 } = this.#options;
    const goal = this.#options.operations[node.path];
    while (!this.#over.signal.aborted) {
      const done = this.#done(node.path);
      if (done >= goal || until?.every((kind) => this.#violations[kind] > 0) === true) return;
      if (node.path === 'library' && done > (goal * (this.#histories + 1)) / (newHistories + 1)) {
        this.#histories++;
        await this.#nodes.restartReplicator({ withoutData: true });
      }
      const isAway = node.path === 'library' ? await this.#batch(node) : await this.#single(node);
      if (isAway) await delay(AWAY_MS);
    }
  }

  /** Whole scripts for sessions that nobody else holds. True if the node did not answer. */
  async #batch(node: AppNode): Promise<boolean> {
    const { usesTokens = true, isTorn = false } = this.#options;
    // What a proxy could not say where it is can be read through a proxy only.
    const taken = this.#take(this.#sessionsPerBatch, ({ token }) => token !== 'unknown');
    const scripts = taken.map(
      (session): Script => ({
        session: session.session,
        token: session.token,
        steps: Array.from(
          { length: STEPS_PER_SCRIPT },
          (): Step =>
            Math.random() < WRITE_SHARE
              ? { write: session.attempt() }
              : { read: Math.floor(Math.random() * node.replicas), other: this.#anySession() },
        ),
      }),
    );
    try {
      const body: BatchRequest = { scripts, usesTokens, isTorn };
      const answer = await this.#request(`${node.url}/batch`, { method: 'POST', body: JSON.stringify(body) });
      for (const result of JSON.parse(answer.body) as ScriptResult[])
        this.#judgeScript(node, taken.find(({ session }) => session === result.session)!, result);
      return false;
    } catch (error) {
      this.#countUnanswered(error);
      return true;
    } finally {
      this.#idle.push(...taken);
    }
  }

  #judgeScript(node: AppNode, session: SessionHistory, { results, token }: ScriptResult): void {
    const counts = this.#operations.library;
    for (const result of results) {
      if ('failed' in result) {
        this.#countUnanswered(new Error(result.failed));
      } else if ('written' in result) {
        counts.writes++;
        session.answered(result.written);
      } else {
        counts.reads++;
        this.#judge(session, `${node.name}, replica ${result.replica}`, result.rows);
      }
    }
    session.token = token;
  }

  /** One request of one session, as a browser makes it. */
  async #single(node: AppNode): Promise<boolean> {
    const [session] = this.#take(1, () => true);
    if (session === undefined) return true;
    const counts = this.#operations[node.path];
    const isWrite = Math.random() < WRITE_SHARE * 3;
    const version = isWrite ? session.attempt() : 0;
    const query = isWrite ? `version=${version}` : `other=${this.#anySession()}`;
    try {
      const { usesTokens = true } = this.#options;
      const answer = await this.#request(`${node.url}/?session=${session.session}&${query}`, {
        method: isWrite ? 'POST' : 'GET',
        token: usesTokens ? session.token : null,
      });
      if (isWrite) {
        counts.writes++;
        session.answered(version);
      } else {
        counts.reads++;
        this.#judge(session, node.name, JSON.parse(answer.body) as [number, number, number][]);
      }
      session.token = answer.token ?? session.token;
      return false;
    } catch (error) {
      this.#countUnanswered(error);
      return true;
    } finally {
      this.#idle.push(session);
    }
  }

  #judge(session: SessionHistory, node: string, rows: readonly (readonly [number, number, number])[]): void {
    const violations = session.judge({
      node,
      versions: rows.map(([each, version]) => [each, version]),
      sums: rows.map(([each, , sum]) => [each, sum]),
    });
    for (const violation of violations) {
      this.#violations[violation.kind]++;
      if (this.#examples.length < EXAMPLES) this.#examples.push(violation);
    }
  }

  /** Some sessions, at random, that are nobody else's until they come back. */
  #take(count: number, fits: (session: SessionHistory) => boolean): SessionHistory[] {
    const taken: SessionHistory[] = [];
    for (let tries = 0; tries < 2 * count && taken.length < count && this.#idle.length > 0; tries++) {
      const at = Math.floor(Math.random() * this.#idle.length);
      if (!fits(this.#idle[at]!)) continue;
      taken.push(this.#idle[at]!);
      this.#idle[at] = this.#idle.at(-1)!;
      this.#idle.pop();
    }
    return taken;
  }

  #anySession(): number {
    return 1 + Math.floor(Math.random() * this.#nodes.sessions);
  }

  #countUnanswered(error: unknown): void {
    const { message, code } = error as NodeJS.ErrnoException;
    const what = code ?? message.replaceAll(/[0-9A-F]+\/[0-9A-F]+|\d+/g, '…');
    this.#unanswered[what] = (this.#unanswered[what] ?? 0) + 1;
  }

  #request(
    url: string,
    options: { readonly method: string; readonly body?: string; readonly token?: string | null },
  ): Promise<{ body: string; token: string | null }> {
    const { method, body, token = null } = options;
    return new Promise((resolve, reject) => {
      const outgoing = request(
        url,
        {
          method,
          agent: this.#agent,
          timeout: REQUEST_TIMEOUT_MS,
          headers: token === null ? {} : { cookie: `rivulet_token=${token}` },
        },
        (response) => {
          let text = '';
          response.setEncoding('utf8').on('data', (chunk: string) => {
            text += chunk;
          });
          response.on('error', reject);
          response.on('end', () => {
            if (response.statusCode !== 200) {
              const code = /"code":"(\w+)"/.exec(text)?.[1];
              reject(new Error(`status ${response.statusCode} ${code ?? text.slice(0, 60)}`));
              return;
            }
            const cookie = response.headers['set-cookie']?.at(-1);
            resolve({ body: text, token: /^rivulet_token=([^;]*)/.exec(cookie ?? '')?.[1] ?? null });
          });
        },
      );
      outgoing.on('timeout', () => outgoing.destroy(new Error('no answer in time')));
      outgoing.on('error', reject);
      outgoing.end(body);
    });
  }
}
