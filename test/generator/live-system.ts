import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import type pg from 'pg';
import { TestCluster } from '../helpers/cluster.ts';
import { findDifferences } from '../helpers/compare.ts';
import type { Major } from '../helpers/postgres.ts';
import { PROGRAM_SETUP, type ProgramStep } from './program.ts';

/** Tables are read again within moments; a loaded machine takes longer. */
const SETTLED_MS = 20_000;
/** The two connections of a program wait for each other's locks; who waits longer is refused. */
const LOCK_TIMEOUT_MS = 100;

/**
 * A server, a replicator and a replica in which programs run one behind the other, each in a schema of its own. What
 * breaks the system is found out by run(); the next one begins with a new system.
 */
export class LiveSystem implements AsyncDisposable {
  readonly #major: Major;
  #cluster: TestCluster | null = null;
  #programs = 0;

  constructor(major: Major) {
    this.#major = major;
  }

  /** What is not as it should be after the program. */
  async run(program: readonly ProgramStep[]): Promise<string[]> {
    const problems = await this.#run(program).catch((error: Error) => [error.stack ?? error.message]);
    if (problems.length > 0) await this[Symbol.asyncDispose]();
    return problems;
  }

  async #run(program: readonly ProgramStep[]): Promise<string[]> {
    const cluster = await this.#started();
    const schema = `g${++this.#programs}`;
    const sessions = [await cluster.postgres.client(), await cluster.postgres.client()];
    try {
      for (const session of sessions) {
        await session.query(`set search_path = ${schema}; set lock_timeout = ${LOCK_TIMEOUT_MS}`);
      }
      await sessions[0]!.query(`create schema ${schema}; ${PROGRAM_SETUP}`);
      const isOpen = [false, false];
      for (const { session, sql } of program)
        isOpen[session] = await execute(sessions[session]!, sql, isOpen[session]!);
      for (const [number, session] of sessions.entries()) await execute(session, 'commit', isOpen[number]!);
    } finally {
      for (const session of sessions) await session.end();
    }
    const problems = await settled(cluster, schema);
    await cluster.postgres.sql(`drop schema ${schema} cascade`);
    return problems;
  }

  async #started(): Promise<TestCluster> {
    if (this.#cluster !== null) return this.#cluster;
    const cluster = await TestCluster.start({ major: this.#major });
    this.#cluster = cluster;
    await cluster.postgres.sql(readFileSync(join(import.meta.dirname, 'helpers.sql'), 'utf8'));
    await cluster.startReplicator();
    await cluster.startReplica('one');
    return cluster;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#cluster?.[Symbol.asyncDispose]();
    this.#cluster = null;
  }
}

/** Runs what the server takes; whether a transaction is open behind it. */
async function execute(session: pg.Client, sql: string, isOpen: boolean): Promise<boolean> {
  if (sql === 'begin' || sql === 'commit' || sql === 'rollback') {
    if ((sql === 'begin') === isOpen) return isOpen;
    // A deferred constraint may turn a commit into a rollback.
    await session.query(sql).catch(() => undefined);
    return sql === 'begin';
  }
  try {
    if (isOpen) await session.query('savepoint step');
    await session.query(sql);
    if (isOpen) await session.query('release savepoint step');
  } catch {
    if (isOpen) await session.query('rollback to savepoint step');
  }
  return isOpen;
}

async function settled(cluster: TestCluster, schema: string): Promise<string[]> {
  const deadline = performance.now() + SETTLED_MS;
  for (;;) {
    const healed = signsOfHealing(cluster);
    if (healed.length > 0) return healed;
    await cluster.caughtUp(SETTLED_MS).catch((error: Error) => {
      throw new Error([error.message, ...signsOfHealing(cluster)].join('\n'));
    });
    const differences = await findDifferences({
      url: cluster.postgres.url,
      files: [cluster.file('one')],
      isWanted: (each) => each === schema,
    });
    if (differences.length === 0) return signsOfHealing(cluster);
    if (performance.now() > deadline) return differences.map(({ text }) => text);
    await delay(100);
  }
}

/** What went wrong and was mended without a hand: here it counts. */
function signsOfHealing(cluster: TestCluster): string[] {
  const lines = `${cluster.replicator!.stderr}\n${cluster.replicas.get('one')!.stderr}`.split('\n');
  const bad = lines.filter(
    (line) => /"level":(40|50|60)/.test(line) && !/catalog is read instead|tried again/.test(line),
  );
  return bad.slice(0, 5);
}
