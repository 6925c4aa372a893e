import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import type pg from 'pg';
import { TestCluster } from '../helpers/cluster.ts';
import { findDifferences } from '../helpers/compare.ts';
import type { Major } from '../helpers/postgres.ts';
import { type CONTROL, isControl, PROGRAM_SETUP, type ProgramStep } from './program.ts';

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
      const both = sessions.map((client, number) => new Session(client, `${schema}_${number}`));
      for (const { session, sql } of program) await both[session]!.execute(sql);
      for (const session of both) await session.end();
    } finally {
      for (const session of sessions) await session.end();
    }
    const problems = await settled(cluster, schema);
    await cluster.postgres.sql(`drop schema ${schema} cascade`);
    return problems;
  }

  async #started(): Promise<TestCluster> {
    if (this.#cluster !== null) return this.#cluster;
    // The least that there is, so that many of its transactions are sent before they commit.
    const settings = { logical_decoding_work_mem: '64kB', max_prepared_transactions: '4' };
    const cluster = await TestCluster.start({ major: this.#major, settings });
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

/** A connection that runs what the server takes; what it refuses counts for nothing. */
class Session {
  readonly #client: pg.Client;
  readonly #prepared: string;
  #isOpen = false;
  #hasSavepoint = false;
  #isPrepared = false;

  constructor(client: pg.Client, name: string) {
    this.#client = client;
    this.#prepared = name;
  }

  async execute(sql: string): Promise<void> {
    if (isControl(sql)) await this.#control(sql);
    else if (this.#isOpen) await this.#tryStep(sql);
    else await this.#client.query(sql).catch(() => undefined);
  }

  async end(): Promise<void> {
    await this.#control('commit');
    await this.#control('finish');
  }

  async #control(sql: keyof typeof CONTROL): Promise<void> {
    const name = this.#prepared;
    switch (sql) {
      case 'savepoint s':
        if (this.#isOpen) await this.#client.query(sql);
        this.#hasSavepoint = this.#isOpen;
        break;
      case 'rollback to s':
        if (this.#hasSavepoint) await this.#client.query(sql);
        break;
      case 'finish':
        if (this.#isPrepared && !this.#isOpen) {
          await this.#client.query(`commit prepared '${name}'`);
          this.#isPrepared = false;
        }
        break;
      case 'prepare':
        if (this.#isOpen && !this.#isPrepared)
          this.#isPrepared = await this.#close(`prepare transaction '${name}'`);
        break;
      case 'commit':
      case 'rollback':
        if (this.#isOpen) await this.#close(sql);
        break;
      default:
        if (this.#isOpen) break;
        await this.#client.query(sql);
        this.#isOpen = true;
    }
  }

  /** False if it was rolled back instead, for a deferred constraint, say. */
  async #close(sql: string): Promise<boolean> {
    this.#isOpen = false;
    this.#hasSavepoint = false;
    return this.#client.query(sql).then(
      ({ command }) => command !== 'ROLLBACK',
      () => false,
    );
  }

  async #tryStep(sql: string): Promise<void> {
    await this.#client.query('savepoint step');
    try {
      await this.#client.query(sql);
      await this.#client.query('release savepoint step');
    } catch {
      await this.#client.query('rollback to savepoint step');
    }
  }
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
