import { readFileSync } from 'node:fs';
import Database from 'better-sqlite3';
import { TestCluster } from '../helpers/cluster.ts';
import type { Major } from '../helpers/postgres.ts';
import type { RivuletProcess } from '../helpers/processes.ts';
import { type VerifyProcess, verify } from './verify-run.ts';

/** A value of so many bytes: what the file must hold of it. */
interface LargeValue {
  readonly id: number;
  readonly way: 'copied' | 'streamed' | 'beside another';
  readonly column: 'a' | 'b' | 'bytes';
  readonly bytes: number;
  readonly isHeld: boolean;
}

const MB = 1_000_000;

const VALUES: readonly LargeValue[] = [
  { id: 1, way: 'copied', column: 'a', bytes: 300 * MB, isHeld: true },
  { id: 2, way: 'copied', column: 'a', bytes: 600 * MB, isHeld: false },
  { id: 3, way: 'copied', column: 'bytes', bytes: 252 * MB, isHeld: true },
  { id: 4, way: 'streamed', column: 'a', bytes: 300 * MB, isHeld: true },
  { id: 5, way: 'streamed', column: 'a', bytes: 600 * MB, isHeld: false },
  { id: 6, way: 'streamed', column: 'bytes', bytes: 252 * MB, isHeld: true },
  // As text they are longer than the server can send.
  { id: 7, way: 'copied', column: 'bytes', bytes: 540 * MB, isHeld: false },
  { id: 8, way: 'streamed', column: 'bytes', bytes: 540 * MB, isHeld: false },
  // Each fits; the row that they make together, of which the stream sends the second only, does not.
  { id: 1, way: 'beside another', column: 'b', bytes: 300 * MB, isHeld: false },
];

export interface LargeValuesReport {
  readonly problems: readonly string[];
  /** Until the file had it, ms, by the id of the streamed rows. */
  readonly visibleMs: Readonly<Record<string, number>>;
  readonly peakMiB: Readonly<Record<'replicator' | 'replica' | 'verify', number>>;
}

/**
 * Values of hundreds of MB, by copy and by stream. One with which its row would be longer than SQLite takes is NULL in
 * the file, which names it, and everything else goes on.
 */
export async function largeValues(options: {
  readonly major: Major;
  readonly log: (line: string) => void;
}): Promise<LargeValuesReport> {
  const { major, log } = options;
  await using cluster = await TestCluster.start({ major });
  const { postgres } = cluster;
  await postgres.sql(
    `create table large (id int primary key, a text, b text, bytes bytea);
     alter table large alter a set storage external, alter b set storage external, alter bytes set storage external;
     create table beside (id int primary key)`,
  );
  const put = async ({ id, column, bytes }: LargeValue): Promise<void> => {
    const value =
      column === 'bytes'
        ? Array.from({ length: 3 }, () => `decode(repeat('00ff', ${bytes / 6}), 'hex')`).join(' || ')
        : `repeat('0123456789', ${bytes / 10})`;
    await postgres.sql(
      `insert into large (id, ${column}) values (${id}, ${value}) on conflict (id) do update set ${column} = excluded.${column}`,
    );
  };
  for (const value of VALUES) if (value.way === 'copied') await put(value);
  const replicator = await cluster.startReplicator();
  const replica = await cluster.startReplica('one');
  log(`copied: ${peakMiB(replicator)} and ${peakMiB(replica)} MiB`);
  const visibleMs: Record<string, number> = {};
  for (const value of VALUES) {
    if (value.way === 'copied') continue;
    await put(value);
    const startedMs = performance.now();
    await postgres.sql(`insert into beside values (${value.id})`);
    await cluster.caughtUp(300_000);
    visibleMs[value.id] = Math.round(performance.now() - startedMs);
    log(`${value.id} ${value.way}: ${peakMiB(replicator)} and ${peakMiB(replica)} MiB`);
  }
  const verified = await verify(cluster);
  log(`verify: exit ${verified.code}, ${verified.peakMiB} MiB`);
  return {
    problems: [...findProblems(cluster.file('one')), ...verifyProblems(verified)],
    visibleMs,
    peakMiB: { replicator: peakMiB(replicator), replica: peakMiB(replica), verify: verified.peakMiB },
  };
}

/** As text. */
function sentBytes({ column, bytes }: Pick<LargeValue, 'column' | 'bytes'>): number {
  return column === 'bytes' ? 2 + 2 * bytes : bytes;
}

function findProblems(file: string): string[] {
  const db = new Database(file, { readonly: true });
  try {
    const problems: string[] = [];
    for (const { id, column, bytes, isHeld, way } of VALUES) {
      const length = db.prepare(`select length(${column}) from large where id = ?`).pluck().get(id);
      if (length !== (isHeld ? bytes : null))
        problems.push(`${id} (${way}): ${column} has ${length} of ${bytes} bytes`);
      const noted = db
        .prepare('select count(*) from _rivulet_left_out where row = ? and column_name = ? and bytes = ?')
        .pluck()
        .get(`id = ${id}`, column, sentBytes({ column, bytes }));
      if (noted !== Number(!isHeld)) problems.push(`${id} (${way}): noted ${noted} times as left out`);
    }
    const beside = db.prepare('select count(*) from beside').pluck().get();
    const streamed = VALUES.filter(({ way }) => way !== 'copied').length;
    if (beside !== streamed) problems.push(`the other table has ${beside} rows of ${streamed}`);
    return problems;
  } finally {
    db.close();
  }
}

/** The comparison names exactly what the file lacks, and finds nothing else. */
function verifyProblems({ code, report }: VerifyProcess): string[] {
  const found = report.tables.find(({ table }) => table === 'public.large');
  const leftOut = found?.leftOut.map(({ row, column, bytes }) => `${row} ${column} ${bytes}`).sort();
  const expected = VALUES.filter(({ isHeld }) => !isHeld)
    .map(({ id, column, bytes }) => `id = ${id} ${column} ${sentBytes({ column, bytes })}`)
    .sort();
  if (code === 4 && found?.verdict === 'incomplete' && leftOut?.join() === expected.join()) return [];
  return [`verify ended with ${code}: ${JSON.stringify(report.tables)}`];
}

function peakMiB(rivulet: RivuletProcess): number {
  const match = /^VmHWM:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${rivulet.pid}/status`, 'utf8'));
  return Math.round(Number(match![1]) / 1024);
}
