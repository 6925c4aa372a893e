import { setTimeout as delay } from 'node:timers/promises';
import { TestCluster } from '../helpers/cluster.ts';
import { waitUntil } from '../helpers/wait-until.ts';

const TABLES_PER_SCHEMA = 8;
const LONG_WRITERS = 3;
const SHORT_WRITERS = 2;

export interface LeftOutTablesReport {
  /** Statements of writers meanwhile. */
  readonly writes: number;
  /** From the creation of a schema's first such table to its first UPDATE that Postgres took, the longest. */
  readonly refusedMs: number;
  readonly problems: readonly string[];
}

/**
 * Schema after schema gets its first table that no replica identity helps, so that its publication changes, while
 * transactions that are open for longer than that write to the tables of all schemas.
 */
export async function leftOutTables(options: { readonly schemas: number }): Promise<LeftOutTablesReport> {
  await using cluster = await TestCluster.start({
    major: 18,
    settings: { logical_decoding_work_mem: '64kB' },
  });
  const { postgres } = cluster;
  for (let schema = 0; schema < options.schemas; schema++) {
    await postgres.sql(`create schema s${schema}`);
    for (let table = 0; table < TABLES_PER_SCHEMA; table++)
      await postgres.sql(`create table s${schema}.t${table} (id int primary key, v text)`);
  }
  await cluster.startReplicator();
  await cluster.startReplica('one');
  const random = (below: number): number => Math.floor(Math.random() * below);
  let isStopping = false;
  let writes = 0;
  const write = async (isLong: boolean): Promise<void> => {
    const client = await postgres.client();
    const own = new Map<string, number>();
    while (!isStopping) {
      await client.query('begin');
      const count = 1 + random(isLong ? 10 : 3);
      for (let index = 0; index < count; index++) {
        const id = ++writes;
        const table = `s${random(options.schemas)}.t${random(TABLES_PER_SCHEMA)}`;
        await client.query(`insert into ${table} values ($1, 'new')`, [id]);
        // Rows of its own, so that no writer waits for another.
        await client.query(`update ${table} set v = v || '+' where id = $1`, [own.get(table) ?? id]);
        own.set(table, id);
        if (isLong) await delay(random(60));
      }
      await client.query(random(10) === 0 ? 'rollback' : 'commit');
    }
  };
  const writers = [
    ...Array.from({ length: LONG_WRITERS }, () => write(true)),
    ...Array.from({ length: SHORT_WRITERS }, () => write(false)),
  ];
  let refusedMs = 0;
  for (let schema = 0; schema < options.schemas; schema++) {
    await delay(300);
    await postgres.sql(`create table s${schema}.first (id int, g int generated always as (id + 1));
      create table s${schema}.beside (id int primary key); insert into s${schema}.beside values (1)`);
    const madeMs = performance.now();
    const update = (): Promise<boolean> =>
      postgres.sql(`update s${schema}.first set id = 2`).then(
        () => true,
        () => false,
      );
    await waitUntil('UPDATE', update);
    refusedMs = Math.max(refusedMs, performance.now() - madeMs);
    await postgres.sql(`create table s${schema}.later (id int, v text); insert into s${schema}.later values (1);
      create table s${schema}.second (id int, g int generated always as (id + 1)); update s${schema}.second set id = 2`);
  }
  isStopping = true;
  await Promise.all(writers);
  const isSettled = async (): Promise<boolean> =>
    (await postgres.sql(`select from rivulet.misplaced_tables('rivulet')`)).length === 0;
  await waitUntil('the publication', isSettled);
  return { writes, refusedMs: Math.round(refusedMs), problems: await cluster.differences() };
}
