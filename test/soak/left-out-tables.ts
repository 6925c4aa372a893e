import { setTimeout as delay } from 'node:timers/promises';
import { TestCluster } from '../helpers/cluster.ts';
import { waitUntil } from '../helpers/wait-until.ts';

const TABLES_PER_SCHEMA = 8;
const LONG_WRITERS = 3;
const SHORT_WRITERS = 2;

export interface LeftOutTablesReport {
  /** Statements of writers meanwhile. */
  readonly writes: number;
  /** Tables of others that were made, and made UNLOGGED and LOGGED again, meanwhile. */
  readonly changes: number;
  readonly problems: readonly string[];
}

/**
 * Schema after schema gets tables that no replica identity helps, and others, so that the publication changes, while
 * transactions that are open for longer than that write to the tables of all schemas, and make tables in them. Postgres
 * may refuse none of it.
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
  const problems: string[] = [];
  const refused = (error: Error): void => void problems.push(error.message);
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
  let changes = 0;
  const change = async (): Promise<void> => {
    const client = await postgres.client();
    while (!isStopping) {
      const table = `s${random(options.schemas)}.made${++changes}`;
      await client.query(`begin; create table ${table} (id int primary key, v text);
        insert into ${table} values (1, 'made')`);
      await delay(random(60));
      await client.query(`insert into ${table} values (2, 'made'); commit`);
      await client.query(`insert into ${table} values (3, 'beside')`);
      if (random(2) === 0) continue;
      await client.query(`alter table ${table} set unlogged`);
      await client.query(`insert into ${table} values (4, 'unlogged')`);
      if (random(2) === 0) await client.query(`alter table ${table} set logged`);
    }
  };
  const writers = [
    change().catch(refused),
    ...Array.from({ length: LONG_WRITERS }, () => write(true).catch(refused)),
    ...Array.from({ length: SHORT_WRITERS }, () => write(false).catch(refused)),
  ];
  for (let schema = 0; schema < options.schemas; schema++) {
    await delay(300);
    await postgres
      .sql(`create table s${schema}.first (id int, g int generated always as (id + 1));
        create table s${schema}.beside (id int primary key); insert into s${schema}.beside values (1)`)
      .then(() => postgres.sql(`update s${schema}.first set id = 2`))
      .catch((error: Error) => problems.push(`s${schema}: ${error.message}`));
    await postgres.sql(`create table s${schema}.later (id int, v text); insert into s${schema}.later values (1);
      create table s${schema}.second (id int, g int generated always as (id + 1)); update s${schema}.second set id = 2`);
  }
  isStopping = true;
  await Promise.all(writers);
  const isSettled = async (): Promise<boolean> =>
    (await postgres.sql(`select from rivulet.misplaced_tables('rivulet')`)).length === 0;
  await waitUntil('the publication', isSettled);
  return { writes, changes, problems: [...problems, ...(await cluster.differences())] };
}
