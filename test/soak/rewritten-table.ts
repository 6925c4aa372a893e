import Database from 'better-sqlite3';
import { TestCluster } from '../helpers/cluster.ts';
import type { Major } from '../helpers/postgres.ts';
import { createTpcb, startTpcbLoad } from '../helpers/tpcb.ts';
import { Canary, type SharedPhaseReport } from './canary.ts';
import { RawSlot } from './raw-slot.ts';

export interface RewrittenTableReport {
  readonly before: SharedPhaseReport;
  /** While Postgres rewrites the table: all of it is WAL that the walsender has to pass over. */
  readonly rewriting: SharedPhaseReport;
  /** While it is read again. */
  readonly rereading: SharedPhaseReport;
  readonly alterMs: number;
  readonly reloadMs: number;
  /** Which types the rewritten column had in the file, whenever it was looked at. */
  readonly typesSeen: readonly string[];
  readonly problems: readonly string[];
}

/** Rewrites a large table by ALTER TABLE while others are written; watches the others, and the table. */
export async function rewrittenTable(options: {
  readonly major: Major;
  readonly rows: number;
  readonly beforeMs: number;
  readonly rate: number;
}): Promise<RewrittenTableReport> {
  await using cluster = await TestCluster.start({ major: options.major });
  const { postgres } = cluster;
  await createTpcb(postgres.url, 1, 10_000);
  await postgres.sql(`
    create table large (id int primary key, n int not null, filler char(84) not null default '');
    insert into large select i, i from generate_series(1, ${options.rows}) i`);
  const client = await postgres.client();
  await Canary.createTable(client);
  await cluster.startReplicator();
  await cluster.startReplica('one');
  await using load = startTpcbLoad({
    url: postgres.url,
    scale: 1,
    accountsPerBranch: 10_000,
    rate: options.rate,
  });
  const canary = new Canary(client, cluster.file('one'));
  const file = new Database(cluster.file('one'), { readonly: true });
  const typesSeen = new Set<string>();
  const ends = file.prepare<[], { first: string; last: string }>(
    'select (select typeof(n) from large order by id limit 1) as first, (select typeof(n) from large order by id desc limit 1) as last',
  );
  const isReloading = file.prepare('select 1 from _rivulet_reload');

  await using slot = await RawSlot.open(postgres, 'canary');

  const startedMs = performance.now();
  const before = await canary.watchBeside(slot, () => performance.now() - startedMs > options.beforeMs);
  const alterStartedMs = performance.now();
  let alteredMs = Number.POSITIVE_INFINITY;
  let isDone = false;
  const altering = postgres.sql("alter table large alter n type text using 'n' || n").then(() => {
    alteredMs = performance.now();
  });
  const look = (): void => {
    const { first, last } = ends.get()!;
    typesSeen.add(first === last ? first : `${first} and ${last}`);
    isDone = first === 'text' && isReloading.get() === undefined;
  };
  const rewriting = await canary.watchBeside(slot, () => {
    look();
    return alteredMs < performance.now();
  });
  const rereading = await canary.watchBeside(slot, () => {
    look();
    return isDone;
  });
  const doneMs = performance.now();
  await altering;
  await load.stop();
  const whole = file.prepare<[], string>('select distinct typeof(n) from large').pluck().all();
  const problems = [...load.errors, ...(await cluster.differences())];
  if (whole.join() !== 'text') problems.push(`the column holds ${whole.join(' and ')}`);
  canary.close();
  file.close();
  return {
    before,
    rewriting,
    rereading,
    alterMs: Math.round(alteredMs - alterStartedMs),
    reloadMs: Math.round(doneMs - alteredMs),
    typesSeen: [...typesSeen],
    problems,
  };
}
